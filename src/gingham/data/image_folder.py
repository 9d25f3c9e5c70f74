"""List the images of a folder that has one folder per class."""

import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gingham.data.decode import SUFFIXES
from gingham.errors import DataError
from gingham.io import is_run_folder

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
FOLDER_LAYOUT = "a folder of images for each class, directly or in train, validation and test folders"
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}  # in addition to names that start with a dot


class Entry(NamedTuple):
    """An image file with its split and class; `name` is its path as the user would write it."""

    split: str
    label: str
    name: str
    path: Path


def list_folder(folder: Path) -> tuple[list[Entry], list[str]]:
    """Return the entries of a folder with one folder per class, and the paths of its empty class folders."""
    folders = _subfolders(folder)
    split_dirs = [path for path in folders if path.name.lower() in SPLIT_NAMES and _subfolders(path)]
    if split_dirs:
        if others := [path.name for path in folders if path not in split_dirs and _contains_images(path)]:
            raise DataError(
                f"{folder} has images in {', '.join(others[:3])} beside the split folder {split_dirs[0].name}; "
                "move them into class folders in train, validation or test, or elsewhere"
            )
    elif all(path.name.lower() in SPLIT_NAMES for path in folders):
        folders = []  # split folders with images but without class folders
    class_dirs = [(SPLIT_NAMES[path.name.lower()], child) for path in split_dirs for child in _subfolders(path)]
    entries, empty = list[Entry](), list[str]()
    for split, class_dir in class_dirs or [("train", child) for child in folders]:
        files = list(walk_files(class_dir))
        label = unicodedata.normalize("NFC", class_dir.name)
        names = [unicodedata.normalize("NFC", file.relative_to(folder).as_posix()) for file in files]
        entries += [Entry(split, label, name, file) for name, file in zip(names, files, strict=True)]
        if not files:
            empty.append(class_dir.relative_to(folder).as_posix())
    return entries, empty


def _subfolders(folder: Path) -> list[Path]:
    """Return the subfolders that may be splits or classes: those that are not hidden and not written by gingham."""
    return [path for path, is_folder in _scan(folder) if is_folder and not _contains_runs(path)]


def _contains_runs(folder: Path) -> bool:
    """Return whether a folder is a run or trials, or contains one, such as the folder `runs`, and is not a split."""
    inner = [] if folder.name.lower() in SPLIT_NAMES else [path for path, is_folder in _scan(folder) if is_folder]
    return any(map(is_run_folder, [folder, *inner]))


def _contains_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path, _ in _scan(folder))


def walk_files(folder: Path, skip: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """Yield all files in a folder and its folders, without hidden ones and those in folders to `skip`.

    A folder that several links lead to is visited once, under the first of its names. Loops of links therefore end, and
    links to links do not give millions of paths.
    """
    visited: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        contents = sorted(_scan(current))
        status = current.stat()
        if (identity := (status.st_dev, status.st_ino)) not in visited:
            visited.add(identity)
            yield from (path for path, is_folder in contents if not is_folder)
            stack += [path for path, is_folder in reversed(contents) if is_folder and not skip(path)]


def _scan(folder: Path) -> list[tuple[Path, bool]]:
    """Return the paths in a folder that are not hidden, and whether each is a folder or a link to one."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in IGNORED]
            return [(folder / entry.name, _is_folder(entry)) for entry in visible]
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}; give a folder of images, or a .csv table that exists") from None
    except OSError as error:
        raise DataError(f"cannot list {folder} ({error.strerror}); check its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one. A link that cannot be followed is an unreadable file."""
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself
        return False
