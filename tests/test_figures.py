import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from PIL import Image

from gingham import GinghamError, figures
from gingham.figures import BLUE, svg_chart, write_figure
from gingham.plots import draw_confusion, draw_contact_sheet, draw_curve, draw_reliability
from helpers import contact_sheet_arguments, read_pixels


def test_charts_in_svg_take_their_colours_from_the_page_and_escape_texts(small_run):
    run, _ = small_run
    curve = svg_chart("a < b", draw_curve, run.history, "loss")
    assert "<title>a &lt; b</title>" in curve
    assert "stroke: var(--blue)" in curve
    assert ">loss (nats)</text>" in curve
    rows = [
        {"low": 0.6, "high": 0.8, "count": 4, "confidence": 0.7, "accuracy": 0.75},
        {"low": 0.8, "high": 1.0, "count": 40, "confidence": 0.9, "accuracy": 0.95},
    ]
    reliability = svg_chart("bars", draw_reliability, rows, BLUE)
    assert reliability.count("opacity: 0.3") == 1, "a bar of few images is pale"
    assert reliability.count("opacity: 0.85") == 1
    for chart in (curve, reliability):
        assert "#" not in chart.replace("url(#", "").replace('href="#', ""), "a colour that has no dark variant"


def test_only_gingham_figures_are_overwritten(small_run, tmp_path):
    _, data = small_run
    path = tmp_path / "holiday.png"
    Image.new("RGB", (5, 5), "red").save(path)
    before = path.read_bytes()
    with pytest.raises(GinghamError, match="is not a figure written by gingham, so it is kept"):
        write_figure(draw_contact_sheet(*contact_sheet_arguments(data)), path)
    assert path.read_bytes() == before
    with pytest.raises(GinghamError, match=r"does not end in \.png"):
        write_figure(draw_contact_sheet(*contact_sheet_arguments(data)), tmp_path / "sheet.jpg")
    path.unlink()
    for _ in range(2):
        write_figure(
            draw_contact_sheet(*contact_sheet_arguments(data), per_class=1), path
        )  # a figure drawn by Gingham is replaced


@pytest.fixture
def only_own_fonts(monkeypatch):
    """Simulate a system that has only the fonts that come with matplotlib."""
    own = [font for font in fontManager.ttflist if Path(mpl.get_data_path()) in Path(font.fname).parents]
    monkeypatch.setattr(fontManager, "ttflist", own)
    monkeypatch.setattr(figures, "findSystemFonts", list)
    figures._find_fonts.cache_clear()
    yield
    figures._find_fonts.cache_clear()


def write_font(file, letters, name):
    """Write a font in which each of these letters is a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(letter): "square" for letter in letters})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    font.setupHorizontalHeader(ascent=1000, descent=-200)
    font.setupNameTable({"familyName": name, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=1000, usWinAscent=1000, usWinDescent=200)
    font.setupPost()
    font.save(file)


def draw_names(classes, file):
    """Draw a confusion matrix and return the pixels to the left of it, which show the names of the classes."""
    pixels = read_pixels(
        write_figure(draw_confusion(np.eye(len(classes), dtype=int).tolist(), classes, "all right"), file)
    )
    return pixels[:, : pixels.shape[1] // 4]


# Run in a separate process, because importing gingham.figures turns off matplotlib's warnings of missing letters.
NAMES_WITHOUT_FONTS = """
import sys
from pathlib import Path
import matplotlib as mpl
from matplotlib.font_manager import fontManager
from gingham import figures, plots
own = Path(mpl.get_data_path())
fontManager.ttflist = [font for font in fontManager.ttflist if own in Path(font.fname).parents]
figures.findSystemFonts = list
figures.write_figure(plots.draw_confusion([[1, 0], [0, 1]], ["类别一", "犬"], "all right"), Path(sys.argv[1]))
"""


def test_letters_that_no_font_has_are_no_warning(tmp_path):
    command = [sys.executable, "-W", "error:Glyph", "-c", NAMES_WITHOUT_FONTS, tmp_path / "names.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "names.png").exists()
    assert done.stderr.startswith("no font on this system has")
    assert done.stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Glyph")  # as outside of pytest
def test_letters_that_no_font_has_are_reported_once(only_own_fonts, tmp_path, capfd):
    for number in range(2):
        draw_names(["类别一", "犬", "dog"], tmp_path / f"{number}.png")
    (sentence,) = capfd.readouterr().err.splitlines()
    assert sentence.startswith("no font on this system has 一, 别, 犬, 类, so figures show boxes instead; install one")
    draw_names(["été", "Собака", "dog"], tmp_path / "other.png")
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:Glyph")  # as outside of pytest
def test_letters_are_drawn_in_a_font_of_the_system_that_has_them(only_own_fonts, monkeypatch, tmp_path, capfd):
    boxes = draw_names(["类别一", "犬", "dog"], tmp_path / "boxes.png")
    capfd.readouterr()
    figures._find_fonts.cache_clear()
    write_font(tmp_path / "squares.ttf", "类别一犬", "Squares")
    monkeypatch.setattr(figures, "findSystemFonts", lambda: [str(tmp_path / "squares.ttf")])  # installed since
    squares = draw_names(["类别一", "犬", "dog"], tmp_path / "squares.png")
    assert capfd.readouterr() == ("", "")
    assert (squares < 100).sum() > 1.2 * (boxes < 100).sum(), "filled squares are darker than boxes"
