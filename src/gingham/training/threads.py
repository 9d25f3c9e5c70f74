"""Use fewer threads while other work keeps the cores busy.

The threads of an operation wait for each other. If another process has one of their cores, all of them wait for its
turn, hundreds of times in each step: with two threads and one busy core, steps take ten times as long and more, with
one thread hardly longer (OMP_NUM_THREADS=2 and 1 for benchmarks/contention.py).
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from gingham.distributed import DistributedContext
from gingham.training.batches import Batch
from gingham.training.step import StepOutput, TrainStep

SLOWER = 3.0  # steps that take this many times as long as expected lack a core
SHORT = 0.05  # seconds; shorter steps may take longer for many reasons
NUM_STEPS = 5  # of which the median counts


def can_adapt(device: torch.device, context: DistributedContext) -> bool:
    """Return whether the number of threads may change: on a CPU, unless the environment sets it."""
    return device.type == "cpu" and context.size == 1 and "OMP_NUM_THREADS" not in os.environ


class AdaptiveStep:
    """A training step that continues with one thread less whenever its steps have become too slow.

    The first steps, on a copy of the model, show what to expect: `warm_up()` takes one, and is called twice with all
    threads and twice with one. `on_change(threads)` is called after each change. More threads are never used again,
    because each change affects the rounding.

        step = AdaptiveStep(train_step, lambda: twin_step(batch), on_change=print)
        output = step(batch)
    """

    def __init__(
        self,
        step: TrainStep,
        warm_up: Callable[[], object],
        on_change: Callable[[int], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.step, self.on_change, self.clock = step, on_change, clock
        self.recent: list[float] = []
        threads = torch.get_num_threads()
        with_all = self._fastest(warm_up)
        torch.set_num_threads(1)
        with_one = self._fastest(warm_up)
        torch.set_num_threads(threads)
        self.expected = min(with_all, with_one)
        if self._is_slow(with_all):
            self._reduce()

    def __call__(self, batch: Batch) -> StepOutput:
        start = self.clock()
        output = self.step(batch)
        self.recent.append(self.clock() - start)
        if len(self.recent) == NUM_STEPS:
            if self._is_slow(statistics.median(self.recent)) and torch.get_num_threads() > 1:
                self._reduce()
            self.recent.clear()
        return output

    def _fastest(self, function: Callable[[], object]) -> float:
        """Return the seconds of the faster of two calls: the first with another number of threads has more to do."""
        times = []
        for _ in range(2):
            start = self.clock()
            function()
            times.append(self.clock() - start)
        return min(times)

    def _is_slow(self, seconds: float) -> bool:
        return seconds > max(SHORT, SLOWER * self.expected)

    def _reduce(self) -> None:
        torch.set_num_threads(torch.get_num_threads() - 1)
        self.on_change(torch.get_num_threads())
