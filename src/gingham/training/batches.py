"""Draw the batch of each step: sample, augment, mix, and take this process's shard."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gingham.data.augment import augment, augment_ahead, cut_mix_some
from gingham.data.augment_photos import photograph_some, photographed
from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.distributed import Crew
from gingham.recipe import Recipe
from gingham.training.distillation import Teachers

IMAGES_AHEAD = 1 << 16  # that a GPU has distorted at a time


@dataclass(frozen=True)
class Batch:
    """Pictures to learn from, uint8 (B, C, H, W), and what is known of each: `labels`, int64 (B,), and, where it is not all,

    `others`, int64 (B,), the labels of what was pasted over them, with `shares`, float (B,), of the picture that are still its own;
    and `taught`, float (B,), 1 for pictures of which the teachers are asked and 0 for those they know nothing of.
    """

    images: torch.Tensor
    labels: torch.Tensor
    others: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    taught: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[torch.Tensor]:
        """All of its tensors that there are."""
        return [tensor for tensor in vars(self).values() if tensor is not None]


def draw_batches(
    images: torch.Tensor,
    labels: torch.Tensor,
    train: Split,
    recipe: Recipe,
    sampler: Sampler,
    start: int,
    stop: int,
    crew: Crew,
    teachers: Teachers | None,
) -> Iterator[tuple[int, torch.Tensor, Batch]]:
    """The steps from `start` up to `stop`, each with its indices, int64 (B,), and its batch."""
    ahead = images.is_cuda and crew.size == 1 and not recipe.photo_share and not recipe.cutmix
    if not ahead:
        for step, indices in enumerate(sampler.batches(start, stop), start):
            epoch, _ = sampler.position(step)
            yield step, indices, _draw(images, labels, indices, train, recipe, epoch, step, crew, teachers)
        return
    while start < stop:
        epoch, place = sampler.position(start)
        left = (sampler.later if epoch else sampler.first) - place  # the next epoch's order is not known before this one ends
        end = min(stop, start + left, start + max(1, IMAGES_AHEAD // recipe.batch_size))
        batches = list(sampler.batches(start, end))
        own = torch.cat(batches)
        pictures = augment_ahead(images[own], batches, recipe, epoch, start)
        truths = torch.split(labels[own], [len(batch) for batch in batches])
        for step, indices, seen, truth in zip(range(start, end), batches, pictures, truths, strict=True):
            yield step, indices, Batch(seen, truth)
        start = end


def _draw(
    images: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    train: Split,
    recipe: Recipe,
    epoch: int,
    step: int,
    crew: Crew,
    teachers: Teachers | None,
) -> Batch:
    """This process's part of the batch that has the pictures `indices`, int64 (B,), as the recipe distorts and mixes them."""
    part = crew.part(len(indices))
    # What is photographed and what is mixed with what depends on the whole batch.
    whole = recipe.photo_share > 0 or recipe.cutmix > 0
    own, within = (indices, slice(None)) if whole else (indices[part], part)
    pictures = augment(images[own.to(images.device)].to(labels.device), own, recipe, epoch, step, within, len(indices))
    others = shares = taught = None
    if recipe.photo_share:
        pictures = photograph_some(pictures, labels[indices], train.classes, recipe, step)[part]
        if teachers and teachers.blind:
            taught = (torch.arange(len(indices), device=labels.device) >= photographed(len(indices), recipe)).float()[part]
    elif recipe.cutmix:
        pictures, partners, shares = cut_mix_some(pictures, recipe, step)
        pictures, others, shares = pictures[part], labels[indices[partners]][part], shares[part]
    return Batch(pictures, labels[indices[part]], others, shares, taught)
