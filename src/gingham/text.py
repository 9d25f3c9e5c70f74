"""Text helpers: aligned tables, numbers and durations for people, natural sorting, printable names."""

import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def render(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: the first column to the left, numbers to the right. A name ending in `<` goes left too."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    for index, column in enumerate(columns):
        left = index == 0 or column.endswith("<")
        table.add_column(column.removesuffix("<"), justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    text = io.StringIO()
    Console(file=text, width=10_000, color_system=None, force_terminal=False, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def count(number: float, unit: str = "") -> str:
    """Return a number in three digits with K, M or G, such as `48.9 K`; below 10,000 in full.

    >>> count(48884), count(784), count(19_312_640, "B")
    ('48.9 K', '784', '19.3 MB')
    """
    if number < 10_000:
        return f"{number:,.0f} {unit}".rstrip()
    for power, letter in ((9, "G"), (6, "M"), (3, "K")):
        value = number / 10**power
        if value >= 1:
            return f"{value:,.{max(0, 3 - len(str(int(value))))}f} {letter}{unit}"
    raise AssertionError(number)


def duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> duration(0.5731), duration(57.94), duration(1181.7)
    ('0.57 s', '57.9 s', '19 min 42 s')
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def natural_key(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return what sorts names as people do, numbers by their value, whatever the locale.

    >>> sorted(["10", "2", "b1", "B2"], key=natural_key)
    ['2', '10', 'B2', 'b1']
    """
    # Text and digits alternate, so that like is compared with like; a number may be longer than int() takes.
    parts = re.split("([0-9]+)", name)
    key: list[Any] = [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part for place, part in enumerate(parts)]
    return key, name


def is_plain_name(name: str) -> bool:
    """Return whether a class may be called so: in letters that are shown on one line and can be written as UTF-8."""
    return bool(name) and not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)
