"""Which images each epoch takes, in which order, cut into batches."""

from collections.abc import Iterator

import torch

from gingham.recipe import Recipe

BLOCKS_A_WINDOW = 1024


def evenly(total: int, count: int) -> torch.Tensor:
    """Return `count` places among `total`, evenly spread over all of them, or all where there are fewer: int64.

    >>> evenly(10, 4).tolist(), evenly(3, 4).tolist()
    ([0, 2, 5, 7], [0, 1, 2])
    """
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


class Sampler:
    """Cuts a run into epochs and batches of indices.

    The first epoch takes every picture once, in random order. Later epochs do the same, or, with `hard_share` below 1,
    take the pictures whose last loss was highest and a random `easy_share` of the others: most pictures of most datasets
    are learned within an epoch, and what they would still teach is not worth its time. The first epoch's order depends
    on the seed alone, a later one's on seed, epoch and losses, so that training can go on at any step from `order` and
    `losses`. The last batch of an epoch is kept, however small.

    With a `block` above 1, for pictures on disk, blocks of that many neighbours are put in random order, and pictures
    within a window of 1,024 such blocks: the disk is read in runs, and a batch still comes from all over the file.

        sampler = Sampler(recipe, 55_000)
        for batch in sampler.batches(0, sampler.steps): ...   # int64 (B,)

    Source of the idea: Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers" (arXiv 1910.00762),
    who draw at every step by the loss of a fresh forward pass; here the loss of the last visit is used, which is free.
    """

    def __init__(self, recipe: Recipe, images: int, device: torch.device | None = None, block: int = 1) -> None:
        self.recipe, self.images, self.device, self.block = recipe, images, device, block
        self.hard = max(1, round(recipe.hard_share * images))
        self.easy = round(recipe.easy_share * (images - self.hard))
        self.first, self.later = (-(-self.pictures(epoch) // recipe.batch_size) for epoch in (0, 1))  # steps an epoch
        self.steps = max(1, round(min(recipe.epochs, 1) * self.first + max(recipe.epochs - 1, 0) * self.later))
        self.order = torch.empty(0, dtype=torch.long, device=device)  # of the epoch that is under way
        self.losses = torch.full((images,), torch.inf, device=device)  # of each picture's last visit

    def pictures(self, epoch: int) -> int:
        """Return how many pictures an epoch, counted from 0, takes."""
        return self.images if epoch == 0 else self.hard + self.easy

    def position(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step and its place in it, all counted from 0."""
        if step < self.first:
            return 0, step
        epoch, place = divmod(step - self.first, self.later)
        return epoch + 1, place

    def epochs(self, done: int) -> float:
        """Return how many epochs `done` steps are."""
        epoch, place = self.position(done)
        return epoch + place / (self.first if epoch == 0 else self.later)

    def batches(self, start: int, stop: int) -> Iterator[torch.Tensor]:
        """Yield the indices, int64 (B,), of the batches from step `start` up to `stop`."""
        size = self.recipe.batch_size
        for step in range(start, stop):
            epoch, place = self.position(step)
            if place == 0 or not len(self.order):
                self.order = self._shuffled(epoch)
            yield self.order[place * size : (place + 1) * size]

    def note(self, batch: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember the losses, float (B,), of a batch's pictures."""
        self.losses[batch] = losses

    def _shuffled(self, epoch: int) -> torch.Tensor:
        # The CPU's generator uses 32 bits of a seed: the second term keeps seeds apart that differ above their low 12.
        seed = self.recipe.seed
        generator = torch.Generator().manual_seed((seed << 20) + (seed >> 12) * 1021 + epoch)
        order = self._permutation(generator).to(self.device)
        if epoch == 0 or self.hard + self.easy == self.images:
            return order
        ranked = order[self.losses[order].argsort(descending=True, stable=True)]
        easier = ranked[self.hard :][torch.randperm(self.images - self.hard, generator=generator).to(self.device)]
        taken = torch.zeros(self.images, dtype=torch.bool, device=self.device)
        taken[ranked[: self.hard]] = True
        taken[easier[: self.easy]] = True
        return order[taken[order]]

    def _permutation(self, generator: torch.Generator) -> torch.Tensor:
        if self.block == 1:
            return torch.randperm(self.images, generator=generator)
        blocks = torch.randperm(-(-self.images // self.block), generator=generator)
        places = (blocks[:, None] * self.block + torch.arange(self.block)).flatten()
        windows = torch.split(places[places < self.images], BLOCKS_A_WINDOW * self.block)
        return torch.cat([window[torch.randperm(len(window), generator=generator)] for window in windows])
