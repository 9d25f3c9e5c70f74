"""Draw matplotlib figures of images, curves and results."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import to_rgb

from gingham.figures import BLUE, BLUES, GREY, INK, PAPER, RUST, Figure


def draw_contact_sheet(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], name: str, per_class: int = 12
) -> Figure:
    """Draw the first `per_class` images of each class, in dataset order.

    `images` is uint8 (N, C, H, W), `labels` int64 (N,), `classes` the K class names, and `name` the dataset's name in
    the title. Only the first 40 classes are shown.
    """
    shown = classes[:40]
    height = images.shape[-2] / images.shape[-1]
    figure = Figure(figsize=(1.9 + 0.72 * per_class, 0.7 + 0.74 * height * len(shown)), facecolor=PAPER)
    figure.subplots_adjust(0.165, 0.02, 0.99, 1 - 0.55 / figure.get_figheight(), wspace=0.06, hspace=0.06)
    grid = figure.subplots(len(shown), per_class, squeeze=False)
    for row, label in enumerate(shown):
        first, indices = grid[row, 0], (labels == row).nonzero().flatten()[:per_class].tolist()
        first.text(
            -0.15, 0.5, _shorten(label, 16), transform=first.transAxes, ha="right", va="center", fontsize=11, color=INK
        )
        for axes, index in zip(grid[row], indices, strict=False):
            draw_image(axes, images[index])
        for axes in grid[row, len(indices) :]:
            axes.axis("off")
    rest = f", the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else ""
    title = f"{name}: training images by class{rest}{_grey_note(images)}"
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), title, fontsize=12, color=INK, va="center")
    return figure


def _shorten(name: str, length: int) -> str:
    """Return a name with its middle left out if it has more than `length` characters, which would be cut off."""
    return name if len(name) <= length else f"{name[: length // 2]}…{name[1 - length + length // 2 :]}"


def draw_batch(images: torch.Tensor, names: Sequence[str]) -> Figure:
    """Draw the first six images of a batch, uint8 (N, C, H, W), with class names."""
    figure = Figure(figsize=(7, 5), facecolor=PAPER, layout="constrained")
    for number, (image, name) in enumerate(zip(images[:6], names, strict=False), 1):
        axes = figure.add_subplot(2, 3, number)
        draw_image(axes, image)
        axes.set_title(name, fontsize=12, color=INK)
    title = f"the first {min(6, len(images))} of a batch of {len(images)}{_grey_note(images)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def draw_curves(history: Sequence[Mapping[str, Any]], title: str, *, hard_examples: bool = False) -> Figure:
    """Draw the loss and the accuracy over the epochs.

    `history` is a run's history, with an entry for each step and one for each epoch. With `hard_examples`, the legend
    notes that epochs after the first train on hard images, whose accuracy may be below the validation accuracy.
    """
    batches_label = "training batches (after epoch 1: hard images)" if hard_examples else "training batches"
    figure = Figure(figsize=(9, 3.6), facecolor=PAPER, layout="constrained")
    for column, key in enumerate(("loss", "accuracy"), 1):
        axes = figure.add_subplot(1, 2, column)
        draw_curve(axes, history, key, batches_label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, weight="bold")
    return figure


def draw_curve(axes: Any, history: Sequence[Mapping[str, Any]], key: str, batches_label: str = "training") -> None:
    """Draw the "loss" or "accuracy" (`key`) of a run over the epochs on matplotlib axes.

    Each point of the training batches is the mean over a fiftieth of the steps, each measured with the weights before
    the step. The lines of the training sample and of the validation split can be compared, because both are measured
    with the same weights.
    """
    scale, label = {"loss": (1, "loss (nats)"), "accuracy": (100, "accuracy (%)")}[key]
    steps = [entry[key] for entry in history if "learning_rate" in entry]
    epoch_ends = [entry for entry in history if "epoch" in entry]
    width = max(1, len(steps) // 50)
    means = scale * np.array(steps[: len(steps) // width * width]).reshape(-1, width).mean(axis=1)
    # Epochs may differ in length, so the epoch of each point is interpolated between the ends of epochs.
    end_steps, end_epochs = (np.array([0.0, *(entry[key] for entry in epoch_ends)]) for key in ("step", "epoch"))
    epochs = np.interp((np.arange(len(means)) + 0.5) * width, end_steps, end_epochs)
    is_sampled = any(entry.get("sample_accuracy") is not None for entry in epoch_ends)
    batches = {"color": GREY if is_sampled else BLUE, "lw": 1.8, "marker": "o" if len(means) == 1 else None}
    axes.plot(epochs, means, **batches, label=batches_label)
    for split, line_label, color in (("sample", "training sample", BLUE), ("validation", "validation", RUST)):
        if entries := [entry for entry in epoch_ends if entry.get(f"{split}_accuracy") is not None]:
            x, y = [entry["epoch"] for entry in entries], [scale * entry[f"{split}_{key}"] for entry in entries]
            axes.plot(x, y, color=color, lw=1.8, marker="o", label=line_label, clip_on=False)
    axes.set(xlabel="epoch", ylabel=label, xlim=(0, end_epochs[-1]))
    axes.ticklabel_format(useOffset=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)


def draw_reliability(axes: Any, rows: Sequence[Mapping[str, float]], color: str) -> None:
    """Draw a reliability diagram on matplotlib axes: accuracy against confidence, and the diagonal of the ideal.

    `rows` are the bins that `metrics.reliability` returns. Bars of fewer than 20 images are drawn pale.
    """
    edges, heights = [row["low"] for row in rows], [row["accuracy"] for row in rows]
    colors = [(color, 0.3 if row["count"] < 20 else 0.85) for row in rows]
    axes.bar(edges, heights, [row["high"] - row["low"] - 0.005 for row in rows], align="edge", color=colors)
    axes.plot([0, 1], [0, 1], color=INK, lw=1, ls="--")
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)


def draw_image_groups(sections: Sequence[tuple[str, Sequence[Sequence[tuple[torch.Tensor, str]]]]]) -> Figure:
    """Draw groups of images under titles, the images of a group side by side.

    Each section is a title and its groups. A group is a sequence of images, uint8 (C, H, W), with their captions. Only
    the first four images of a group are drawn.
    """
    titles, cells, bottom = [], [], 0.1  # in inches from the top left corner
    for title, groups in sections:
        if groups:
            titles.append((bottom + 0.17, title))
            bottom += 0.25
        used = 11.0  # images in the current row; the first group starts a new row
        for group in (group[:4] for group in groups):
            if used + len(group) > 11:
                left, top, bottom, used = 0.1, bottom, bottom + 1.25, 0.0
            for image, caption in group:
                cells.append((left, top, image, caption))
                left += 0.88
            left, used = left + 0.12, used + len(group) + 0.14
    height = bottom + 0.2
    figure = Figure(figsize=(10, height), facecolor=PAPER)
    for top, title in titles:
        figure.text(0.012, 1 - top / height, title, fontsize=11, color=INK, weight="bold", va="bottom")
    for left, top, image, caption in cells:
        axes = figure.add_axes((left / 10, 1 - (top + 0.9) / height, 0.085, 0.85 / height))
        draw_image(axes, image)
        axes.text(0.5, -0.04, caption, transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=INK)
    return figure


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix. Rows are true classes, in percent of the row."""
    counts = np.array(matrix, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(classes) <= 30
    side = max(4.5, 2.2 + (0.58 if numbered else 0.2) * len(classes))
    figure = Figure(figsize=(side + 0.6, side), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=BLUES, vmin=0, vmax=100)
    ticks, classes = range(len(classes)), [_shorten(name, 30) for name in classes]
    axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true")
    if numbered:
        for row, column in np.argwhere(shares >= 0.05):
            color = PAPER if shares[row, column] > 55 else INK
            axes.text(column, row, f"{shares[row, column]:.1f}", ha="center", va="center", fontsize=9, color=color)
    axes.spines[:].set_visible(False)
    # Of the whole figure, not of the axes: with few classes the axes are narrower than the title.
    lines = textwrap.fill(title, int(9.5 * figure.get_figwidth()))
    figure.suptitle(lines, x=0.02, ha="left", fontsize=12, color=INK, weight="bold")
    return figure


def draw_calibration(rows: Sequence[Mapping[str, float]], title: str) -> Figure:
    """Draw the reliability diagram of the bins that `metrics.reliability` returns."""
    figure = Figure(figsize=(5, 4), facecolor=PAPER, layout="constrained")
    draw_reliability(figure.add_subplot(), rows, BLUE)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=INK, weight="bold")
    return figure


