"""Draw the batch of each step: sample, augment, mix, and take this process's shard."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from gingham.data.augment import augment, augment_batches, mix_images
from gingham.data.augment_photos import num_outliers, num_simulated, simulate_photos
from gingham.data.photo_transforms import transform_photos
from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.recipe import Recipe

IMAGES_PER_CALL = 1 << 16  # images augmented per GPU call
NO_CLASS = -100  # the label of outliers, which torch's cross-entropy ignores


@dataclass(frozen=True)
class Batch:
    """One process's shard of a batch of training images, on the training device.

    `images` is uint8 (B, C, H, W), `labels` int64 (B,), NO_CLASS for outliers. With CutMix, `mixed_labels`, int64 (B,),
    are the labels of the images pasted over these, and `mix_weight`, float (B,), the share of each image that was not
    pasted over. `distill_mask`, float (B,), is 1 for images that are distilled from the teachers and 0 for the others;
    None means that all images are.

    `indices`, int64 (B,), are the images' positions in the training split. The shard's mean loss is multiplied by
    `weight`, so that the mean over all processes is the mean over the whole batch.
    """

    images: torch.Tensor
    labels: torch.Tensor
    mixed_labels: torch.Tensor | None = None
    mix_weight: torch.Tensor | None = None
    distill_mask: torch.Tensor | None = None
    indices: torch.Tensor | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.images)

    def main_labels(self) -> torch.Tensor:
        """Return the label that covers most of each image, int64 (B,), NO_CLASS for outliers."""
        if self.mixed_labels is None or self.mix_weight is None:
            return self.labels
        return torch.where(self.mix_weight < 0.5, self.mixed_labels, self.labels)

    def inputs(self) -> list[torch.Tensor]:
        """Return the input tensors of a step, in a fixed order."""
        tensors = (self.images, self.labels, self.mixed_labels, self.mix_weight, self.distill_mask)
        return [tensor for tensor in tensors if tensor is not None]


def shard_of(count: int, rank: int, world_size: int) -> slice:
    """Return the slice of a batch of `count` images that a process takes: every `world_size`-th image.

    A process for which no image is left repeats the shard of another process.

    >>> shard_of(5, rank=1, world_size=2), shard_of(2, rank=2, world_size=3)
    (slice(1, None, 2), slice(0, None, 3))
    """
    return slice(rank % count, None, world_size)


def shard_weight(count: int, rank: int, world_size: int) -> float:
    """Return the factor for a shard's mean loss, so that the mean over the processes is the mean over the batch.

    It is 0 for a shard that repeats the images of another process.

    >>> shard_weight(5, rank=1, world_size=2), shard_weight(2, rank=2, world_size=3)
    (0.8, 0.0)
    """
    return len(range(rank, count, world_size)) * world_size / count


@dataclass
class BatchLoader:
    """Yields the batches of a training run.

    Every random draw is made for the whole batch, and each process then takes its shard. The images therefore do not
    depend on the number of processes. With `mask_photos` the batches have a `distill_mask` that excludes simulated
    photos.

        loader = BatchLoader(train, recipe, sampler, device)
        for batch in loader.batches(start=0, stop=sampler.steps): ...
    """

    train: Split
    recipe: Recipe
    sampler: Sampler
    device: torch.device
    rank: int = 0
    world_size: int = 1
    mask_photos: bool = False

    def shard_sizes(self, batch_sizes: Iterable[int]) -> list[int]:
        """Return the sizes of this process's shards of batches of these sizes, in order."""
        return [len(range(size)[shard_of(size, self.rank, self.world_size)]) for size in batch_sizes]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of the steps from `start` up to `stop`."""
        # uint8; images that are on disk or do not fit on the GPU are copied batch by batch instead.
        images = self.train.images.to(self.device) if _fits(self.train, self.device) else self.train.images
        labels = self.train.labels.to(self.device)
        # Simulated photos and CutMix are drawn on the CPU batch by batch, so augmenting many at a time gains nothing.
        recipe = self.recipe
        plain = not recipe.photo_share and not recipe.mixes and not recipe.transforms_photos
        if images.is_cuda and self.world_size == 1 and plain:
            yield from self._draw_together(images, labels, start, stop)
            return
        for step, indices in enumerate(self.sampler.batches(start, stop), start):
            yield self._draw(images, labels, indices, step)

    def _draw_together(self, images: torch.Tensor, labels: torch.Tensor, start: int, stop: int) -> Iterator[Batch]:
        """Yield batches that were augmented together, which takes a GPU hardly longer than augmenting one."""
        sampler, batch_size = self.sampler, self.recipe.batch_size
        while start < stop:
            epoch, epoch_step = sampler.position(start)
            # The order of the next epoch is not known until this one has ended.
            steps_left = (sampler.later_epoch_steps if epoch else sampler.first_epoch_steps) - epoch_step
            end = min(stop, start + steps_left, start + max(1, IMAGES_PER_CALL // batch_size))
            parts = list(sampler.batches(start, end))
            indices = torch.cat(parts)
            part_images = augment_batches(images[indices], parts, self.recipe, epoch, start)
            part_labels = torch.split(labels[indices], [len(part) for part in parts])
            for part, its_images, its_labels in zip(parts, part_images, part_labels, strict=True):
                yield Batch(its_images, its_labels, indices=part)
            start = end

    def _draw(self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, step: int) -> Batch:
        """Return this process's shard of the batch of the images `indices`, int64 (B,), augmented and mixed."""
        recipe, count = self.recipe, len(indices)
        epoch, _ = self.sampler.position(step)
        shard = shard_of(count, self.rank, self.world_size)
        weight = shard_weight(count, self.rank, self.world_size)
        # Which images become photos, and which are mixed with which, depends on the whole batch.
        needs_whole_batch = recipe.photo_share > 0 or bool(recipe.mixes)
        needed, part = (indices, slice(None)) if needs_whole_batch else (indices[shard], shard)
        drawn = augment(images[needed.to(images.device)].to(self.device), needed, recipe, epoch, step, part, count)
        if recipe.transforms_photos:
            drawn = transform_photos(drawn, recipe, step, part, count)
        mixed_labels = mix_weight = distill_mask = None
        if recipe.photo_share:
            drawn = simulate_photos(drawn, labels[indices], self.train.classes, recipe, step)[shard]
            if self.mask_photos:  # the first images of a batch became photos
                is_photo = torch.arange(count, device=self.device) < num_simulated(count, recipe)
                distill_mask = (~is_photo).float()[shard]
        elif recipe.mixes:  # no recipe has both
            drawn, partners, mix_weight = mix_images(drawn, recipe, step)
            drawn, mixed_labels, mix_weight = drawn[shard], labels[indices[partners]][shard], mix_weight[shard]
        its_labels = labels[indices]
        its_labels[: num_outliers(count, recipe)] = NO_CLASS
        return Batch(drawn, its_labels[shard], mixed_labels, mix_weight, distill_mask, indices[shard], weight)


def _fits(split: Split, device: torch.device) -> bool:
    """Return whether the images are in memory and take less than half of the free memory of a GPU."""
    is_small = device.type != "cuda" or split.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
    return split.block == 1 and is_small
