import pytest

import gingham
from helpers import make_dataset


@pytest.fixture(scope="session")
def recipe():
    return gingham.RECIPES["fast-90"].replace(epochs=1.2, batch_size=64, validation_images=60)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = make_dataset(tmp_path_factory.mktemp("data") / "quadrants", train=300)
    return gingham.load_data(str(folder), validation=60)


@pytest.fixture(scope="session")
def trial_pair(recipe, data, tmp_path_factory):
    """Two sets of trials: a recipe, and the same recipe with a learning rate that is too small to learn anything."""
    folder = tmp_path_factory.mktemp("trials")
    good = gingham.trials(recipe, data, range(3), folder / "good", progress=False)
    bad = gingham.trials(recipe.replace(learning_rate=1e-9), data, range(3), folder / "bad", progress=False)
    return good, bad
