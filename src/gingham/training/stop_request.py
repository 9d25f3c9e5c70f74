"""Ctrl-C and SIGTERM, deferred until the end of a training step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from gingham.errors import Terminated


class Asked:
    """Whether this process has been asked to end, and by which signal."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def stop(self) -> None:
        """Raise what the signal means: KeyboardInterrupt, or Terminated for SIGTERM."""
        raise Terminated if self.number == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def postponed(*, patient: bool = False) -> Iterator[Asked]:
    """Take note of Ctrl-C and SIGTERM in place of ending at once, as long as the block lasts.

    The second Ctrl-C ends at once all the same, unless `patient`. A signal that someone else handles, or has told to be ignored, is
    left to them, and all are left outside the main thread, which alone may handle signals.

        with postponed() as asked:
            for batch in batches:
                ...
                if asked:
                    save(); asked.stop()
    """
    asked = Asked()

    def note(number: int, frame: FrameType | None) -> None:
        again, asked.number = bool(asked), number
        if again and not patient:
            asked.stop()

    before: dict[int, Any] = {}
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    try:
        if threading.current_thread() is threading.main_thread():
            for number, default in defaults.items():
                if signal.getsignal(number) is default:
                    before[number] = signal.signal(number, note)
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
