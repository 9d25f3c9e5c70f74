import itertools
import re
import shutil
from html.parser import HTMLParser

import pytest

import gingham
from helpers import make_dataset
from own_networks import Flat


class Page(HTMLParser):
    """The tags of an HTML page with their attributes, and its text. Every tag must be closed."""

    VOID_TAGS = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open_tags = [], [], []
        self.feed(text)
        assert self.open_tags == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def find_all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def shared_report(tmp_path_factory):
    """The data of a run, and its folder with the report."""
    folder = tmp_path_factory.mktemp("report")
    quadrants = make_dataset(folder / "quadrants")
    names = ("T-shirt/top", "<script>alert(1)</script>", 'Bag & "strap"', "d")
    data = gingham.load_data(str(quadrants), validation=40, classes=names)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32, validation_images=40)
    run = gingham.fit(recipe, data.train, data.validation, progress=False)
    gingham.save(run, folder / "run")
    gingham.write_report(run, data.train, data.validation, data.test, folder / "run" / "report.html")
    return data, folder / "run"


@pytest.fixture
def report(shared_report, tmp_path):
    data, folder = shared_report
    copy = shutil.copytree(folder, tmp_path / "run")
    return gingham.load(copy), data, copy / "report.html"


def test_the_report_is_one_file_without_external_resources(report):
    _, _, file = report
    text = file.read_text()
    page = Page(text)
    assert file.stat().st_size < 2_000_000
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.find_all("img"))
    assert not page.find_all("script")
    assert not page.find_all("link")
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert all(link["href"].startswith("#") for link in page.find_all("a"))
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert all(link["href"][1:] in ids for link in page.find_all("a"))


def test_the_report_is_accessible_to_screen_readers(report):
    page = Page(report[2].read_text())
    assert page.find_all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.find_all("img"))
    assert [tag for tag, _ in page.tags].count("title") == 1 + len(page.find_all("svg"))
    assert "Loss over the epochs, training" in "".join(page.texts)
    assert all(header.get("scope") in ("row", "col") for header in page.find_all("th"))
    assert len(page.find_all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_report_contains_the_results_and_the_recipe(report):
    run, data, file = report
    text = " ".join(Page(file.read_text()).texts)
    result = gingham.evaluate(run, data.validation)
    assert f"{100 * result.accuracy:.2f}\N{NO-BREAK SPACE}%" in text
    assert f"Macro F1 (the mean F1): {100 * result.macro_f1:.2f}\N{NO-BREAK SPACE}%" in text
    assert data.fingerprint in text
    assert "<script>alert(1)</script>" in text, "class names are escaped"
    assert "There is no test accuracy" in text
    assert "Not used" in text
    assert "one seed (0)" in text
    for name in run.recipe.to_dict():
        assert name in text
    assert run.test_openings == [], "the report does not use the test split"


def test_every_use_of_the_test_split_is_in_the_report(report):
    run, data, file = report
    result = gingham.evaluate(run, data.test)
    gingham.evaluate(run, data.test)
    text = " ".join(Page(gingham.write_report(run, data.train, data.validation, data.test, file).read_text()).texts)
    assert f"{100 * result.accuracy:.2f}\N{NO-BREAK SPACE}%" in text
    assert text.count(run.test_openings[0]["date"]) >= 1
    assert "; test set used 2 times" in text
    assert "The test set was used 2 times" in text


def test_reports_without_validation_or_convolution_and_with_colour_and_many_classes(tmp_path):
    data = gingham.load_data(str(make_dataset(tmp_path / "data")), validation=0)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32)
    flat = gingham.fit(recipe, data.train, progress=False, options=gingham.FitOptions(network=Flat))
    Page(gingham.write_report(flat, data.train, None, data.test, tmp_path / "flat.html").read_text())
    names = tuple(f"class {k}" for k in range(60))
    split = gingham.Split("train", data.train.images.expand(-1, 3, -1, -1), data.train.labels * 15, names, "many", "1")
    run = gingham.fit(gingham.RECIPES["fast-85"].replace(mean=0.5, std=0.5), split, split, progress=False)
    page = Page(gingham.write_report(run, split, split, None, tmp_path / "many.html").read_text())
    assert "30 more classes are not shown" in " ".join(page.texts)
    assert (tmp_path / "many.html").stat().st_size < 2_000_000


def test_the_command_writes_the_report_into_the_run_folder(command, quadrants):
    command("train", "--recipe", "article", "--data", quadrants, "--epochs", 0.1, "--set", "validation_images=40")
    output = command("report", "runs/article-0").stdout
    assert "runs/article-0/report.html" in output
    assert (command.folder / "runs/article-0/report.html").exists()
    assert "there is no folder runs/nothing" in command("report", "runs/nothing", code=2).stderr
