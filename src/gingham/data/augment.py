"""Augmentation: pure functions on a batch of uint8 images, with every random draw passed in."""

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from gingham.recipe import Recipe


def flip(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Mirror the chosen pictures, left to right.

    `images` is uint8 (B, C, H, W), `chosen` bool (B,); what comes back has the shape and dtype of `images`.

    >>> flip(torch.tensor([[[[1, 2]]], [[[1, 2]]]], dtype=torch.uint8), torch.tensor([True, False])).tolist()
    [[[[2, 1]]], [[[1, 2]]]]
    """
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shift(images: torch.Tensor, offsets: torch.Tensor, limit: int | None = None) -> torch.Tensor:
    """Move each picture by whole pixels; what comes in from outside is black.

    `images` is uint8 (B, C, H, W); `offsets` int64 (B, 2), pixels down and to the right, negative for up and left. No offset is
    larger than the `limit`, which is looked for where it is not given: a look that waits for a GPU.

    >>> shift(torch.tensor([[[[1, 2, 3]]]], dtype=torch.uint8), torch.tensor([[0, 1]])).tolist()
    [[[[0, 1, 2]]]]
    """
    if not len(images):
        return images
    height, width = images.shape[2:]
    edge = int(offsets.abs().max()) if limit is None else limit
    padded = F.pad(images, (edge, edge, edge, edge))
    rows = edge - offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = edge - offsets[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    which = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices on both sides of a slice: the result is (B, H, W, C), which is channels last seen from (B, C, H, W).
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cutout(images: torch.Tensor, centres: torch.Tensor, side: int) -> torch.Tensor:
    """Black out one square of `side` pixels a picture, cut off at the border.

    `images` is uint8 (B, C, H, W); `centres` int64 (B, 2), row and column of each square's centre (of an even side, the
    pixel below and to the right of it).

    >>> cutout(torch.full((1, 1, 1, 4), 9, dtype=torch.uint8), torch.tensor([[0, 0]]), 3).tolist()
    [[[[0, 0, 9, 9]]]]

    Source: DeVries & Taylor, "Cutout" (arXiv 1708.04552), on bytes before normalisation, so that erased is black.
    """
    height, width = images.shape[2:]
    top_left = centres - side // 2
    down = torch.arange(height, device=images.device) - top_left[:, :1]  # (B, H), rows below the square's first
    across = torch.arange(width, device=images.device) - top_left[:, 1:]  # (B, W)
    inside = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
    return images.masked_fill(inside, 0)


def cutmix_boxes(images: torch.Tensor, partners: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a box of each picture's partner over it, and say which share of each picture is still its own.

    `images` is uint8 (B, C, H, W); `partners` int64 (B,), indices in the batch; `boxes` int64 (B, 4): the first row and column
    of each box and those after its last, at least 0, at most H and W. What comes back is like `images`, and float (B,).

    >>> cutmix_boxes(torch.tensor([[[[1, 2]]], [[[3, 4]]]], dtype=torch.uint8), torch.tensor([1, 0]), torch.tensor([[0, 0, 1, 1]] * 2))
    (tensor([[[[3, 2]]],
    <BLANKLINE>
    <BLANKLINE>
            [[[1, 4]]]], dtype=torch.uint8), tensor([0.5000, 0.5000]))

    Source: Yun et al., "CutMix" (arXiv 1905.04899).
    """
    height, width = images.shape[2:]
    top, left, bottom, right = boxes.T[..., None]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[:, None, None, :]
    own = 1 - ((bottom - top) * (right - left))[:, 0] / (height * width)
    return torch.where(inside, images[partners], images), own


