import itertools
import re
from html.parser import HTMLParser

import pytest

import gingham
from gingham.reports.svg import Line, line_chart, reliability_chart, ticks
from helpers import make_dataset
from own_networks import Flat


class Page(HTMLParser):
    """The tags of a page with their attributes, the text of it, and whether every tag is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def written(quadrants, tmp_path):
    names = ("T-shirt/top", "<script>alert(1)</script>", 'Bag & "strap"', "d")
    data = gingham.load_data(str(quadrants), validation=40, classes=names)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32, validation_images=40)
    run = gingham.fit(recipe, data.train, data.validation, progress=False)
    gingham.save(run, tmp_path / "run")
    file = gingham.write_report(run, data.train, data.validation, data.test, tmp_path / "run" / "report.html")
    return run, data, file


def test_the_report_is_one_file_that_asks_for_nothing(written):
    _, _, file = written
    text = file.read_text()
    page = Page(text)
    assert file.stat().st_size < 2_000_000
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"https?://|@import|url\(", text)
    assert all(link["href"].startswith("#") for link in page.all("a"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert all(link["href"][1:] in ids for link in page.all("a"))


def test_the_report_can_be_heard(written):
    page = Page(written[2].read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    assert all(chart.get("aria-label") for chart in page.all("svg"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_report_says_what_was_measured(written):
    run, data, file = written
    words = " ".join(Page(file.read_text()).words)
    measured = gingham.evaluate(run, data.validation)
    assert f"{100 * measured.accuracy:.2f} %" in words
    assert data.fingerprint in words
    assert "<script>alert(1)</script>" in words, "a class name is text, whatever it holds"
    assert "The test split was not measured" in words
    assert "never opened" in words
    assert "One seed (0)" in words
    for name in run.recipe.to_dict():
        assert name in words
    assert run.test_openings == [], "the report opens nothing"


def test_every_opening_is_in_the_report(written):
    run, data, file = written
    tested = gingham.evaluate(run, data.test)
    gingham.evaluate(run, data.test)
    words = " ".join(Page(gingham.write_report(run, data.train, data.validation, data.test, file).read_text()).words)
    assert f"{100 * tested.accuracy:.2f} %" in words
    assert words.count(run.test_openings[0]["date"]) >= 1
    assert "opened 2 times" in words
    assert "The test split was opened 2 times" in words


def test_runs_of_other_kinds_have_a_report_too(tmp_path):
    """Nothing held out, no convolution, colour, many classes."""
    data = gingham.load_data(str(make_dataset(tmp_path / "data")), validation=0)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32)
    flat = gingham.fit(recipe, data.train, network=Flat, progress=False)
    Page(gingham.write_report(flat, data.train, None, data.test, tmp_path / "flat.html").read_text())
    many = tuple(f"class {k}" for k in range(60))
    split = gingham.Split("train", data.train.images.expand(-1, 3, -1, -1), data.train.labels * 15, many, "many", "1")
    run = gingham.fit(gingham.RECIPES["fast-85"].replace(mean=0.5, std=0.5), split, split, progress=False)
    page = Page(gingham.write_report(run, split, split, None, tmp_path / "many.html").read_text())
    assert "30 more classes are not shown" in " ".join(page.words)
    assert (tmp_path / "many.html").stat().st_size < 2_000_000


def test_report_and_its_command(command, quadrants):
    command("train", "--recipe", "article", "--data", quadrants, "--epochs", 1, "--set", "validation_images=40")
    shown = command("report", "runs/article-0").stdout
    assert "runs/article-0/report.html" in shown
    assert (command.folder / "runs/article-0/report.html").exists()
    assert "there is no folder runs/nothing" in command("report", "runs/nothing", code=2).stderr


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.13, 2.1), (80, 93.6), (1e-4, 3e-4), (5, 5)])
def test_ticks_are_round_and_few(low, high):
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)


def test_charts_keep_within_their_frame():
    chart = line_chart([Line("a", "taught", [(0, 1), (5, 3)]), Line("b", "held-out", [(5, 2)], dots=True)], "x", "y <", "said")
    xs = [float(x) for x in re.findall(r'c?x[12]?="([\d.]+)"', chart)]
    assert min(xs) >= 0
    assert max(xs) <= 420
    assert "y &lt;" in chart
    bars = reliability_chart([{"low": 0.8, "high": 1.0, "count": 4, "confidence": 0.9, "accuracy": 0.75}], "after", "said")
    assert "4 pictures, 90.0% sure, 75.0% right" in bars
