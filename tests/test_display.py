"""What notebooks and interactive sessions show of results."""

import base64
import io
import re

import numpy as np
import pytest
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
