"""Print the output of commands: results to stdout, messages to stderr, figures to files."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gingham.errors import GinghamError, format_message

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _clock() -> float:
    """Return seconds by a clock that cannot be set, unlike the time of day: on Linux the one of /proc."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


STARTED = _clock()


def wall_seconds() -> float:
    """Return the seconds since this process started, including the start of Python, by a clock that cannot be set."""
    start = STARTED
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        start = ticks / os.sysconf("SC_CLK_TCK")
    if not 0 <= STARTED - start < 60:  # a container may report another machine's times
        start = STARTED
    return _clock() - start


def print_message(text: str) -> None:
    """Print a message that is not a result to stderr; in a distributed training only process 0 prints."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):  # a full disk must not stop the command
        print(text, file=sys.stderr)


def print_result(value: object, text: object, as_json: bool) -> None:
    """Print a result to stdout: `value` as JSON, or else `text`."""
    print(format_json(value) if as_json else text, flush=True)


def format_json(value: object) -> str:
    """Return JSON in one line; letters that stdout may not be able to encode are escaped."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return json.dumps(value, ensure_ascii=not is_utf8, allow_nan=False)


def format_pairs(pairs: dict[str, object]) -> str:
    """Return labels and texts in two columns. Texts may come from files, so unprintable characters are escaped."""
    width = max(map(len, pairs))
    return "\n".join(f"{label:<{width}}  {format_message(str(text))}" for label, text in pairs.items())


def try_draw(draw: "Callable[[], Figure]", file: Path) -> str | None:
    """Write a figure and return its path, or print why it cannot be written and return None: this is not an error."""
    from gingham.figures import write_figure

    try:
        return str(write_figure(draw(), file))
    except GinghamError as error:
        print_message(f"gingham: no figure: {error}")
        return None
