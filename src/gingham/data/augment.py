"""Augmentation: pure functions on a batch of uint8 images, with every random draw passed in."""

import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gingham.recipe import Recipe


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    `images` is uint8 (B, C, H, W), `chosen` bool (B,); the result has the shape and dtype of `images`.

    >>> flip(torch.tensor([[[[1, 2]]], [[[1, 2]]]], dtype=torch.uint8), torch.tensor([True, False])).tolist()
    [[[[2, 1]]], [[[1, 2]]]]
    """
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, offsets: Tensor, limit: int) -> Tensor:
    """Shift each image by whole pixels and fill the border with black.

    `images` is uint8 (B, C, H, W); `offsets` int64 (B, 2), pixels down and to the right, negative for up and left;
    `limit` is the largest offset that is possible.

    >>> shift(torch.tensor([[[[1, 2, 3]]]], dtype=torch.uint8), torch.tensor([[0, 1]]), limit=1).tolist()
    [[[[0, 1, 2]]]]
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (limit, limit, limit, limit))
    rows = limit - offsets[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    columns = limit - offsets[:, 1:] + torch.arange(width, device=images.device)  # (B, W)
    batch_indices = torch.arange(len(images), device=images.device)[:, None, None]
    # Indices on both sides of a slice give (B, H, W, C), so that the permuted result is channels last.
    return padded[batch_indices, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cut_out(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Blacken a square of `side` pixels in each image.

    `images` is uint8 (B, C, H, W); `corners` int64 (B, 2), the top and left of each square, which is clipped at the
    border of the image.

    >>> cut_out(torch.ones(1, 1, 1, 4, dtype=torch.uint8), torch.tensor([[0, 1]]), side=2).tolist()
    [[[[1, 0, 0, 1]]]]

    Source: DeVries & Taylor, "Cutout" (arXiv 1708.04552).
    """
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) - corners[:, :1]  # (B, H)
    columns = torch.arange(width, device=images.device) - corners[:, 1:]  # (B, W)
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill(in_rows[:, None, :, None] & in_columns[:, None, None, :], 0)


def cutmix_boxes(images: Tensor, partners: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of each image's partner into it; also return the share of each image that remains.

    `images` is uint8 (B, C, H, W); `partners` int64 (B,), indices in the batch; `boxes` int64 (B, 4): the top, left,
    bottom and right of each box, where bottom and right are exclusive, from 0 to H and W. The results are uint8 (B, C,
    H, W) and float (B,).

    >>> images, boxes = torch.tensor([[[[1, 2]]], [[[3, 4]]]], dtype=torch.uint8), torch.tensor([[0, 0, 1, 1]] * 2)
    >>> cutmix_boxes(images, torch.tensor([1, 0]), boxes)
    (tensor([[[[3, 2]]],
    <BLANKLINE>
    <BLANKLINE>
            [[[1, 4]]]], dtype=torch.uint8), tensor([0.5000, 0.5000]))

    Source: Yun et al., "CutMix" (arXiv 1905.04899).
    """
    height, width = images.shape[2:]
    top, left, bottom, right = boxes.T[..., None]
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_rows, in_columns = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)  # (B, H), (B, W)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    shares = 1 - ((bottom - top) * (right - left))[:, 0] / (height * width)
    return torch.where(inside, images[partners], images), shares


def mix_images(images: Tensor, recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Apply CutMix or mixup to a training batch; return the images, the partner of each, and the share that remains.

    `images` is uint8 (B, C, H, W), the whole batch. The recipe's `cutmix` is the share of the batch that gets a box of
    its partner, `mixup` the share that is blended with it; only one of them is set. Partners are int64 (B,), shares
    float (B,), 1 for an image that is not mixed. The share that a box covers, and that of a blended image, is uniformly
    distributed. Boxes are clipped at the border. The draws depend only on the recipe's seed and `step`.

        images, partners, shares = mix_images(batch, recipe, step=0)

    Sources: Yun et al., "CutMix" (arXiv 1905.04899); Zhang et al., "mixup" (arXiv 1710.09412).
    """
    count, (height, width) = len(images), images.shape[2:]
    generator = torch.Generator().manual_seed(zlib.crc32(f"mix {recipe.seed} {step}".encode()))
    partners = torch.randperm(count, generator=generator).to(images.device)
    if recipe.mixup:
        chance, shares = torch.rand(2, count, generator=generator).to(images.device)
        shares = torch.where(chance < recipe.mixup, shares, 1.0)
        blended = torch.lerp(images[partners].float(), images.float(), shares[:, None, None, None])
        return blended.round().to(torch.uint8), partners, shares
    chance, box_shares, *centres = torch.rand(4, count, generator=generator)
    side = box_shares.sqrt() * (chance < recipe.cutmix)  # 0: an empty box
    edges = [
        ((centre + sign * side / 2) * size).round().clamp(0, size).long()
        for sign in (-1, 1)
        for centre, size in zip(centres, (height, width), strict=True)
    ]
    mixed, shares = cutmix_boxes(images, partners, torch.stack(edges, dim=1).to(images.device))
    return mixed, partners, shares


def augment(
    images: Tensor, indices: Tensor, recipe: Recipe, epoch: int, step: int, part: slice = slice(None), count: int = 0
) -> Tensor:
    """Return a training batch with the augmentation of a recipe.

    `images` is uint8 (B, C, H, W), `indices` int64 (B,): their indices in the training split. If the images are only
    one shard of a batch, `part` is the slice of the batch and `count` its size. The draws depend only on the recipe's
    seed, `step`, `epoch` (both counted from 0) and the indices, so that training can resume at any step. They are made
    for the whole batch, so that the result does not depend on the number of processes that share it.

    With flip "alternating" an image is mirrored in every other epoch: half of the images in even epochs, the others in
    odd ones. The network sees both sides of every image within two epochs. With random flips it sees the same side
    twice in half of the cases.

        batch = augment(split.images[indices], indices, recipe, epoch=0, step=0)

    Source of "alternating": Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (arXiv 2404.00498).
    """
    draws = {name: draw[part] for name, draw in _draws(recipe, step, count or len(images), images).items()}
    return _apply_draws(images, indices, recipe, epoch, draws)


def augment_batches(images: Tensor, batches: list[Tensor], recipe: Recipe, epoch: int, step: int) -> Sequence[Tensor]:
    """Augment consecutive batches of one epoch at once, with the same results as `augment`; `step` is the first one's.

    `images` is uint8 (N, C, H, W), the images of all `batches`, int64 (B,) each, in order. A GPU augments a batch in
    less time than Python takes to launch the kernels, so many batches are augmented at once.

        first, second = augment_batches(split.images[torch.cat(pair)], pair, recipe, epoch=0, step=0)
    """
    sizes = [len(batch) for batch in batches]
    step_draws = [_draws(recipe, batch_step, size, images) for batch_step, size in enumerate(sizes, step)]
    all_draws = {name: torch.cat([draws[name] for draws in step_draws]) for name in step_draws[0]}
    return torch.split(_apply_draws(images, torch.cat(batches), recipe, epoch, all_draws), sizes)


def _draws(recipe: Recipe, step: int, count: int, images: Tensor) -> dict[str, Tensor]:
    """Return a step's draws for `count` images of the size of `images`.

    They are which are "flipped", bool (B,), their "offsets" and the "corners" of cut squares, int64 (B, 2).
    """
    # Drawn on the CPU, so that the draws are the same on every device. Its generator uses only 32 bits of a seed, so
    # both numbers are hashed into 32 bits.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{recipe.seed} {step}".encode()))
    draws = {}
    if recipe.flip == "random":
        draws["flipped"] = torch.rand(count, generator=generator) < 0.5
    if limit := recipe.shift_pixels:
        draws["offsets"] = torch.randint(-limit, limit + 1, (count, 2), generator=generator)
    if recipe.cutout:
        centres = [torch.randint(side, (count,), generator=generator) for side in images.shape[2:]]
        draws["corners"] = torch.stack(centres, dim=1) - recipe.cutout // 2
    return draws


def _apply_draws(images: Tensor, indices: Tensor, recipe: Recipe, epoch: int, draws: Mapping[str, Tensor]) -> Tensor:
    if recipe.flip == "alternating":
        # One bit of a multiplicative hash selects half of the images, independent of their order and number.
        images = flip(images, ((indices * 2654435761 + recipe.seed * 40503) >> 16) % 2 == epoch % 2)
    if "flipped" in draws:
        images = flip(images, draws["flipped"].to(images.device))
    if "offsets" in draws:
        images = shift(images, draws["offsets"].to(images.device), recipe.shift_pixels)
    if "corners" in draws:
        images = cut_out(images, draws["corners"].to(images.device), recipe.cutout)
    return images
