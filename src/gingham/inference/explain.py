"""Explain a prediction: every preprocessing step, the probabilities, an occlusion map, the nearest training images."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from gingham.data.splits import Split
from gingham.inference.neighbours import NUM_NEIGHBOURS, features, gallery
from gingham.inference.predict import ImagePrediction
from gingham.models.classifier import Classifier
from gingham.plots import BLUE, INK, PAPER, RUST, write_figure

SAMPLE = 6000  # looking at every training picture would take ten seconds


def explain(model: Classifier, answer: ImagePrediction, train: Split | None, file: Path) -> Path:
    """Write a PNG that explains an answer about a photograph, and return it.

    Above, every step of the preparation; below, the probabilities, the picture with what speaks for (blue) and against
    (rust) the class given, and, with the training split, the training pictures most like it and their classes.

    Raises
        GinghamError: a file of that name that Gingham did not draw, or that cannot be written.
    """
    assert answer.prepared is not None
    columns = max(len(answer.prepared.steps), NUM_NEIGHBOURS)
    figure = Figure(figsize=(1.75 * columns, 6.4), facecolor=PAPER)
    perhaps = "not sure, perhaps " if answer.unsure else ""
    head = f"{Path(answer.image).name}: {perhaps}{answer.label} ({answer.confidence:.0%})"
    figure.text(0.012, 0.972, head, fontsize=14, color=INK, weight="bold", va="center")
    for place, step in enumerate(answer.prepared.steps):
        axes = figure.add_axes(((place + 0.06) / columns, 0.63, 0.88 / columns, 0.28))
        axes.axis("off")
        axes.imshow(step.image, interpolation="nearest" if max(step.image.shape) < 100 else "antialiased", aspect="equal")
        axes.set_anchor("S")
        text = textwrap.fill(f"{place + 1}. {step.note}", 27)
        figure.text((place + 0.06) / columns, 0.615, text, fontsize=8.5, color=INK, va="top")
    picture = torch.tensor(answer.prepared.image)
    _draw_probabilities(figure, answer, float(model.threshold))
    _draw_what_speaks(figure, model, picture, answer.label)
    if train is not None:
        _draw_neighbours(figure, model, picture, train)
    return write_figure(figure, file)


def _draw_probabilities(figure: Figure, answer: ImagePrediction, threshold: float) -> None:
    assert answer.probabilities is not None
    _title(figure, 0.012, "What the model answers")
    best = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:5]
    bars = figure.add_axes((0.115, 0.07, 0.2, 0.33))
    bars.barh(range(len(best)), [share for _, share in best], color=[BLUE] + [_pale(BLUE)] * (len(best) - 1))
    bars.set_yticks(range(len(best)), [name[:14] for name, _ in best], fontsize=9, color=INK)
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xticks([])
    bars.spines[:].set_visible(False)
    bars.tick_params(length=0)
    for row, (_, share) in enumerate(best):
        bars.text(share + 0.02, row, f"{share:.0%}", va="center", fontsize=9, color=INK)
    if threshold:
        bars.axvline(threshold, color=INK, lw=0.9, ls=":")
        bars.text(threshold, len(best) - 0.42, "sure from here", fontsize=7.5, color=INK, ha="center", va="top")


def _draw_what_speaks(figure: Figure, model: Classifier, picture: torch.Tensor, label: str) -> None:
    _title(figure, 0.36, f"For {label} (blue), against it (rust)")
    moved = occlusion(model, picture, model.classes.index(label)).numpy()
    axes = figure.add_axes((0.36, 0.06, 0.2, 0.35))
    axes.axis("off")
    _show(axes, picture)
    shade = np.zeros((*moved.shape, 4))
    shade[..., :3] = np.where(moved[..., None] > 0, _rgb(BLUE), _rgb(RUST))
    shade[..., 3] = 0.85 * np.abs(moved) / max(float(np.abs(moved).max()), 0.02)
    axes.imshow(shade, interpolation="bilinear")


def _draw_neighbours(figure: Figure, model: Classifier, picture: torch.Tensor, train: Split) -> None:
    some = gallery(model, train, SAMPLE)
    if some is None:
        return
    places = some.nearest(features(model, picture[None])[0], NUM_NEIGHBOURS)
    _title(figure, 0.62, f"Most like it of {len(some.images):,} training pictures")
    for k, index in enumerate(places):
        axes = figure.add_axes((0.62 + 0.125 * (k % 3), 0.255 - 0.2 * (k // 3), 0.1, 0.145))
        axes.axis("off")
        _show(axes, some.images[index])
        name = some.labels[index][:16]
        axes.text(0.5, -0.05, name, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=INK)


def _show(axes: Any, picture: torch.Tensor) -> None:
    pixels = picture.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)  # as the model sees it


def _title(figure: Figure, left: float, text: str) -> None:
    figure.text(left, 0.445, text, fontsize=10, color=INK, weight="bold", va="center")


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))


def _pale(colour: str) -> tuple[float, ...]:
    return tuple(0.5 + part / 2 for part in _rgb(colour))


def occlusion(model: Classifier, picture: torch.Tensor, label: int, side: int = 5, stride: int = 1) -> torch.Tensor:
    """Return how much each place of a picture speaks for a class, float32 (H, W): its share of the probability that is
    lost, from -1 to 1, while a square of `side` pixels around the place is blacked out. With a `stride` only every so
    many places down and across are tried.

    `image` is uint8 (C, H, W).

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901).
    """
    _, height, width = picture.shape
    rows, columns = torch.arange(height), torch.arange(width)
    near_row = (rows[::stride, None] - rows).abs() <= side // 2
    near_column = (columns[::stride, None] - columns).abs() <= side // 2
    hidden = (near_row[:, None, :, None] & near_column[None, :, None, :]).reshape(-1, 1, height, width)
    covered = model.predict(picture[None].masked_fill(hidden, 0)).probabilities[:, label]
    return (model.predict(picture[None]).probabilities[0, label] - covered).reshape(len(near_row), len(near_column))
