"""The list of image files in a folder or table, with the split and class of each."""

from dataclasses import dataclass
from pathlib import Path

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """A picture's file, with the split and the class it is of; `name` is its path as the user would write it."""

    split: str
    label: str
    name: str
    file: Path


@dataclass(frozen=True)
class Listing:
    """The picture files of a place, ordered by split, class and name, whatever the order on disk; `empty` class folders."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()
