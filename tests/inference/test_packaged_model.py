from pathlib import Path

import gingham
from gingham.inference.packaged_model import PACKAGED
from gingham.presets import train_options


def test_the_packaged_model_was_trained_as_make_model_does_and_is_small(packaged):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert " ".join(train_options(packaged.recipe).split()[4:]) in " ".join(makefile.replace("\\\n", "").split())
    assert packaged.data["origin"]["run"] == packaged.recipe.name == "photo"
    assert packaged.data["name"] == "fashion-mnist"
    assert sum(file.stat().st_size for file in PACKAGED.iterdir()) < 1_500_000
    assert len(packaged.test_openings) == 1, "it was evaluated on the test split once, when it was packaged"
    assert 0 < float(packaged.model.threshold) < 1


def test_the_packaged_model_has_the_accuracy_in_its_metadata(packaged, fashion_mnist):
    result = gingham.evaluate(packaged, fashion_mnist.validation)
    assert abs(result.accuracy - packaged.metrics["validation_accuracy"]) < 0.003  # the weights were rounded afterwards
    assert result.accuracy > 0.92
    assert result.sure_error <= packaged.recipe.risk
