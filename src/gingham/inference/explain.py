"""Explain a prediction: every preprocessing step, the probabilities, an occlusion map, the nearest training images."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb

from gingham.data.splits import Split
from gingham.figures import BLUE, INK, PAPER, RUST, Figure
from gingham.inference.neighbours import NUM_NEIGHBOURS, features, gallery
from gingham.inference.predict import ImagePrediction
from gingham.models.classifier import Classifier
from gingham.plots import draw_probabilities

MAX_GALLERY_SIZE = 6000  # a comparison with every training image would take ten seconds


def explain(model: Classifier, prediction: ImagePrediction, train: Split | None) -> Figure:
    """Draw a figure that explains the prediction for a photo.

    The top row shows every preprocessing step. Below it are the probabilities, the occlusion map of the predicted class
    (blue: evidence for it, rust: against it) and, if `train` is given, the nearest training images with their classes.
    """
    assert prediction.prepared is not None
    columns = max(len(prediction.prepared.steps), NUM_NEIGHBOURS)
    figure = Figure(figsize=(1.75 * columns, 6.4), facecolor=PAPER)
    flag = "unlike anything it was trained on" if prediction.novel else "not sure" if prediction.unsure else ""
    prefix = f"{flag}, most likely " if flag else ""
    title = f"{Path(prediction.image).name}: {prefix}{prediction.label} ({prediction.confidence:.0%})"
    figure.text(0.012, 0.972, title, fontsize=14, color=INK, weight="bold", va="center")
    for column, step in enumerate(prediction.prepared.steps):
        left = (column + 0.06) / columns
        axes = _add_axes(figure, (left, 0.63, 0.88 / columns, 0.28))
        axes.imshow(step.image, interpolation="nearest" if max(step.image.shape) < 100 else "antialiased")
        axes.set_anchor("S")
        text = textwrap.fill(f"{column + 1}. {step.note}", 27)
        figure.text(left, 0.615, text, fontsize=8.5, color=INK, va="top")
    image = torch.tensor(prediction.prepared.image)
    _draw_probabilities(figure, prediction, float(model.threshold))
    _draw_occlusion(figure, model, image, prediction.label)
    _draw_neighbours(figure, model, image, train)
    return figure


def _draw_probabilities(figure: Figure, prediction: ImagePrediction, threshold: float) -> None:
    assert prediction.probabilities is not None
    _draw_title(figure, 0.012, "Prediction")
    draw_probabilities(figure.add_axes((0.115, 0.07, 0.2, 0.33)), prediction.probabilities, threshold)


def _draw_occlusion(figure: Figure, model: Classifier, image: torch.Tensor, label: str) -> None:
    _draw_title(figure, 0.36, f"Blue: for {label}; rust: against")
    drops = occlusion(model, image, model.classes.index(label)).numpy()
    axes = _add_axes(figure, (0.36, 0.06, 0.2, 0.35), image)
    colours = np.where(drops[..., None] > 0, to_rgb(BLUE), to_rgb(RUST))
    opacity = 0.85 * np.abs(drops) / max(float(np.abs(drops).max()), 0.02)
    size = occlusion_stride(image)
    right, bottom = ((count - 0.5) * size for count in drops.shape[::-1])
    # Each value is drawn as a square around the middle of the occluding one.
    axes.imshow(np.dstack([colours, opacity]), interpolation="bilinear", extent=(-size / 2, right, bottom, -size / 2))
    axes.set(xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))


def _draw_neighbours(figure: Figure, model: Classifier, image: torch.Tensor, train: Split | None) -> None:
    candidates = gallery(model, train, MAX_GALLERY_SIZE)
    if candidates is None:
        return
    nearest = candidates.nearest(features(model, image[None])[0], NUM_NEIGHBOURS)
    _draw_title(figure, 0.62, f"Most similar of {len(candidates.images):,} training images")
    for k, index in enumerate(nearest):
        corner = 0.62 + 0.125 * (k % 3), 0.255 - 0.2 * (k // 3)
        axes = _add_axes(figure, (*corner, 0.1, 0.145), candidates.images[index])
        label = candidates.labels[index][:16]
        axes.text(0.5, -0.05, label, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=INK)


def _add_axes(figure: Figure, rectangle: tuple[float, float, float, float], image: torch.Tensor | None = None) -> Any:
    """Return new axes without ticks, with an image uint8 (C, H, W) on a fixed scale from 0 to 255."""
    axes = figure.add_axes(rectangle)
    axes.axis("off")
    if image is not None:
        axes.imshow(image.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=255)
    return axes


def _draw_title(figure: Figure, left: float, text: str) -> None:
    figure.text(left, 0.445, text, fontsize=10, color=INK, weight="bold", va="center")


def occlusion_stride(image: torch.Tensor) -> int:
    """Return the stride of an occlusion map with about 28 rows: 1 for images, (C, H, W), of up to 41 pixels."""
    return max(1, round(max(image.shape[1:]) / 28))


def occlusion(
    model: Classifier, image: torch.Tensor, label: int, side: int | None = None, stride: int | None = None
) -> torch.Tensor:
    """Return the occlusion map of an image for a class, float32 (H, W): how much the probability of the class drops,
    from -1 to 1, when a square of `side` pixels centred on the pixel is set to black.

    `image` is uint8 (C, H, W), `label` the class index. Only every `stride`-th row and column is computed. By default
    both grow with the image, so that it takes at most about 1,700 predictions: `stride` is that of `occlusion_stride`,
    `side` five times as large.

    Source: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (arXiv 1311.2901).
    """
    _, height, width = image.shape
    stride = stride or occlusion_stride(image)
    side = side or 5 * stride
    rows, columns = torch.arange(height), torch.arange(width)
    near_row = (rows[::stride, None] - rows).abs() <= side // 2
    near_column = (columns[::stride, None] - columns).abs() <= side // 2
    masks = (near_row[:, None, :, None] & near_column[None, :, None, :]).reshape(-1, 1, height, width)
    occluded = model.predict(image[None].masked_fill(masks, 0)).probabilities[:, label]
    return (model.predict(image[None]).probabilities[0, label] - occluded).reshape(len(near_row), len(near_column))