def draw_prediction(image: torch.Tensor, probabilities: Mapping[str, float], threshold: float, title: str) -> Figure:
    """Draw a prepared image, uint8 (C, H, W), beside its highest probabilities."""
    figure = Figure(figsize=(6, 2.6), facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    draw_image(left, image)
    draw_probabilities(right, probabilities, threshold)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, color=INK, weight="bold")
    return figure


def draw_probabilities(axes: Any, probabilities: Mapping[str, float], threshold: float) -> None:
    """Draw the five highest probabilities as bars, and the threshold of "not sure", on matplotlib axes."""
    top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:5]
    names, values = zip(*top, strict=True)
    pale = tuple(0.5 + channel / 2 for channel in to_rgb(BLUE))
    bars = axes.barh(range(len(top)), values, color=[BLUE] + [pale] * (len(top) - 1))
    axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=3, fontsize=9, color=INK)
    axes.set_yticks(range(len(top)), [name[:14] for name in names], fontsize=9, color=INK)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if 0 < threshold <= 1:
        axes.axvline(threshold, color=INK, lw=0.9, ls=":")
        axes.text(threshold, len(top) - 0.42, '"not sure" below', fontsize=7.5, color=INK, ha="center", va="top")


def draw_layers(names: Sequence[str], columns: Mapping[str, Sequence[float]], title: str) -> Figure:
    """Draw bars for the layers of a network: one column for each quantity, such as the parameters."""
    figure = Figure(figsize=(9, 1.2 + 0.2 * len(names)), facecolor=PAPER, layout="constrained")
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (label, values), color in zip(grid, columns.items(), (BLUE, RUST, INK), strict=False):
        axes.barh(range(len(names)), values, color=color)
        axes.set_title(label, fontsize=10, color=INK, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    grid[0].set_yticks(range(len(names)), names, fontsize=8)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, weight="bold")
    return figure


