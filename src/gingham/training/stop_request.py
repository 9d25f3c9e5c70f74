"""Ctrl-C and SIGTERM, deferred until the end of a training step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from gingham.errors import Terminated


class StopRequest:
    """Whether this process should stop, and which signal requested it."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def stop(self) -> None:
        """Raise KeyboardInterrupt, or Terminated for SIGTERM."""
        raise Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def deferred_signals(*, ignore_repeats: bool = False) -> Iterator[StopRequest]:
    """Inside the block, record Ctrl-C and SIGTERM instead of ending the process at once.

    A second signal ends the process at once, unless `ignore_repeats` is True. Signals that already have a handler or
    are ignored are not changed. Outside the main thread nothing is changed, because Python does not allow signal
    handlers there.

        with deferred_signals() as stop_request:
            for batch in batches:
                ...
                if stop_request:
                    save(); stop_request.stop()
    """
    stop_request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        repeated, stop_request.signal = bool(stop_request), number
        if repeated and not ignore_repeats:
            stop_request.stop()

    before: dict[int, Any] = {}
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, default in defaults.items():
                if signal.getsignal(number) is default:
                    before[number] = signal.signal(number, handle)
        yield stop_request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
