"""Every augmentation against a slow loop over images and pixels."""

import pytest
import torch

from gingham import Recipe
from gingham.data.augment import augment, cutmix_boxes, flip, mix_images, shift


def make_images(count=7, channels=3, height=9, width=8):
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8)


def slow_shift(image, down, right):
    out = torch.zeros_like(image)
    for channel in range(image.shape[0]):
        for row in range(image.shape[1]):
            for column in range(image.shape[2]):
                source_row, source_column = row - down, column - right
                if 0 <= source_row < image.shape[1] and 0 <= source_column < image.shape[2]:
                    out[channel, row, column] = image[channel, source_row, source_column]
    return out


def test_flip_mirrors_only_the_chosen_images():
    images = make_images(4)
    chosen = torch.tensor([True, False, False, True])
    expected = [
        image[:, :, torch.arange(7, -1, -1)] if is_chosen else image
        for image, is_chosen in zip(images, chosen, strict=True)
    ]
    assert torch.equal(flip(images, chosen), torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_matches_a_loop_over_pixels(channels):
    images = make_images(20, channels)
    offsets = torch.randint(-3, 4, (20, 2))
    offsets[0], offsets[1] = torch.tensor([3, -3]), torch.tensor([0, 0])
    expected = [slow_shift(image, *offset.tolist()) for image, offset in zip(images, offsets, strict=True)]
    assert torch.equal(shift(images, offsets, 3), torch.stack(expected))


def test_shift_by_more_than_the_image_leaves_black():
    assert not shift(make_images(2), torch.tensor([[20, 0], [0, -20]]), 20).any()


def test_recipe_without_augmentation_returns_the_images():
    images = make_images(5)
    assert augment(images, torch.arange(5), Recipe(), epoch=3, step=9) is images


FULL = Recipe(flip="random", shift_pixels=2)


def test_augment_keeps_its_input_dtype_and_shape():
    images = make_images(6)
    before = images.clone()
    out = augment(images, torch.arange(6), FULL, epoch=0, step=0)
    assert torch.equal(images, before)
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)


def test_draws_depend_only_on_seed_and_step():
    images, indices = make_images(50), torch.arange(50)
    first = augment(images, indices, FULL, epoch=0, step=4)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(augment(images, indices, FULL, epoch=0, step=4), first)
    assert torch.equal(torch.rand(1), expected), "torch's global generator is not used"
    assert not torch.equal(augment(images, indices, FULL, epoch=0, step=5), first)
    assert not torch.equal(augment(images, indices, FULL.replace(seed=1), epoch=0, step=4), first)


def is_flipped(recipe, epoch, indices):
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(len(indices), -1, -1, -1)
    return augment(images, indices, recipe, epoch, step=epoch)[:, 0, 0, 0] == 255


def test_alternating_flips_show_both_sides_within_two_epochs():
    indices = torch.randperm(4000)
    recipe = Recipe(flip="alternating")
    first, second, third = (is_flipped(recipe, epoch, indices) for epoch in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert first.double().mean() == pytest.approx(0.5, abs=0.04)
    # The half does not follow a pattern of the indices: neighbours, even and odd ones are all split.
    ordered = is_flipped(recipe, 0, torch.arange(4000)).double()
    assert ordered[::2].mean() == pytest.approx(0.5, abs=0.05)
    assert (ordered[1:] == ordered[:-1]).double().mean() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(is_flipped(recipe.replace(seed=1), 0, indices), first)


def test_random_flips_are_independent_in_each_epoch():
    flips = torch.stack([is_flipped(Recipe(flip="random"), epoch, torch.arange(4000)) for epoch in range(4)]).double()
    assert flips.mean(dim=1).tolist() == pytest.approx([0.5] * 4, abs=0.04)
    assert (flips[0] == flips[1]).double().mean() == pytest.approx(0.5, abs=0.04)


def test_shifts_reach_every_offset_up_to_the_limit():
    images = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    shifted = augment(images, torch.arange(2000), Recipe(shift_pixels=2), epoch=0, step=0)
    reached = {tuple(position) for position in shifted.nonzero()[:, 2:].tolist()}
    assert reached == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def test_cutout_blackens_a_square_around_every_pixel():
    images = torch.full((2000, 1, 6, 9), 255, dtype=torch.uint8)
    cut = augment(images, torch.arange(2000), Recipe(cutout=3), epoch=0, step=0)
    found = set()
    for image in cut[:, 0]:
        rows, columns = (image == 0).nonzero().T
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert (image[top : bottom + 1, left : right + 1] == 0).all(), "not a rectangle"
        assert int((image == 0).sum()) == (bottom - top + 1) * (right - left + 1)
        found.add(tuple(map(int, (top, bottom, left, right))))
    # Squares around each of the 54 pixels, clipped at the border.
    expected = {(max(y - 1, 0), min(y + 1, 5), max(x - 1, 0), min(x + 1, 8)) for y in range(6) for x in range(9)}
    assert found == expected


def slow_cutmix(image, partner, top, left, bottom, right):
    out, kept_pixels = image.clone(), 0
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if top <= row < bottom and left <= column < right:
                out[:, row, column] = partner[:, row, column]
            else:
                kept_pixels += 1
    return out, kept_pixels / (image.shape[1] * image.shape[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_cutmix_boxes_matches_a_loop_over_pixels(channels):
    images, partners = make_images(20, channels), torch.randperm(20)
    tops, lefts = torch.randint(10, (20,)), torch.randint(9, (20,))
    boxes = torch.stack(
        [tops, lefts, (tops + torch.randint(6, (20,))).clamp(max=9), (lefts + torch.randint(6, (20,))).clamp(max=8)], 1
    )
    mixed, shares = cutmix_boxes(images, partners, boxes)
    expected = [
        slow_cutmix(image, images[partner], *box)
        for image, partner, box in zip(images, partners, boxes.tolist(), strict=True)
    ]
    assert torch.equal(mixed, torch.stack([image for image, _ in expected]))
    assert torch.allclose(shares, torch.tensor([share for _, share in expected]))
    assert mixed.dtype == torch.uint8


def test_cutmix_boxes_partners_and_shares():
    images = torch.arange(1, 201, dtype=torch.uint8)[:, None, None, None].expand(200, 1, 28, 28)
    recipe = Recipe(cutmix=0.5)
    mixed, partners, shares = mix_images(images, recipe, step=3)
    repeated = mix_images(images, recipe, step=3)
    assert all(torch.equal(first, second) for first, second in zip((mixed, partners, shares), repeated, strict=True)), (
        "the draws depend on seed and step only"
    )
    assert not torch.equal(partners, mix_images(images, recipe, step=4)[1])
    assert not torch.equal(partners, mix_images(images, recipe.replace(seed=1), step=3)[1])
    assert sorted(partners.tolist()) == list(range(200))
    assert torch.allclose(
        (mixed == images).float().mean(dim=(1, 2, 3)), torch.where(partners == torch.arange(200), 1.0, shares)
    )
    assert ((mixed == images) | (mixed == images[partners])).all()
    assert 70 < int((shares < 1).sum()) < 115, "half of them, except for boxes smaller than a pixel"
    assert (mix_images(images, Recipe(cutmix=0.0), step=3)[2] == 1).all()
    all_shares = torch.cat([mix_images(images, Recipe(cutmix=1.0), step)[2] for step in range(50)])
    assert 0.6 < float(all_shares.mean()) < 0.75, "above a half, because the border cuts boxes off"
