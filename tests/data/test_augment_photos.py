"""Simulated photos: properties that hold for all draws, and the geometry of each change."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gingham
from gingham.data import augment_photos
from gingham.data.augment_photos import RandomDraws, simulate_photos

ALL_PHOTOS = gingham.RECIPES["photo"].replace(photo_share=1)
CLASSES = ("T-shirt/top", "Trouser", "Sandal", "Ankle boot", "Bag")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def objects(count=20, side=28):
    """Return bright rectangles on black, with a darker stripe, and their labels."""
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    images[:, :, side // 5 : -side // 5, side // 4 : -side // 4] = 180
    images[:, :, side // 2 : side // 2 + 2, side // 4 : -side // 4] = 90
    return images, torch.arange(count) % len(CLASSES)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 12), side=st.integers(12, 40), seed=st.integers(0, 1000))
def test_simulated_photos_keep_shape_dtype_and_input(count, side, seed):
    images, labels = objects(count, side)
    original = images.clone()
    photos = simulate_photos(images, labels, CLASSES, ALL_PHOTOS.replace(seed=seed), step=0)
    assert photos.shape == images.shape
    assert photos.dtype == torch.uint8
    assert torch.equal(images, original), "the input is not changed"
    if count:
        assert (photos.flatten(1).amax(dim=1) > 40).all(), "no image is black"


def test_black_images_do_not_raise():
    images, labels = torch.zeros(30, 1, 28, 28, dtype=torch.uint8), torch.zeros(30, dtype=torch.long)
    photos = simulate_photos(images, labels, CLASSES, ALL_PHOTOS, step=0)
    assert photos.dtype == torch.uint8


def test_only_the_photo_share_of_a_batch_is_changed():
    images, labels = objects(20)
    recipe = gingham.RECIPES["photo"].replace(photo_share=0.3)
    photos = simulate_photos(images, labels, CLASSES, recipe, step=4)
    changed = (photos != images).flatten(1).any(dim=1)
    assert changed.tolist() == [True] * 6 + [False] * 14
    assert torch.equal(photos, simulate_photos(images, labels, CLASSES, recipe, step=4))
    assert not torch.equal(photos, simulate_photos(images, labels, CLASSES, recipe, step=5))
    assert not torch.equal(photos, simulate_photos(images, labels, CLASSES, recipe.replace(seed=1), step=4))


def test_other_classes_stay_single_and_upright():
    """A tall bar stays one bar: no pair, no quarter turn, no head above it."""
    images = torch.zeros(60, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 2:26, 11:17] = 200
    layers = torch.cat([images.float() / 255, augment_photos._coverage(images.float() / 255)], dim=1)
    labels = torch.zeros(60, dtype=torch.long)
    no_shoes = augment_photos._is_any_class(labels, ("bar", "knob"), augment_photos.SHOES)
    posed = augment_photos._pose(RandomDraws(60, generator(), images.device), layers, no_shoes, no_shoes)
    covered = posed[:, 1] > 0.5
    tall, wide = covered.any(dim=2).sum(dim=1), covered.any(dim=1).sum(dim=1)
    assert (tall > wide).double().mean() > 0.9


def test_pair_of_shoes_is_squarer_than_one_shoe():
    images = torch.zeros(200, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 12:18, 2:26] = 200
    layers = torch.cat([images.float() / 255, augment_photos._coverage(images.float() / 255)], dim=1)
    shoes, no_shoes = torch.ones(200, dtype=torch.bool), torch.zeros(200, dtype=torch.bool)
    pairs = augment_photos._pose(RandomDraws(200, generator(), images.device), layers, shoes, no_shoes)
    singles = augment_photos._pose(RandomDraws(200, generator(), images.device), layers, no_shoes, no_shoes)

    def squareness(layers):
        covered = layers[:, 1] > 0.5
        tall, wide = covered.any(dim=2).sum(dim=1).double(), covered.any(dim=1).sum(dim=1).double()
        return float((torch.minimum(tall, wide) / torch.maximum(tall, wide)).mean())

    assert squareness(pairs) > 1.3 * squareness(singles)


def test_shoe_from_above_is_symmetric():
    images = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 14:20, 3:25] = 220
    images[:, :, 8:14, 14:25] = 120  # higher at the heel
    layers = torch.cat([images.float() / 255, augment_photos._coverage(images.float() / 255)], dim=1)
    above = augment_photos._view_from_above(RandomDraws(40, generator(), images.device), layers)
    assert torch.allclose(above, above.flip(2), atol=1e-5)
    assert (above[:, 1].flatten(1).sum(dim=1) > 0).all()


def covered_share(photo):
    """Return the share of the pixels in an object's bounding box, (H, W), that are not black."""
    bright = photo > 20
    rows, columns = bright.any(dim=1).nonzero().flatten(), bright.any(dim=0).nonzero().flatten()
    return float(bright[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].double().mean())