def apply_cutmix(images: torch.Tensor, recipe: Recipe, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a training batch with the recipe's `cutmix` share of it mixed, each picture's partner, and the share that is its own.

    `images` is uint8 (B, C, H, W), the whole batch; partners are int64 (B,), shares float (B,), 1 where nothing was pasted. The
    box that is pasted covers any share of the picture, all equally likely, and is cut off at the border. Nothing but the
    recipe's seed and `step` decides the draws.

        images, partners, shares = apply_cutmix(batch, recipe, step=0)
    """
    count, (height, width) = len(images), images.shape[2:]
    generator = torch.Generator().manual_seed(zlib.crc32(f"mix {recipe.seed} {step}".encode()))
    partners = torch.randperm(count, generator=generator)
    chosen, covered, *centre = torch.rand(4, count, generator=generator)
    side = covered.sqrt() * (chosen < recipe.cutmix)  # 0: an empty box
    edges = [
        ((position + sign * side / 2) * size).round().clamp(0, size).long()
        for sign in (-1, 1)
        for position, size in zip(centre, (height, width), strict=True)
    ]
    partners = partners.to(images.device)
    mixed, shares = cutmix_boxes(images, partners, torch.stack(edges, dim=1).to(images.device))
    return mixed, partners, shares


def augment(
    images: torch.Tensor,
    indices: torch.Tensor,
    recipe: Recipe,
    epoch: int,
    step: int,
    part: slice = slice(None),
    count: int | None = None,
) -> torch.Tensor:
    """Return a training batch as the recipe's augmentation makes it, or the `part` of one of `count` pictures that `images` are.

    `images` is uint8 (B, C, H, W), `indices` int64 (B,): their indices in the training split. Nothing but the recipe's
    seed, `step`, `epoch` (both counted from 0) and the indices decides the draws, so training can go on at any step; and they
    are made for the whole batch, so that a picture looks the same however many processes share it.

    With flip "alternating" a picture is mirrored in every other epoch, half of the pictures in the even ones: both sides
    of each are seen within two epochs, where coins would show one side twice in half of the cases.

        batch = augment(split.images[indices], indices, recipe, epoch=0, step=0)

    Source of "alternating": Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498).
    """
    count = len(images) if count is None else count
    drawn = [None if draw is None else draw[part] for draw in _draws(recipe, step, count, images)]
    return _distorted(images, indices, recipe, epoch, drawn)


def augment_batches(
    images: torch.Tensor, batches: Sequence[torch.Tensor], recipe: Recipe, epoch: int, step: int
) -> Sequence[torch.Tensor]:
    """Return what `augment` does for consecutive batches of one epoch, the first of them that of `step`.

    `images` is uint8 (N, C, H, W), the pictures of all of the `batches`, int64 (B,) each, one after the other. A GPU is done with a
    batch before Python has told it what to do: here it is told once for many.

        first, second = augment_batches(split.images[torch.cat(pair)], pair, recipe, epoch=0, step=0)
    """
    sizes = [len(batch) for batch in batches]
    draws = [_draws(recipe, number, size, images) for number, size in enumerate(sizes, step)]
    drawn = [None if any(draw is None for draw in of_all) else torch.cat(of_all) for of_all in zip(*draws, strict=True)]
    return torch.split(_distorted(images, torch.cat(list(batches)), recipe, epoch, drawn), sizes)


def _draws(recipe: Recipe, step: int, count: int, images: torch.Tensor) -> list[torch.Tensor | None]:
    """What is drawn for a step's `count` pictures: who is mirrored, bool (B,), offsets and centres, int64 (B, 2); None for no draw."""
    # On the CPU, for the same draws on every device. Its generator uses 32 bits of a seed, so both numbers go into those.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{recipe.seed} {step}".encode()))
    coins = offsets = centres = None
    if recipe.flip == "random":
        coins = torch.rand(count, generator=generator) < 0.5
    if limit := recipe.shift_pixels:
        offsets = torch.randint(-limit, limit + 1, (count, 2), generator=generator)
    if recipe.cutout_pixels:
        centres = torch.stack([torch.randint(size, (count,), generator=generator) for size in images.shape[2:]], dim=1)
    return [coins, offsets, centres]


def _distorted(
    images: torch.Tensor, indices: torch.Tensor, recipe: Recipe, epoch: int, drawn: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    coins, offsets, centres = (None if draw is None else draw.to(images.device) for draw in drawn)
    if recipe.flip == "alternating":
        # A bit of a multiplicative hash: half of the pictures, whatever order or number they come in.
        coins = ((indices * 2654435761 + recipe.seed * 40503) >> 16) % 2 == epoch % 2
    if coins is not None:
        images = flip(images, coins)
    if offsets is not None:
        images = shift(images, offsets, recipe.shift_pixels)
    if centres is not None:
        images = cutout(images, centres, recipe.cutout_pixels)
    return images
