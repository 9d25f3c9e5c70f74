"""How commands print: results to stdout, messages to stderr, figures to files."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gingham.errors import GinghamError, format_message

if TYPE_CHECKING:
    from gingham.data.splits import DataSplits


CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # cannot be set, unlike the time of day
STARTED = time.clock_gettime(CLOCK)


def wall_seconds() -> float:
    """Return the seconds since this process started, including Python's own start, by a clock that cannot be set."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        start = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        start = STARTED
    if not 0 <= STARTED - start < 60:  # a container may report another machine's times
        start = STARTED
    return time.clock_gettime(CLOCK) - start


def print_message(text: str) -> None:
    """Print a message that is not a result to stderr; in a distributed training only process 0 prints."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):  # a full disk must not stop the command
        print(text, file=sys.stderr)


def print_notes(splits: "DataSplits") -> None:
    """Print the notes from loading the data, one per line."""
    for note in splits.notes:
        print_message(note)


def print_json(value: object) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_pairs(*pairs: tuple[str, object]) -> None:
    """Print labels and texts in two columns, with unprintable characters escaped, because the texts may come from files."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label:<{width}}  {format_message(str(text))}")


def format_seconds(value: float | None) -> str:
    """Return seconds as text, or `-` if they are unknown."""
    return "-" if value is None else f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


def format_times(count: int) -> str:
    """Return "once" or "N times"."""
    return "once" if count == 1 else f"{count} times"


def try_draw(draw: Callable[..., Path], *arguments: Any, **options: Any) -> str | None:
    """Draw a figure and return its path, or print to stderr why it cannot be written and return None: the result still counts."""
    try:
        return str(draw(*arguments, **options))
    except GinghamError as error:
        print_message(f"gingham: no figure: {error}")
        return None
