"""Outliers: properties that hold for all draws, and what a training makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gingham
from gingham.data.augment_photos import num_outliers, num_simulated, simulate_photos
from gingham.data.layers import RandomDraws
from gingham.data.outliers import draw_outliers
from gingham.data.sampler import Sampler
from gingham.training.batches import NO_CLASS, BatchLoader

RECIPE = gingham.RECIPES["photo"].replace(photo_share=0.5, outlier_share=0.25)
CLASSES = ("T-shirt/top", "Trouser", "Sandal", "Ankle boot", "Bag")


def objects(count=40, size=(28, 28)):
    """Return bright rectangles on black of several sizes, uint8 (N, 1, H, W), and their labels."""
    images = torch.zeros(count, 1, *size, dtype=torch.uint8)
    for k, image in enumerate(images):
        margin = 3 + k % 4
        image[:, margin:-margin, margin + 1 : -margin - 1] = 100 + k % 150
    return images, torch.arange(count) % len(CLASSES)


def draw(count=40, size=(28, 28), seed=0):
    images, labels = objects(count, size)
    layers = torch.cat([images / 255, (images > 0).float()], dim=1)
    draws = RandomDraws(count, torch.Generator().manual_seed(seed), images.device)
    return draw_outliers(draws, layers, labels), layers


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 12), height=st.integers(12, 40), width=st.integers(12, 40), seed=st.integers(0, 1000))
def test_outliers_are_layers_from_0_to_1_of_the_shape_of_the_images(count, height, width, seed):
    outliers, layers = draw(count, (height, width), seed)
    assert outliers.shape == layers.shape == (count, 2, height, width)
    assert outliers.dtype == torch.float32
    assert outliers.isfinite().all()
    assert ((outliers >= 0) & (outliers <= 1)).all()
    assert (outliers[:, 0][outliers[:, 1] == 0] == 0).all(), "no brightness where nothing is"


def test_outliers_depend_only_on_the_draws():
    first, second, other = (draw(seed=seed)[0] for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_outliers_are_of_many_kinds_and_none_is_an_image_of_the_batch():
    outliers, layers = draw(200)
    assert len(torch.unique(outliers.flatten(1), dim=0)) == 200
    shares = (outliers[:, 1] > 0.5).flatten(1).double().mean(dim=1)
    assert (shares > 0).double().mean() > 0.95, "hardly any is empty"
    assert (shares > 0.7).any(), "some fill most of the image"
    assert (shares < 0.3).any(), "some are small"
    assert torch.cdist(outliers.flatten(1), layers.flatten(1)).min() > 1


def test_only_the_outlier_share_of_a_batch_shows_no_class():
    images, labels = objects(40)
    photos = simulate_photos(images, labels, CLASSES, RECIPE, step=4)
    assert photos.shape == images.shape
    assert photos.dtype == torch.uint8
    assert (num_outliers(40, RECIPE), num_simulated(40, RECIPE)) == (10, 20)
    assert torch.equal(photos[20:], images[20:]), "neither outliers nor photos"
    for recipe, step in ((RECIPE, 4), (RECIPE.replace(learning_rate=0.5), 4)):
        assert torch.equal(photos, simulate_photos(images, labels, CLASSES, recipe, step))
    for recipe, step in ((RECIPE, 5), (RECIPE.replace(seed=1), 4)):
        changed = simulate_photos(images, labels, CLASSES, recipe, step)
        assert (changed[:10] != photos[:10]).flatten(1).any(dim=1).all()
    plain = simulate_photos(images, labels, CLASSES, RECIPE.replace(outlier_share=0), step=4)
    assert (plain[:10] != photos[:10]).flatten(1).any(dim=1).all()


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 300),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_there_are_never_more_outliers_than_simulated_photos(count, shares):
    recipe = gingham.Recipe(outlier_share=shares[0], photo_share=shares[1])
    assert num_outliers(count, recipe) <= num_simulated(count, recipe) <= count


@pytest.fixture
def train():
    images, labels = objects(60)
    return gingham.Split("train", images, labels, CLASSES, "x", "f")


def load_batches(train, recipe, rank=0, world_size=1):
    sampler = Sampler(recipe, len(train))
    loader = BatchLoader(train, recipe, sampler, torch.device("cpu"), rank, world_size)
    return list(loader.batches(0, 3))


def test_batches_have_no_label_for_outliers_and_leave_those_of_the_split(train):
    before = train.labels.clone()
    for batch in load_batches(train, RECIPE.replace(batch_size=20)):
        assert batch.labels[:5].tolist() == [NO_CLASS] * 5
        assert torch.equal(batch.labels[5:], before[batch.indices[5:]])
    assert torch.equal(train.labels, before)
    for batch in load_batches(train, RECIPE.replace(batch_size=20, outlier_share=0)):
        assert torch.equal(batch.labels, before[batch.indices])


@pytest.mark.parametrize("world_size", [2, 3])
def test_outliers_do_not_depend_on_the_number_of_processes(train, world_size):
    recipe = RECIPE.replace(batch_size=20)
    whole = load_batches(train, recipe)
    for rank in range(world_size):
        for batch, shard in zip(whole, load_batches(train, recipe, rank, world_size), strict=True):
            assert torch.equal(shard.images, batch.images[rank::world_size])
            assert torch.equal(shard.labels, batch.labels[rank::world_size])


@pytest.mark.parametrize(
    "changes",
    [
        {"outlier_share": 0.3, "photo_share": 0.2},
        {"outlier_share": 0.1},
        {"outlier_share": 0.1, "photo_share": 0.2, "hard_share": 0.5},
    ],
)
def test_outliers_that_are_no_photos_or_have_a_rank_are_a_recipe_error(changes):
    with pytest.raises(gingham.RecipeError, match=r"set outlier_share to at most photo_share, and hard_share=1"):
        gingham.Recipe(**changes)


def test_training_on_outliers_makes_the_model_less_sure_of_them(train):
    """A network trained on rectangles of two sizes is sure of anything, unless it has seen outliers."""
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[::2, :, 4:24, 4:24], images[1::2, :, 10:18, 4:24] = 200, 200
    split = gingham.Split("train", images, torch.arange(200) % 2, ("square", "bar"), "x", "f")
    recipe = gingham.RECIPES["fast-85"].replace(epochs=8, batch_size=40, hard_share=1, photo_share=0.5)
    others = simulate_photos(images, split.labels, split.classes, recipe.replace(photo_share=1, outlier_share=1), 999)
    confidence = []
    for share in (0, 0.4):
        model = gingham.fit(recipe.replace(outlier_share=share), split, progress=False).model
        assert (model.predict(images).labels == split.labels).double().mean() > 0.95
        confidence.append(float(model.predict(others).probabilities.amax(dim=1).mean()))
    assert confidence[1] < confidence[0] - 0.1
