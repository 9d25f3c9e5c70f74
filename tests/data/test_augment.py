"""Every operation against a slow loop over pictures and pixels."""

import pytest
import torch

from gingham import Recipe
from gingham.data.augment import apply_cutmix, augment, cutmix_boxes, cutout, flip, shift


def pictures(count=7, channels=3, height=9, width=8):
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


def slow_erase(image, row, column, side):
    out = image.clone()
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            if row - side // 2 <= y < row - side // 2 + side and column - side // 2 <= x < column - side // 2 + side:
                out[:, y, x] = 0
    return out


def test_flip_mirrors_the_chosen_pictures_alone():
    images = pictures(4)
    chosen = torch.tensor([True, False, False, True])
    expected = [
        image[:, :, torch.arange(7, -1, -1)] if mirrored else image for image, mirrored in zip(images, chosen, strict=True)
    ]
    assert torch.equal(flip(images, chosen), torch.stack(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_is_the_slow_loops(channels):
    images = pictures(20, channels)
    offsets = torch.randint(-3, 4, (20, 2))
    offsets[0], offsets[1] = torch.tensor([3, -3]), torch.tensor([0, 0])
    expected = [slow_shift(image, *offset.tolist()) for image, offset in zip(images, offsets, strict=True)]
    assert torch.equal(shift(images, offsets), torch.stack(expected))


def test_a_shift_by_more_than_the_picture_leaves_black():
    assert not shift(pictures(2), torch.tensor([[20, 0], [0, -20]])).any()


@pytest.mark.parametrize("side", [1, 2, 5, 30])
def test_erase_is_the_slow_loops(side):
    images = pictures(20)
    centres = torch.stack([torch.randint(9, (20,)), torch.randint(8, (20,))], dim=1)
    expected = [slow_erase(image, *centre.tolist(), side) for image, centre in zip(images, centres, strict=True)]
    assert torch.equal(cutout(images, centres, side), torch.stack(expected))


def test_no_augmentation_is_the_picture_itself():
    images = pictures(5)
    assert augment(images, torch.arange(5), Recipe(), epoch=3, step=9) is images


FULL = Recipe(flip="random", shift_pixels=2, cutout_pixels=3)


def test_operations_leave_their_input_and_its_kind_alone():
    images = pictures(6)
    before = images.clone()
    out = augment(images, torch.arange(6), FULL, epoch=0, step=0)
    assert torch.equal(images, before)
    assert (out.dtype, out.shape) == (torch.uint8, images.shape)


def test_the_draws_follow_from_seed_and_step_alone():
    images, indices = pictures(50), torch.arange(50)
    first = augment(images, indices, FULL, epoch=0, step=4)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(augment(images, indices, FULL, epoch=0, step=4), first)
    assert torch.equal(torch.rand(1), expected), "the caller's random stream stays where it was"
    assert not torch.equal(augment(images, indices, FULL, epoch=0, step=5), first)
    assert not torch.equal(augment(images, indices, FULL.replace(seed=1), epoch=0, step=4), first)


def mirrored(recipe, epoch, indices):
    images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8).expand(len(indices), -1, -1, -1)
    return augment(images, indices, recipe, epoch, step=epoch)[:, 0, 0, 0] == 255


def test_alternating_flips_show_both_sides_within_two_epochs():
    indices = torch.randperm(4000)
    recipe = Recipe(flip="alternating")
    first, second, third = (mirrored(recipe, epoch, indices) for epoch in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert first.double().mean() == pytest.approx(0.5, abs=0.04)
    # The half is chosen by no pattern of the index: neighbours, evens and odds are all split.
    ordered = mirrored(recipe, 0, torch.arange(4000)).double()
    assert ordered[::2].mean() == pytest.approx(0.5, abs=0.05)
    assert (ordered[1:] == ordered[:-1]).double().mean() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(mirrored(recipe.replace(seed=1), 0, indices), first)


def test_random_flips_are_coins():
    drawn = torch.stack([mirrored(Recipe(flip="random"), epoch, torch.arange(4000)) for epoch in range(4)]).double()
    assert drawn.mean(dim=1).tolist() == pytest.approx([0.5] * 4, abs=0.04)
    assert (drawn[0] == drawn[1]).double().mean() == pytest.approx(0.5, abs=0.04)


def test_shifts_reach_every_offset_and_no_further():
    dot = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 4] = 255
    moved = augment(dot, torch.arange(2000), Recipe(shift_pixels=2), epoch=0, step=0)
    reached = {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert reached == {(row, column) for row in range(2, 7) for column in range(2, 7)}


def slow_cut_mix(image, partner, top, left, bottom, right):
    out, own = image.clone(), 0
    for row in range(image.shape[1]):
        for column in range(image.shape[2]):
            if top <= row < bottom and left <= column < right:
                out[:, row, column] = partner[:, row, column]
            else:
                own += 1
    return out, own / (image.shape[1] * image.shape[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_cut_mix_is_the_slow_loops(channels):
    images, partners = pictures(20, channels), torch.randperm(20)
    tops, lefts = torch.randint(10, (20,)), torch.randint(9, (20,))
    boxes = torch.stack(
        [tops, lefts, (tops + torch.randint(6, (20,))).clamp(max=9), (lefts + torch.randint(6, (20,))).clamp(max=8)], 1
    )
    mixed, shares = cutmix_boxes(images, partners, boxes)
    expected = [
        slow_cut_mix(image, images[partner], *box) for image, partner, box in zip(images, partners, boxes.tolist(), strict=True)
    ]
    assert torch.equal(mixed, torch.stack([image for image, _ in expected]))
    assert torch.allclose(shares, torch.tensor([share for _, share in expected]))
    assert mixed.dtype == torch.uint8


def test_the_boxes_that_are_mixed_in():
    images = torch.arange(1, 201, dtype=torch.uint8)[:, None, None, None].expand(200, 1, 28, 28)
    recipe = Recipe(cutmix=0.5)
    mixed, partners, shares = apply_cutmix(images, recipe, step=3)
    again = apply_cutmix(images, recipe, step=3)
    assert all(torch.equal(one, other) for one, other in zip((mixed, partners, shares), again, strict=True)), (
        "seed and step decide"
    )
    assert not torch.equal(partners, apply_cutmix(images, recipe, step=4)[1])
    assert not torch.equal(partners, apply_cutmix(images, recipe.replace(seed=1), step=3)[1])
    assert sorted(partners.tolist()) == list(range(200))
    assert torch.allclose(
        (mixed == images).float().mean(dim=(1, 2, 3)), torch.where(partners == torch.arange(200), 1.0, shares)
    )
    assert ((mixed == images) | (mixed == images[partners])).all()
    assert 70 < int((shares < 1).sum()) < 115, "half of them, but for boxes of less than a pixel"
    assert (apply_cutmix(images, Recipe(cutmix=0.0), step=3)[2] == 1).all()
    everywhere = torch.cat([apply_cutmix(images, Recipe(cutmix=1.0), step)[2] for step in range(50)])
    assert 0.6 < float(everywhere.mean()) < 0.75, "a half is asked for, and the border cuts boxes off"
