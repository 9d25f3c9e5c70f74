"""Draw the batch of each step: sample, augment, mix, and take this process's shard."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gingham.data.augment import apply_cutmix, augment, augment_batches
from gingham.data.augment_photos import num_simulated, simulate_photos
from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.distributed import DistributedContext
from gingham.recipe import Recipe
from gingham.training.distillation import TeacherEnsemble

IMAGES_PER_CALL = 1 << 16  # images augmented per GPU call


@dataclass(frozen=True)
class Batch:
    """One batch of training images, on the training device.

    `images` is uint8 (B, C, H, W), `labels` int64 (B,). With CutMix, `mixed_labels`, int64 (B,), are the labels of the
    images pasted over these, and `mix_weight`, float (B,), the share of each image that is still its own.
    `distill_mask`, float (B,), is 1 for images that the teachers are asked about and 0 for the others; None if they are
    asked about all.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mixed_labels: torch.Tensor | None = None
    mix_weight: torch.Tensor | None = None
    distill_mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that are not None, in a fixed order."""
        return [tensor for tensor in vars(self).values() if tensor is not None]


def draw_batches(
    images: torch.Tensor,
    labels: torch.Tensor,
    train: Split,
    recipe: Recipe,
    sampler: Sampler,
    start: int,
    stop: int,
    context: DistributedContext,
    teachers: TeacherEnsemble | None,
) -> Iterator[tuple[int, torch.Tensor, Batch]]:
    """Yield the steps from `start` up to `stop`, each with the indices of its images, int64 (B,), and its batch.

    `images` and `labels` are those of the split `train`, on the device where they are kept.
    """
    together = images.is_cuda and context.size == 1 and not recipe.photo_share and not recipe.cutmix
    if not together:
        for step, indices in enumerate(sampler.batches(start, stop), start):
            epoch, _ = sampler.position(step)
            yield step, indices, _draw_batch(images, labels, indices, train, recipe, epoch, step, context, teachers)
        return
    while start < stop:
        epoch, epoch_step = sampler.position(start)
        # The order of the next epoch is not known before this one ends.
        steps_left = (sampler.later_epoch_steps if epoch else sampler.first_epoch_steps) - epoch_step
        end = min(stop, start + steps_left, start + max(1, IMAGES_PER_CALL // recipe.batch_size))
        batches = list(sampler.batches(start, end))
        indices = torch.cat(batches)
        batch_images = augment_batches(images[indices], batches, recipe, epoch, start)
        batch_labels = torch.split(labels[indices], [len(batch) for batch in batches])
        yield from zip(range(start, end), batches, map(Batch, batch_images, batch_labels), strict=True)
        start = end


def _draw_batch(
    images: torch.Tensor,
    labels: torch.Tensor,
    indices: torch.Tensor,
    train: Split,
    recipe: Recipe,
    epoch: int,
    step: int,
    context: DistributedContext,
    teachers: TeacherEnsemble | None,
) -> Batch:
    """Return this process's shard of the batch of the images `indices`, int64 (B,), augmented and mixed as the recipe says."""
    shard = context.shard(len(indices))
    # Which images become photos, and which are mixed with which, depends on the whole batch.
    whole = recipe.photo_share > 0 or recipe.cutmix > 0
    needed, part = (indices, slice(None)) if whole else (indices[shard], shard)
    batch = augment(images[needed.to(images.device)].to(labels.device), needed, recipe, epoch, step, part, len(indices))
    mixed_labels = mix_weight = distill_mask = None
    if recipe.photo_share:
        batch = simulate_photos(batch, labels[indices], train.classes, recipe, step)[shard]
        if teachers and teachers.skip_photos:
            is_photo = torch.arange(len(indices), device=labels.device) < num_simulated(len(indices), recipe)
            distill_mask = (~is_photo).float()[shard]
    elif recipe.cutmix:
        batch, partners, mix_weight = apply_cutmix(batch, recipe, step)
        batch, mixed_labels, mix_weight = batch[shard], labels[indices[partners]][shard], mix_weight[shard]
    return Batch(batch, labels[indices[shard]], mixed_labels, mix_weight, distill_mask)
