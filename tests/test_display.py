"""What notebooks and interactive sessions show of results."""

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham import GinghamError
from gingham.figures import Figure


def pixels_of(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"))


@pytest.fixture
def results(small_run, tmp_path):
    run, data = small_run
    folder = tmp_path
    recipe = run.recipe.replace(epochs=0.2)
    trials = gingham.trials(recipe, data, range(2), folder / "a", progress=False)
    gingham.trials(recipe.replace(learning_rate=0.02), data, range(2), folder / "b", progress=False)
    image = folder / "photo.png"
    Image.fromarray(data.train.images[0, 0].numpy()).save(image)
    return {
        "data": data,
        "run": run,
        "evaluation": gingham.evaluate(run, data.validation),
        "summary": gingham.summarize(run.model.network, run.model.input_shape, "article"),
        "trials": trials,
        "comparison": gingham.compare(folder / "a", folder / "b", lambda _: data.validation),
        "prediction": gingham.predict(run, [image])[0],
    }


NAMES = ("data", "run", "evaluation", "summary", "trials", "comparison", "prediction")


@pytest.mark.parametrize("name", NAMES)
def test_a_result_is_shown_as_its_text_and_a_figure(results, name):
    result = results[name]
    html = result._repr_html_()
    (text,) = re.findall(r"<pre [^>]+>(.*?)</pre>", html, re.DOTALL)
    assert repr(result) == str(result)
    assert text.count("\n") == str(result).count("\n")
    assert "tensor(" not in text
    assert len(text) < 6000
    (png,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert pixels_of(base64.b64decode(png)).std() > 5, "the figure is not blank"


def test_figures_of_an_evaluation_are_chosen_by_name(results):
    result = results["evaluation"]
    figures = [pixels_of(result.plot(what)._repr_png_()) for what in ("confusion", "reliability", "mistakes")]
    assert len({figure.tobytes() for figure in figures}) == 3
    with pytest.raises(GinghamError, match="plot got 'roc'; allowed: confusion, reliability, mistakes"):
        result.plot("roc")


def test_mistakes_are_the_wrong_predictions_of_highest_confidence(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = gingham.fit(gingham.RECIPES["article"].replace(epochs=0.1, batch_size=8), data.train, data.validation)
    result = gingham.evaluate(run, data.validation)
    probabilities = run.model.predict(data.validation.images).probabilities
    wrong = [
        (float(row.max()), k)
        for k, (row, label) in enumerate(zip(probabilities, data.validation.labels, strict=True))
        if int(row.argmax()) != label
    ]
    assert len(wrong) > 1
    best = sorted(wrong, reverse=True)[:24]
    assert [mistake.confidence for mistake in result.mistakes] == pytest.approx([value for value, _ in best])
    for mistake in result.mistakes:
        assert (mistake.image == data.validation.images[mistake.index]).all()
        assert mistake.label == data.classes[data.validation.labels[mistake.index]]
        assert mistake.predicted == data.classes[int(probabilities[mistake.index].argmax())] != mistake.label
    assert "mistakes" not in result.to_dict()


def test_predictions_are_a_table_and_a_figure_of_the_images(small_run):
    run, data = small_run
    predictions = run.model.predict(data.train.images[:30])
    lines = repr(predictions).splitlines()
    assert [line.split()[1] for line in lines[2:22]] == predictions.names[:20]
    assert lines[22:] == ["... 10 more"]
    assert ">image class" in predictions._repr_html_()
    assert isinstance(predictions.plot(data.train.images[:30]), Figure)


def test_a_file_that_cannot_be_read_is_shown_as_its_error(small_run, tmp_path):
    (prediction,) = gingham.predict(small_run[0], [tmp_path / "no.jpg"])
    assert prediction._repr_html_().endswith(f">{prediction}</pre>")
    assert "there is no file" in str(prediction)
    with pytest.raises(GinghamError, match="there is no prediction to draw"):
        prediction.plot()


def test_texts_of_the_user_are_escaped(results):
    prediction = gingham.ImagePrediction("<script>.png", error="it is <b>bad</b>")
    assert prediction._repr_html_().endswith(">&lt;script&gt;.png: it is &lt;b&gt;bad&lt;/b&gt;</pre>")


def test_results_of_the_same_evaluation_are_equal(results):
    run, data = results["run"], results["data"]
    first, second = (gingham.evaluate(run, data.validation) for _ in range(2))
    assert first == second
    assert "tensor(" not in repr(first.mistakes)
    assert repr(first.confusion) == str(first.confusion)


def test_a_run_without_a_history_is_shown_as_text(results):
    run = gingham.load_packaged()
    assert run._repr_html_().count("<") == 2
    with pytest.raises(GinghamError, match="the run has no history of its epochs to draw"):
        run.plot()


def test_class_names_are_neither_formulas_nor_markup(tmp_path):
    names = ["cost$\\frac$", "a$b$", "[/x]", "[red]", ":dog:", "x" * 120, "a<", "\\[b]"]
    folder = tmp_path / "odd.npz"
    random = np.random.default_rng(0)
    labels = np.arange(80) % 8
    images = random.integers(0, 255, (80, 8, 8), dtype=np.uint8)
    np.savez(folder, train_images=images, train_labels=labels, test_images=images, test_labels=labels, classes=names)
    data = gingham.load_data(str(folder), validation=16)
    run = gingham.fit(gingham.RECIPES["fast-85"].replace(epochs=0.5), data.train, data.validation, progress=False)
    result = gingham.evaluate(run, data.validation)
    predictions = run.model.predict(data.train.images[:20])
    assert set(data.classes) == set(names)
    for text, shown in ((str(data), names), (str(result), names), (repr(predictions), predictions.names)):
        assert all(name in text for name in shown)
    for shown in (data, run, result):
        shown._repr_html_()
    for what in ("confusion", "reliability", "mistakes"):
        assert pixels_of(result.plot(what)._repr_png_()).std() > 5


def test_predictions_of_many_images_are_shown_at_once(small_run):
    run, _ = small_run
    predictions = run.model.predict(torch.zeros(30_000, 1, 28, 28, dtype=torch.uint8))
    assert repr(predictions).endswith("... 29,980 more")
    with pytest.raises(GinghamError, match="plot got 3 images for 30000 predictions"):
        predictions.plot(np.zeros((3, 1, 28, 28), np.uint8))


def test_an_evaluation_without_mistakes_has_none_to_draw(results):
    result = dataclasses.replace(results["evaluation"], mistakes=())
    with pytest.raises(GinghamError, match="there is no mistake to draw: all 40 validation images are right"):
        result.plot("mistakes")


def test_a_dataset_of_many_classes_is_cut_short(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    classes = tuple(f"class {k}" for k in range(3000))
    splits = [dataclasses.replace(split, classes=classes) for split in (data.train, data.validation, data.test)]
    shown = dataclasses.replace(data, train=splits[0], validation=splits[1], test=splits[2], classes=classes)
    assert "... 2,900 more classes" in str(shown)
