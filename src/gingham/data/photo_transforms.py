"""Random changes of photos: crops, rotations, colours and TrivialAugment, by torchvision."""

import functools
import zlib
from typing import Any

import torch
from torch import Tensor

from gingham.device import forked_generators
from gingham.recipe import Recipe

ASPECT_RATIOS = 3 / 4, 4 / 3  # of random crops


def transform_photos(images: Tensor, recipe: Recipe, step: int, part: slice, count: int) -> Tensor:
    """Return photos of a training batch, each cropped, rotated and recoloured at random as a recipe says.

    `images` is uint8 (B, C, H, W), the shard `part` of a batch of `count`; the result is uint8 (B, C, S, S), S the
    recipe's `crop_size`, or the height and width of `images` if that is 0. The draws for an image depend only on the
    recipe's seed, `step`, and its position in the batch, so that they do not depend on the number of processes, and
    training can resume at any step.

    Photos are changed one by one, which takes much less time than a pretrained network takes to learn from them.

        photos = transform_photos(batch, recipe, step=0, part=slice(None), count=len(batch))

    Sources: Szegedy et al., "Going deeper with convolutions" (arXiv 1409.4842) for the crops; Müller & Hutter,
    "TrivialAugment" (arXiv 2103.10158).
    """
    transform = _build_transform(recipe, tuple(images.shape[2:]))
    transformed = []
    with forked_generators():  # torchvision draws from torch's global generator
        for position, image in zip(range(count)[part], images, strict=True):
            torch.manual_seed(zlib.crc32(f"photo {recipe.seed} {step} {position}".encode()))
            transformed.append(transform(image))
    return torch.stack(transformed)


@functools.lru_cache(maxsize=4)
def _build_transform(recipe: Recipe, size: tuple[int, int]) -> Any:
    from torchvision.transforms import InterpolationMode, v2  # takes a second to import

    transforms: list[Any] = []
    if recipe.rotation:
        transforms.append(v2.RandomRotation(recipe.rotation, InterpolationMode.BILINEAR))
    if recipe.crop_scale < 1 or recipe.crop_size:
        side = (recipe.crop_size, recipe.crop_size) if recipe.crop_size else size
        transforms.append(v2.RandomResizedCrop(side, (recipe.crop_scale, 1.0), ASPECT_RATIOS))
    if recipe.trivial_augment:
        transforms.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    if recipe.color_jitter:
        transforms.append(v2.ColorJitter(*[recipe.color_jitter] * 3))
    return v2.Compose(transforms or [v2.Identity()])