def draw_seeds(
    seeds: Sequence[int], accuracies: Sequence[float], interval: Sequence[float] | None, title: str
) -> Figure:
    """Draw the accuracy of each seed, their mean, and the interval of the mean if it is known."""
    figure = Figure(figsize=(7, 3.2), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    if interval is not None:
        axes.axhspan(100 * interval[0], 100 * interval[1], color=BLUE, alpha=0.15, label="95 % interval of the mean")
    mean = 100 * math.fsum(accuracies) / len(accuracies)
    axes.axhline(mean, color=BLUE, label=f"mean {mean:.2f} %")
    axes.plot(range(len(seeds)), [100 * value for value in accuracies], "o", color=RUST, label="a seed")
    if len(seeds) <= 20:
        axes.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])
    axes.set(xlabel="seed", ylabel="accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower right", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")
    return figure


def draw_difference(difference: float, interval: tuple[float, float], title: str) -> Figure:
    """Draw a difference of accuracies with its interval, beside no difference at all."""
    figure = Figure(figsize=(7, 1.7), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color=GREY, ls="--")
    axes.plot([100 * edge for edge in interval], [0, 0], color=BLUE, lw=3)
    axes.plot([100 * difference], [0], "o", color=BLUE, ms=9)
    axes.set(xlabel="accuracy of B minus accuracy of A (points), with its 95 % interval", yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")
    return figure


def draw_image(axes: Any, image: torch.Tensor) -> None:
    """Draw an image, uint8 (C, H, W), on matplotlib axes, which are hidden. Grey images are shown inverted."""
    axes.axis("off")
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray_r", vmin=0, vmax=255)


def _grey_note(images: torch.Tensor) -> str:
    return " (bright pixels shown dark, as ink on paper)" if images.shape[1] != 3 else ""
