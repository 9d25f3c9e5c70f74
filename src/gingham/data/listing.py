"""The list of image files in a folder or table, with the split and class of each."""

from dataclasses import dataclass
from pathlib import Path

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class Entry:
    """An image file with its split and class; `name` is its path as the user would write it."""

    split: str
    label: str
    name: str
    path: Path


@dataclass(frozen=True)
class Listing:
    """The image files of a folder or table, sorted by split, class and name, and the class folders without files."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty_folders: tuple[str, ...] = ()