def test_the_soles_of_sandals_are_visible_between_their_straps():
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    image[:, 6:22] = 200
    image[:, 9:19, 3:25] = 0  # a strap above a sole
    images, without_gap = image.repeat(400, 1, 1, 1), {}
    for label in ("Bag", "Sandal"):
        labels = torch.full((400,), CLASSES.index(label))
        photos = simulate_photos(images, labels, CLASSES, ALL_PHOTOS.replace(outlier_share=0), step=0)
        without_gap[label] = sum(covered_share(photo) > 0.7 for photo in photos[:, 0])
    assert without_gap["Bag"] < 40
    assert without_gap["Sandal"] > 80


def test_most_photos_of_plain_cloth_have_the_contrast_of_prepared_ones():
    images = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 4:24] = 180
    labels = torch.full((400,), CLASSES.index("Bag"))
    photos = simulate_photos(images, labels, CLASSES, ALL_PHOTOS.replace(outlier_share=0), step=0)
    levels = torch.tensor([0.05, 0.95])
    ranges = [torch.quantile(photo[photo > 20].float(), levels).diff() for photo in photos]
    assert (torch.cat(ranges) > 100).float().mean() > 0.6


def test_images_are_cropped_to_the_object():
    """Most objects then reach both ends of the longer side, wherever and however small they were."""
    random = np.random.default_rng(0)
    images = torch.zeros(200, 1, 28, 28)
    for image in images:
        height, width = random.integers(5, 14, 2)
        top, left = random.integers(0, 28 - height), random.integers(0, 28 - width)
        image[0, top : top + height, left : left + width] = 1
    layers = torch.cat([images, images], dim=1)
    covered = augment_photos._crop_to_object(RandomDraws(200, generator(), images.device), layers)[:, 1] > 0.3
    longer = torch.maximum(covered.any(dim=1).sum(dim=1), covered.any(dim=2).sum(dim=1))
    assert (longer >= 24).double().mean() > 0.95


def test_colour_images_are_an_error_that_names_another_recipe():
    train = gingham.Split(
        "train", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"), "made", ""
    )
    with pytest.raises(
        gingham.GinghamError,
        match=r"photo_share is 0.5, but the images have 3 channels; .* set photo_share=0 and outlier_share=0, or "
        "choose another recipe, such as fast",
    ):
        gingham.fit(gingham.RECIPES["photo"], train, progress=False)


def test_resumed_training_on_simulated_photos_gives_the_same_weights(tmp_path, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["photo"].replace(network="tiny", epochs=2, batch_size=32, checkpoint_seconds=0)
    whole = gingham.fit(recipe, data.train, data.validation, progress=False)

    def stop(model, epoch):
        raise KeyboardInterrupt

    options = {"folder": tmp_path / "run", "resume": True, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(recipe, data.train, data.validation, options=gingham.FitOptions(on_epoch=stop), **options)
    resumed = gingham.fit(recipe, data.train, data.validation, **options)
    assert resumed.metrics["resumed_from_step"]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize("shape", [(28, 20), (20, 28)])
def test_images_that_are_not_square_are_cropped_to_the_object(shape):
    """In a crop that keeps proportions, an object in any corner becomes as large as the image, and centred."""
    images = torch.zeros(200, 1, *shape, dtype=torch.uint8)
    images[:, :, 2:10, 3:9] = 255
    layers = torch.cat([images.float() / 255] * 2, dim=1)
    cropped = augment_photos._crop_to_object(augment_photos.RandomDraws(200, torch.Generator(), layers.device), layers)
    rows, columns = (cropped[:, 1].mean(dim=(0, dim)) for dim in (2, 1))
    for profile in (rows, columns):
        centre = (profile * torch.arange(len(profile))).sum() / profile.sum()
        assert abs(float(centre) - (len(profile) - 1) / 2) < 0.5


def test_a_recipe_of_simulated_photos_trains_on_images_that_are_not_square():
    images = torch.randint(256, (64, 1, 28, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = gingham.Split("train", images, torch.arange(64) % 2, ("Coat", "Sneaker"), "made", "")
    recipe = gingham.RECIPES["photo"].replace(network="tiny", epochs=1, batch_size=32)
    assert gingham.fit(recipe, train, progress=False).model.input_shape == (1, 28, 20)
