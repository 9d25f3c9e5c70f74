import gingham
from gingham.inference.packaged_model import PACKAGED


def test_the_packaged_model_has_the_recipe_photo_and_is_small(packaged):
    assert packaged.recipe == gingham.RECIPES["photo"].replace(seed=0)
    assert packaged.data["name"] == "fashion-mnist"
    assert sum(file.stat().st_size for file in PACKAGED.iterdir()) < 1_000_000
    assert len(packaged.test_openings) == 1, "it was evaluated on the test split once, when it was packaged"
    assert 0 < float(packaged.model.threshold) < 1


def test_the_packaged_model_has_the_accuracy_in_its_metadata(packaged, fashion_mnist):
    result = gingham.evaluate(packaged, fashion_mnist.validation)
    assert abs(result.accuracy - packaged.metrics["validation_accuracy"]) < 0.003  # the weights were rounded afterwards
    assert result.accuracy > 0.92
    assert result.sure_error <= packaged.recipe.risk
