"""How commands print: results to stdout, messages to stderr, figures to files."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gingham.errors import GinghamError, sentence

if TYPE_CHECKING:
    from gingham.data.splits import DataSplits


CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # that nobody sets, unlike the time of day
STARTED = time.clock_gettime(CLOCK)


def wall_seconds() -> float:
    """Return the seconds since this process began, before Python read its first import; by a clock that nobody sets."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        start = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        start = STARTED
    if not 0 <= STARTED - start < 60:  # a container may show another machine's times
        start = STARTED
    return time.clock_gettime(CLOCK) - start


def print_message(text: str) -> None:
    """Print to stderr, where everything goes that is not a result; of processes that train together the first speaks for all."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):  # a disk that is full must not end what goes well
        print(text, file=sys.stderr)


def print_notes(data: "DataSplits") -> None:
    """Print what loading data has to tell, a line each."""
    for note in data.notes:
        print_message(note)


def print_json(value: object) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_pairs(*pairs: tuple[str, object]) -> None:
    """Print labels and texts in two columns; what a file says of itself may be among them, and is kept from the terminal."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label:<{width}}  {sentence(str(text))}")


def format_seconds(value: float | None) -> str:
    """Return seconds as text, `-` where they are not known."""
    return "-" if value is None else f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


def format_times(number: int) -> str:
    """Return how often, in words."""
    return "once" if number == 1 else f"{number} times"


def try_draw(draw: Callable[..., Path], *arguments: Any, **options: Any) -> str | None:
    """Draw a figure and return its path; where it cannot be written print why to stderr and return None, as the result still counts."""
    try:
        return str(draw(*arguments, **options))
    except GinghamError as error:
        print_message(f"gingham: no figure: {error}")
        return None
