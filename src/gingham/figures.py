"""Figures of matplotlib: written as PNG files, shown in notebooks, and embedded in HTML pages."""

import base64
import contextlib
import functools
import io
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
from matplotlib.colors import LinearSegmentedColormap
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


class Figure(matplotlib.figure.Figure):
    """A figure that notebooks show as a PNG, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        _prepare_texts(self)
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


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


def write_figure(figure: matplotlib.figure.Figure, file: Path) -> Path:
    """Write a figure as a PNG that names Gingham in its metadata, and return its path.

    Raises
        GinghamError: the name does not end in .png, the file exists and is not a figure of Gingham's, or it cannot be
            written.
    """
    if file.suffix.lower() != ".png":
        raise GinghamError(f"{file} does not end in .png; figures are PNG files, so choose a name that ends in .png")
    if os.path.lexists(file) and not _drawn_by_gingham(file):
        raise GinghamError(f"{file} is not a figure written by gingham, so it is kept; move it, or give another name")
    _prepare_texts(figure)
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": "gingham"})
    return file


def _prepare_texts(figure: matplotlib.figure.Figure) -> None:
    """Let no `$` begin a formula, and add system fonts for letters that matplotlib's own font lacks."""
    texts = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
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
    if not file.is_file():  # opening a pipe would wait
        return False
    try:
        with Image.open(file) as image:
            return image.info.get("Software") == "gingham"
    except (OSError, ValueError):
        return False
