"""Measure the training time."""

import time

import torch


class Clock:
    """Measures the `seconds` of training, from raw images in memory and initial weights to the final weights.

    Imports, reading data, compilation, warm-up and the final evaluation are not counted. Evaluations, checkpoints and
    callbacks before the last step are. A resumed run adds the seconds `before` it was interrupted.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        self.started: float | None = None
        self.stopped: float | None = None

    def start(self) -> None:
        """Start counting, after waiting for the device to finish its warm-up."""
        self._synchronize()
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop counting now, also if it was stopped earlier."""
        self.stopped = None
        self.stopped = self.seconds

    @property
    def seconds(self) -> float:
        """The training time so far."""
        if self.stopped is not None:
            return self.stopped
        if self.started is None:
            return self.before
        self._synchronize()  # kernels that are still queued are part of the training
        return self.before + time.perf_counter() - self.started

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
