"""Helpers for text: aligned tables, readable numbers and durations, natural sorting and valid names."""

import io
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text. The first column and columns whose name ends in `<` are left-aligned, others right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    for index, column in enumerate(columns):
        left = index == 0 or column.endswith("<")
        table.add_column(Text(column.removesuffix("<")), justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # not as a string, which may contain markup
    buffer = io.StringIO()
    # In a notebook, rich would display the table instead of writing it.
    plain: Any = {"color_system": None, "force_terminal": False, "force_jupyter": False, "legacy_windows": False}
    Console(file=buffer, width=10_000, **plain).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines() if line.strip())


def count(number: float, unit: str = "") -> str:
    """Return a number with three digits and K, M or G, such as `48.9 K`. Numbers below 10,000 are written in full.

    >>> count(48884), count(784), count(19_312_640, "B")
    ('48.9 K', '784', '19.3 MB')
    """
    if number < 10_000:
        return f"{number:,.0f} {unit}".rstrip()
    power, letter = next(pair for pair in ((9, "G"), (6, "M"), (3, "K")) if number >= 10 ** pair[0])
    value = number / 10**power
    return f"{value:,.{max(0, 3 - len(str(int(value))))}f} {letter}{unit}"


def format_threshold(value: float) -> str:
    """Return a threshold for probabilities, with more digits if it is close to 1.

    >>> format_threshold(0.8416), format_threshold(0.99941)
    ('0.84', '0.9994')
    """
    return f"{value:.2f}" if value < 0.995 else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return a duration in seconds, or in minutes and seconds from two minutes on.

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
    """Return a sort key that compares numbers in names by their value, independent of the locale.

    >>> sorted(["10", "2", "b1", "B2"], key=natural_key)
    ['2', '10', 'B2', 'b1']
    """
    # Text and digits alternate, so only equal types are compared. Numbers may have more digits than int() accepts.
    parts = re.split("0*([0-9]+)", name)
    key: list[Any] = [(len(part), part) if index % 2 else part for index, part in enumerate(parts)]
    return key, name


def is_plain_name(name: str) -> bool:
    """Return whether a class may have this name: not empty, without line breaks or control characters, valid UTF-8."""
    return bool(name) and not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
