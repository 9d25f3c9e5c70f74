"""The clock of a training."""

import time

import torch


class Clock:
    """Counts `seconds` of training: from raw images in memory and fresh weights to the final weights.

    Imports, reading, compilation, warm-up and the final evaluation are outside. Evaluations, checkpoints and callbacks
    before the last step are inside. A resumed training adds the seconds `before` it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.before = device, 0.0
        self.started: float | None = None
        self.stopped: float | None = None

    def start(self) -> None:
        """Start counting, when the device has finished its warm-up."""
        self._synchronize()
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop now, or move an earlier stop to now."""
        self.stopped = None
        self.stopped = self.seconds

    @property
    def seconds(self) -> float:
        """The seconds of training so far."""
        if self.stopped is not None:
            return self.stopped
        if self.started is None:
            return self.before
        self._synchronize()  # kernels that are still queued belong to the training
        return self.before + time.perf_counter() - self.started

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
