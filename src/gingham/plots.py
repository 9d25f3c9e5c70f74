"""Draw figures with matplotlib, as PNG files and as SVG charts for an HTML page."""

import base64
import contextlib
import functools
import io
import logging
import re
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts, fontManager, get_font
from matplotlib.text import Text
from PIL import Image

from gingham.errors import GinghamError
from gingham.io import atomic_write

INK, BLUE, RUST, GREY, PAPER = "#1d2b33", "#2f6f8f", "#c2552d", "#b0b0b0", "#ffffff"
# Name prefixes of the fonts to prefer for letters that matplotlib's own font lacks.
FONTS = ("Noto Sans", "Source Han Sans", "WenQuanYi", "PingFang", "Hiragino Sans", "Microsoft YaHei", "Malgun Gothic")
_SETTINGS_LOCK = threading.Lock()  # matplotlib's settings are shared by all threads
BLUES = LinearSegmentedColormap.from_list("gingham", [PAPER, "#9cc3d5", BLUE, "#16384a"])

# `_find_fonts` reports missing letters, and missing bold faces do not matter. Set once, as all threads share these.
warnings.filterwarnings("ignore", "Glyph ")
logging.getLogger("matplotlib.font_manager").addHandler(logging.NullHandler())


def draw_contact_sheet(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], name: str, file: Path, per_class: int = 12
) -> Path:
    """Write a PNG with the first `per_class` images of each class, in dataset order, and return its path.

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
        text = label if len(label) <= 16 else f"{label[:8]}…{label[-7:]}"  # more would be cut off
        first.text(-0.15, 0.5, text, transform=first.transAxes, ha="right", va="center", fontsize=11, color=INK)
        for axes, index in zip(grid[row], indices, strict=False):
            draw_image(axes, images[index])
        for axes in grid[row, len(indices) :]:
            axes.axis("off")
    rest = f", the first {len(shown)} of {len(classes)} classes" if len(shown) < len(classes) else ""
    title = f"{name}: training images by class{rest}{_grey_note(images)}"
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), title, fontsize=12, color=INK, va="center")
    return write_figure(figure, file)


def draw_batch(images: torch.Tensor, names: Sequence[str], file: Path) -> Path:
    """Write a PNG of the first six images of a batch, uint8 (N, C, H, W), with class names, and return its path."""
    figure = Figure(figsize=(7, 5), facecolor=PAPER, layout="constrained")
    for number, (image, name) in enumerate(zip(images[:6], names, strict=False), 1):
        axes = figure.add_subplot(2, 3, number)
        draw_image(axes, image)
        axes.set_title(name, fontsize=12, color=INK)
    title = f"the first {min(6, len(images))} of a batch of {len(images)}{_grey_note(images)}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return write_figure(figure, file)


def draw_curves(history: Sequence[Mapping[str, Any]], title: str, file: Path, *, hard_examples: bool = False) -> Path:
    """Write a PNG of loss and accuracy over the epochs, and return its path.

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
    return write_figure(figure, file)


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


def svg_chart(description: str, draw: Callable[..., None], *arguments: Any) -> str:
    """Return the chart that `draw(axes, *arguments)` draws, as SVG for an HTML page.

    Colours are CSS variables, which the page defines for its light and dark schemes. `description` is shown on hovering
    and read by screen readers.
    """
    figure = Figure(figsize=(5, 3.1), layout="constrained")
    draw(figure.add_subplot(), *arguments)
    buffer = io.StringIO()
    with _SETTINGS_LOCK, contextlib.ExitStack() as stack:  # rc_context would also undo changes by other threads
        stack.callback(mpl.rcParams.__setitem__, "svg.fonttype", mpl.rcParams["svg.fonttype"])
        mpl.rcParams["svg.fonttype"] = "none"
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = re.sub(r' id="[^"]*_\d+"', "", svg[svg.index("<g ") :])  # the charts of a page would have the same ids
    for color, variable in ((INK, "ink"), (BLUE, "blue"), (RUST, "rust"), ("#000000", "quiet"), (GREY, "quiet")):
        svg = svg.replace(color, f"var(--{variable})")
    view_box = "0 0 {:g} {:g}".format(*72 * figure.get_size_inches())
    return f'<svg class="chart" viewBox="{view_box}" role="img"><title>{escape(description)}</title>{svg}'


