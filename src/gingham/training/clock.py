"""The clock of a training."""

import time

import torch


class Clock:
    """Counts `seconds` of training: from raw images in memory and fresh weights to the final weights.

    Imports, reading, compilation, warm-up and the final evaluation are outside. A resumed training adds the seconds
    `before` it. Once stopped, the clock keeps its time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        self.started: float | None = None
        self.stopped: float | None = None

    def start(self) -> None:
        """Start counting."""
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop at the present time, also if the clock was stopped earlier."""
        self.stopped = None
        self.stopped = self.seconds

    @property
    def seconds(self) -> float:
        """The seconds of training so far."""
        if self.stopped is not None:
            return self.stopped
        if self.started is None:
            return self.before
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels that are still queued belong to the training
        return self.before + time.perf_counter() - self.started
