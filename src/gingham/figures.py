"""Figures as PNG: the contact sheet, one batch, the learning curves, the confusion matrix, what the doctor found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from gingham.datasets import Data
from gingham.diagnosis import Finding
from gingham.errors import GinghamError
from gingham.evaluation import Report
from gingham.files import replacing
from gingham.storage import Run

INK, BLUE, RUST, PAPER = "#1d2b33", "#2f6f8f", "#c2552d", "#ffffff"
BLUES = LinearSegmentedColormap.from_list("gingham", [PAPER, "#9cc3d5", BLUE, "#16384a"])


def draw_contact_sheet(data: Data, file: Path, each: int = 12) -> Path:
    """Write a PNG with `each` training pictures a class, the first ones in the order of the dataset, and return it."""
    split, classes = data.train, data.classes[:40]
    height = split.images.shape[-2] / split.images.shape[-1]
    figure = Figure(figsize=(1.9 + 0.72 * each, 0.7 + 0.74 * height * len(classes)), facecolor=PAPER)
    grid = figure.add_gridspec(len(classes), each, left=0.165, right=0.99, top=1 - 0.55 / figure.get_figheight(), bottom=0.02,
                               wspace=0.06, hspace=0.06)  # fmt: skip
    for row, name in enumerate(classes):
        chosen = (split.labels == row).nonzero().flatten()[:each].tolist()
        for column in range(each):
            axes = figure.add_subplot(grid[row, column])
            axes.axis("off")
            if column < len(chosen):
                draw_picture(axes, split.images[chosen[column]])
            if column == 0:
                axes.text(-0.15, 0.5, name, transform=axes.transAxes, ha="right", va="center", fontsize=11, color=INK)
    rest = f", the first {len(classes)} of {len(data.classes)} classes" if len(classes) < len(data.classes) else ""
    title = f"{Path(data.name).name}: training pictures by class{rest}"
    grey = " (bright pixels shown dark, as ink on paper)" if split.images.shape[1] != 3 else ""
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), title + grey, fontsize=12, color=INK, va="center")
    return write_figure(figure, file)


def draw_batch(images: torch.Tensor, names: Sequence[str], file: Path) -> Path:
    """Write a PNG of the first six pictures of a batch, uint8 (N, C, H, W), with their names, and return it."""
    figure = Figure(figsize=(7, 5), facecolor=PAPER, layout="constrained")
    for place, (picture, name) in enumerate(zip(images[:6], names, strict=False)):
        axes = figure.add_subplot(2, 3, place + 1)
        axes.axis("off")
        draw_picture(axes, picture)
        axes.set_title(name, fontsize=12, color=INK)
    grey = " (bright pixels shown dark, as ink on paper)" if images.shape[1] != 3 else ""
    title = f"the first {min(6, len(images))} of a batch of {len(images)}{grey}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return write_figure(figure, file)


def draw_curves(run: Run, file: Path) -> Path:
    """Write a PNG of loss and accuracy over the epochs, and return it.

    The training line averages its batches over a fiftieth of the run each; where later epochs take the hardest pictures,
    it is of those, and lies below the validation split, the dots, where one is held out.
    """
    steps = [entry for entry in run.history if "learning_rate" in entry]
    epochs_ends = [entry for entry in run.history if "epoch" in entry]
    ends = [entry for entry in epochs_ends if entry["validation_accuracy"] is not None]
    # Epochs may differ in length: a step's place lies between the ends of the epochs around it.
    end_steps, end_epochs = (np.array([0.0, *(entry[key] for entry in epochs_ends)]) for key in ("step", "epoch"))
    hard = run.recipe.hard_share < 1 and run.metrics["epochs"] > 1
    taught = "training (after epoch 1: hard pictures)" if hard else "training"
    figure = Figure(figsize=(9, 3.6), facecolor=PAPER, layout="constrained")
    for place, (key, scale, label) in enumerate((("loss", 1, "loss (nats)"), ("accuracy", 100, "accuracy (%)"))):
        axes = figure.add_subplot(1, 2, place + 1)
        width = max(1, len(steps) // 50)
        usable = len(steps) // width * width
        groups = np.array([entry[key] for entry in steps[:usable]]).reshape(-1, width).mean(axis=1) * scale
        epochs = np.interp((np.arange(len(groups)) + 0.5) * width, end_steps, end_epochs)
        axes.plot(epochs, groups, color=BLUE, lw=1.8, marker="o" if len(groups) == 1 else None, label=taught)
        if ends:
            shown = [entry[f"validation_{key}"] * scale for entry in ends]
            axes.plot(
                [entry["epoch"] for entry in ends], shown, color=RUST, lw=1.8, marker="o", label="validation", clip_on=False
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.ticklabel_format(useOffset=False)
        axes.set_xlim(0, run.metrics["epochs"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    title = f"{run.recipe.name}, seed {run.recipe.seed}, {run.metrics['train_seconds']:.0f} s"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, weight="bold")
    return write_figure(figure, file)


def draw_findings(findings: Sequence[Finding], data: Data, file: Path) -> Path:
    """Write a PNG of the pictures that findings about a dataset show, those that belong together side by side, and return it."""
    splits = {part.name: part for part in (data.train, data.validation, data.test) if part is not None}
    rows: list[tuple[str, Sequence[Sequence[tuple[str, int]]]]] = []
    for finding in findings:
        title, line = finding.finding, list[Sequence[tuple[str, int]]]()
        for group in (group[:4] for group in finding.pictures[:40]):
            if line and sum(len(one) + 0.14 for one in line) + len(group) > 11:
                rows.append((title, line))
                title, line = "", []
            line.append(group)
        if line:
            rows.append((title, line))
    height = 1.25 * len(rows) + 0.25 * sum(bool(title) for title, _ in rows)
    figure = Figure(figsize=(10, height + 0.3), facecolor=PAPER)
    top = height + 0.2
    for title, shown in rows:
        if title:
            top -= 0.25
            figure.text(0.012, (top + 0.08) / (height + 0.3), title, fontsize=11, color=INK, weight="bold", va="bottom")
        left = 0.1
        for places in shown:
            for name, index in places:
                split = splits[name]
                axes = figure.add_axes((left / 10, (top - 0.9) / (height + 0.3), 0.085, 0.85 / (height + 0.3)))
                axes.axis("off")
                draw_picture(axes, split.images[index])
                label = f"{split.classes[int(split.labels[index])][:11]}\n{name} {index}"
                axes.text(0.5, -0.04, label, transform=axes.transAxes, ha="center", va="top", fontsize=6.5, color=INK)
                left += 0.88
            left += 0.12
        top -= 1.25
    return write_figure(figure, file)


def draw_confusion(report: Report, file: Path) -> Path:
    """Write a PNG of the confusion matrix, rows the true classes, each row in percent, and return it."""
    matrix = np.array(report.confusion.matrix, dtype=float)
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    classes = report.confusion.classes
    side = max(4.5, 2.2 + 0.58 * len(classes))
    figure = Figure(figsize=(side + 0.6, side), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=BLUES, vmin=0, vmax=100)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(ticks, classes)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 30:
        for row, column in np.argwhere(shares >= 0.05):
            color = PAPER if shares[row, column] > 55 else INK
            axes.text(column, row, f"{shares[row, column]:.1f}", ha="center", va="center", fontsize=9, color=color)
    axes.spines[:].set_visible(False)
    title = f"{report.accuracy:.2%} of {report.total:,} {report.pictures} right; each row in percent"
    axes.set_title(title, loc="left", fontsize=12, color=INK, weight="bold")
    return write_figure(figure, file)


def draw_picture(axes: Any, picture: torch.Tensor) -> None:
    pixels = picture.permute(1, 2, 0).numpy()
    if pixels.shape[-1] == 3:
        axes.imshow(pixels)
    else:
        axes.imshow(pixels[..., 0], cmap="gray_r", vmin=0, vmax=255)


def write_figure(figure: Figure, file: Path) -> Path:
    """Save with our mark inside; a file of that name that Gingham did not draw is left alone."""
    if file.suffix.lower() != ".png":
        raise GinghamError(f"{file} does not end in .png; figures are PNG files, so give such a name with --out")
    if file.exists() and not _drawn_by_us(file):
        raise GinghamError(f"{file} is not one of gingham's figures and stays as it is; move it, or give another --out")
    with replacing(file) as side:
        figure.savefig(side, format="png", dpi=130, metadata={"Software": "gingham"})
    return file


def _drawn_by_us(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == "gingham"
    except (OSError, ValueError):
        return False