def png_url(image: Image.Image, *, optimize: bool = False) -> str:
    """Return an image as a data URL of a PNG, for an HTML page; `optimize` makes it smaller and takes longer."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=optimize)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw_image_groups(sections: Sequence[tuple[str, Sequence[Sequence[tuple[torch.Tensor, str]]]]], file: Path) -> Path:
    """Write a PNG of groups of images under titles, the images of a group side by side, and return its path.

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
    return write_figure(figure, file)


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, file: Path) -> Path:
    """Write a PNG of a confusion matrix and return its path. Rows are true classes, in percent of the row."""
    counts = np.array(matrix, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(classes) <= 30
    side = max(4.5, 2.2 + (0.58 if numbered else 0.2) * len(classes))
    figure = Figure(figsize=(side + 0.6, side), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=BLUES, vmin=0, vmax=100)
    ticks = range(len(classes))
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
    return write_figure(figure, file)


def draw_image(axes: Any, image: torch.Tensor) -> None:
    """Draw an image, uint8 (C, H, W), on matplotlib axes, which are hidden. Grey images are shown inverted."""
    axes.axis("off")
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray_r", vmin=0, vmax=255)


def _grey_note(images: torch.Tensor) -> str:
    return " (bright pixels shown dark, as ink on paper)" if images.shape[1] != 3 else ""


def write_figure(figure: Figure, file: Path) -> Path:
    """Write a figure as a PNG that names Gingham in its metadata, and return its path.

    Raises
        GinghamError: the name does not end in .png, the file exists and is not a figure of Gingham's, or it cannot be
            written.
    """
    if file.suffix.lower() != ".png":
        raise GinghamError(f"{file} does not end in .png; figures are PNG files, so choose a name that ends in .png")
    if file.exists() and not _drawn_by_gingham(file):
        raise GinghamError(f"{file} is not a figure written by gingham, so it is kept; move it, or give another name")
    _set_fonts(figure)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": "gingham"})
    return file


def _set_fonts(figure: Figure) -> None:
    """Add system fonts to a figure's texts, for letters that matplotlib's own font lacks."""
    texts = figure.findobj(Text)
    letters = {letter for text in texts for letter in text.get_text() if not letter.isascii() and letter.isprintable()}
    for text in texts if letters else ():
        text.set_fontfamily([*text.get_fontfamily(), *_find_fonts(frozenset(letters))])


@functools.cache
def _find_fonts(letters: frozenset[str]) -> list[str]:
    """Return the names of fonts that together have these letters. Letters that no font has are printed once."""
    for file in {*findSystemFonts()} - {font.fname for font in fontManager.ttflist}:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            fontManager.addfont(file)  # installed after matplotlib created its list
    # Last Resort fonts have only boxes, and colour emoji cannot be drawn.
    fonts = [font for font in fontManager.ttflist if not re.search("Last Resort|Emoji", font.name)]
    names, missing = list[str](), letters
    for font in sorted(fonts, key=lambda font: (font.name != "DejaVu Sans", not font.name.startswith(FONTS))):
        with contextlib.suppress(OSError, RuntimeError):  # the font was removed or is damaged
            if covered := missing and missing & {*map(chr, get_font(font.fname).get_charmap())}:
                names.append(font.name)
                missing -= covered
    if missing:
        lacking, remedy = ", ".join(sorted(missing)[:9]), "install one that has, such as Noto Sans or Noto Sans CJK"
        print(f"no font on this system has {lacking}, so figures show boxes instead; {remedy}", file=sys.stderr)
    return names


def _drawn_by_gingham(file: Path) -> bool:
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == "gingham"
    except (OSError, ValueError):
        return False
