"""Random crops, rotations and colours of photos, and images that are blended."""

import numpy as np
import pytest
import torch

import gingham
from gingham.data.augment import mix_images
from gingham.data.photo_transforms import transform_photos

# Each changes images; the second value leaves them as they are.
FIELDS = {
    "crop_scale": (0.3, 1.0),
    "rotation": (45, 0),
    "color_jitter": (0.8, 0.0),
    "trivial_augment": (True, False),
}
EVERYTHING = gingham.Recipe(crop_scale=0.3, crop_size=20, rotation=30, color_jitter=0.5, trivial_augment=True)


def smooth_photos(count=12, channels=3, height=24, width=32):
    """Return images of random colour gradients, uint8 (N, C, H, W)."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")).to(torch.uint8)


def transform(images, recipe, step=0, part=slice(None), count=None):
    return transform_photos(images, recipe, step, part, len(images) if count is None else count)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop_size", [0, 16, 50])
def test_the_result_has_the_shape_that_the_recipe_says(channels, crop_size):
    images = smooth_photos(channels=channels)
    changed = transform(images, EVERYTHING.replace(crop_size=crop_size))
    side = (crop_size, crop_size) if crop_size else (24, 32)
    assert changed.dtype == torch.uint8
    assert changed.shape == (12, channels, *side)
    assert len(changed.unique()) > 10


@pytest.mark.parametrize(("field", "values"), FIELDS.items())
@pytest.mark.parametrize("channels", [1, 3])
def test_each_field_changes_images_and_its_neutral_value_does_not(field, values, channels):
    images, (active, neutral) = smooth_photos(count=30, channels=channels), values
    recipe = gingham.Recipe(**{field: active})
    assert recipe.transforms_photos
    changed = transform(images, recipe)
    share = (changed != images).flatten(1).any(dim=1).double().mean()
    assert share > 0.5
    assert not recipe.replace(**{field: neutral}).transforms_photos
    assert torch.equal(transform(images, recipe.replace(**{field: neutral})), images)


def test_crops_of_the_whole_image_are_only_resized():
    images = smooth_photos(height=32, width=32)
    assert torch.equal(transform(images, gingham.Recipe(crop_size=32)), images)
    small = transform(images, gingham.Recipe(crop_size=16)).float()
    means = torch.nn.functional.avg_pool2d(images.float(), 2)
    assert (small - means).abs().max() <= 16


def test_colours_change_at_most_by_the_share_of_the_recipe():
    grey = torch.full((50, 3, 8, 8), 100, dtype=torch.uint8)
    changed = transform(grey, gingham.Recipe(color_jitter=0.2)).float()
    assert changed.min() >= 100 * 0.8 - 1
    assert changed.max() <= 100 * 1.2 + 1
    assert (changed.amax((1, 2, 3)) - changed.amin((1, 2, 3))).max() <= 2  # grey stays grey


def test_rotations_are_at_most_the_angle_of_the_recipe():
    images = torch.zeros(60, 1, 65, 65, dtype=torch.uint8)
    images[:, :, 32, 56] = 255  # 24 pixels to the right of the centre
    rows = (transform(images, gingham.Recipe(rotation=15)).flatten(2).argmax(dim=2).flatten() // 65 - 32).double()
    assert rows.abs().max() <= 24 * np.sin(np.radians(15)) + 1
    assert rows.min() < -2
    assert rows.max() > 2


def test_draws_depend_on_seed_step_and_position_only():
    images, recipe = smooth_photos(), EVERYTHING
    whole = transform(images, recipe, step=5)
    assert torch.equal(transform(images, recipe, step=5), whole)
    assert not torch.equal(transform(images, recipe, step=6), whole)
    assert not torch.equal(transform(images, recipe.replace(seed=1), step=5), whole)
    for shards in (2, 5):
        parts = [slice(k, None, shards) for k in range(shards)]
        for part in parts:
            assert torch.equal(transform(images[part], recipe, 5, part, len(images)), whole[part])
    alike = transform(images[:1].repeat(8, 1, 1, 1), recipe)
    assert len({image.numpy().tobytes() for image in alike}) == 8


def test_no_images_give_no_images_of_a_shard_without_any():
    images = smooth_photos()
    part = slice(11, 12)
    assert len(transform(images[part], EVERYTHING, 0, part, 12)) == 1


def test_the_generators_of_the_caller_are_left_as_they_are():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = smooth_photos()
    original = images.clone()
    transform(images, EVERYTHING)
    mix_images(images, gingham.Recipe(mixup=0.5), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, original)


def test_mixup_blends_each_image_with_its_partner_by_its_share():
    images = smooth_photos(count=200)
    mixed, partners, shares = mix_images(images, gingham.Recipe(mixup=0.6), step=3)
    assert mixed.dtype == torch.uint8
    assert sorted(partners.tolist()) == list(range(200))
    for k in range(200):
        own, other, share = images[k].double(), images[partners[k]].double(), float(shares[k])
        by_hand = share * own + (1 - share) * other
        assert (mixed[k].double() - by_hand).abs().max() <= 0.51
    blended = shares < 1
    assert 0.45 < blended.double().mean() < 0.75
    assert torch.equal(mixed[~blended], images[~blended])
    assert 0.35 < shares[blended].mean() < 0.65  # uniform
    assert shares.min() >= 0


def test_mixup_of_all_or_no_images():
    images = smooth_photos(count=40)
    assert (mix_images(images, gingham.Recipe(mixup=1.0), 0)[2] < 1).all()
    none = gingham.Recipe(mixup=1e-9)
    assert torch.equal(mix_images(images, none, 0)[0], images)


def test_mixup_draws_depend_on_seed_and_step():
    images = smooth_photos()
    first, again, step, seed = (
        mix_images(images, gingham.Recipe(mixup=1.0, seed=seed), step)[2]
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, step)
    assert not torch.equal(first, seed)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixup": 0.5, "cutmix": 0.5}, "cutmix is 0.5 with mixup 0.5; set one of them to 0"),
        ({"mixup": 0.5, "photo_share": 0.5}, "mixup is 0.5 with photo_share 0.5; set one of them to 0"),
        ({"mixup": 0.5, "hard_share": 0.5}, "mixup is 0.5 with hard_share 0.5, .*set hard_share=1 or mixup=0"),
        ({"crop_scale": 0}, "crop_scale got 0; allowed"),
        ({"crop_scale": 1.5}, "crop_scale got 1.5; allowed"),
        ({"crop_size": -1}, "crop_size got -1; allowed"),
        ({"rotation": 181}, "rotation got 181; allowed"),
        ({"color_jitter": 2}, "color_jitter got 2; allowed"),
        ({"trivial_augment": 1}, "trivial_augment got 1; allowed: true or false"),
    ],
)
def test_values_that_are_not_allowed_are_refused(changes, reason):
    with pytest.raises(gingham.RecipeError, match=reason):
        gingham.Recipe(**changes)
