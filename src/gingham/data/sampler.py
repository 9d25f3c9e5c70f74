"""Choose the images of each epoch and their order, and cut them into batches."""

from collections.abc import Iterator

import torch

from gingham.recipe import Recipe

BLOCKS_PER_WINDOW = 1024


def evenly_spaced(total: int, count: int) -> torch.Tensor:
    """Return `count` of the indices 0 to `total` - 1, evenly spaced, or all of them if there are fewer, int64.

    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(3, 4).tolist()
    ([0, 2, 5, 7], [0, 1, 2])
    """
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


def limit_count(count: int, images: torch.Tensor, pixels: int) -> int:
    """Return `count`, or fewer, but at least 1, if that many of these images have more than a number of pixels.

    >>> [limit_count(1000, torch.zeros(1, 3, side, side), 1 << 20) for side in (28, 224)]
    [1000, 20]
    """
    return min(count, max(1, pixels // max(1, images.shape[2:].numel())))


class Sampler:
    """Divides a run into epochs and batches of indices.

    The first epoch uses every image once, in random order. Later epochs do the same, or, with `hard_share` below 1, use
    the images whose last loss was highest and a random `easy_share` of the others: the network learns most images of
    most datasets within an epoch and gains little from seeing them again. The order of the first epoch depends on the
    seed alone, that of a later one on seed, epoch and losses, so that training can resume at any step from `order` and
    `losses`. The last batch of an epoch is kept, even if it is small.

    A `block` above 1 is for images that stay on disk. Blocks of that many neighbouring images are shuffled, and then
    the images within windows of 1,024 blocks: each block is read at once, and the images of a batch still come from all
    parts of the file.

        sampler = Sampler(recipe, 55_000)
        for batch in sampler.batches(0, sampler.steps): ...   # int64 (B,)

    Source of the idea: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers" (arXiv 1910.00762).
    They use the loss of a fresh forward pass at every step; here it is the loss of the last step with that image, which
    costs nothing.
    """

    def __init__(self, recipe: Recipe, num_images: int, device: torch.device | None = None, block: int = 1) -> None:
        self.recipe, self.num_images, self.device, self.block = recipe, num_images, device, block
        self.num_hard = max(1, round(recipe.hard_share * num_images))
        self.num_easy = round(recipe.easy_share * (num_images - self.num_hard))
        self.first_epoch_steps, self.later_epoch_steps = (-(-self.epoch_size(k) // recipe.batch_size) for k in (0, 1))
        steps = min(recipe.epochs, 1) * self.first_epoch_steps + max(recipe.epochs - 1, 0) * self.later_epoch_steps
        self.steps = max(1, round(steps))
        self.order = torch.empty(0, dtype=torch.long, device=device)  # of the current epoch
        self.losses = torch.full((num_images,), torch.inf, device=device)  # of the last step with each image

    def epoch_size(self, epoch: int) -> int:
        """Return how many images an epoch, counted from 0, uses."""
        return self.num_images if epoch == 0 else self.num_hard + self.num_easy

    def position(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step and the number of the step within it, all counted from 0."""
        if step < self.first_epoch_steps:
            return 0, step
        epoch, epoch_step = divmod(step - self.first_epoch_steps, self.later_epoch_steps)
        return epoch + 1, epoch_step

    def epochs(self, done: int) -> float:
        """Return the number of epochs, with a fraction, that `done` steps make."""
        epoch, epoch_step = self.position(done)
        return epoch + epoch_step / (self.first_epoch_steps if epoch == 0 else self.later_epoch_steps)

    def batches(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield the indices, int64 (B,), of the batches from step `start` up to `stop`."""
        for step in range(start, stop):
            epoch, epoch_step = self.position(step)
            if epoch_step == 0 or not len(self.order):
                self.order = self._shuffled(epoch)
            yield self.batch(epoch_step)

    def batch(self, epoch_step: int) -> torch.Tensor:
        """Return the indices, int64 (B,), of a batch of the current epoch, counted from 0."""
        size = self.recipe.batch_size
        return self.order[epoch_step * size : (epoch_step + 1) * size]

    def record(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Record the losses, float (B,), of the images `indices`, int64 (B,)."""
        self.losses[indices] = losses

    def _shuffled(self, epoch: int) -> torch.Tensor:
        # The CPU's generator uses 32 bits of a seed; the second term adds the bits of the seed above its lowest 12.
        seed = self.recipe.seed
        generator = torch.Generator().manual_seed((seed << 20) + (seed >> 12) * 1021 + epoch)
        order = self._permutation(generator).to(self.device)
        if epoch == 0 or self.num_hard + self.num_easy == self.num_images:
            return order
        ranked = order[self.losses[order].argsort(descending=True, stable=True)]
        drawn = torch.randperm(self.num_images - self.num_hard, generator=generator)[: self.num_easy].to(self.device)
        chosen = torch.zeros(self.num_images, dtype=torch.bool, device=self.device)
        chosen[ranked[: self.num_hard]] = True
        chosen[ranked[self.num_hard :][drawn]] = True
        return order[chosen[order]]

    def _permutation(self, generator: torch.Generator) -> torch.Tensor:
        if self.block == 1:
            return torch.randperm(self.num_images, generator=generator)
        blocks = torch.randperm(-(-self.num_images // self.block), generator=generator)
        indices = (blocks[:, None] * self.block + torch.arange(self.block)).flatten()
        windows = torch.split(indices[indices < self.num_images], BLOCKS_PER_WINDOW * self.block)
        return torch.cat([window[torch.randperm(len(window), generator=generator)] for window in windows])
