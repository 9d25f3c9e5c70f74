"""List the images of a folder that has one folder per class."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

from gingham.data.decode import SUFFIXES
from gingham.errors import DataError
from gingham.io import is_run_folder

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
SPLIT_ORDER = ("train", "validation", "test")
LABEL_SOURCES = ("folder", "parent", "name")
FOLDER_LAYOUT = "a folder of images for each class, directly or in train, validation and test folders"
SEPARATORS = r"[\s._()\[\]#-]*"  # around the number at the end of a name
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}  # in addition to names that start with a dot


class Entry(NamedTuple):
    """An image file with its split and class; `name` is its path as the user would write it."""

    split: str
    label: str
    name: str
    path: Path
    group: str = ""


def list_folder(folder: Path, label_from: str = "folder") -> tuple[list[Entry], list[tuple[str, str]]]:
    """Return the entries of a folder with one folder per class, and its odd folders and links: (name, what it is).

    `label_from` is that of `load_data`.
    """
    if label_from not in LABEL_SOURCES:
        raise DataError(f"label_from is {label_from!r}; allowed: {', '.join(LABEL_SOURCES)}")
    folders = _subfolders(folder)
    by_name = label_from == "name"
    splits = {path: _subfolders(path) for path in folders if path.name.lower() in SPLIT_NAMES}
    splits = {path: class_dirs for path, class_dirs in splits.items() if class_dirs or by_name}
    if splits:
        if unsorted := [p.name for p in folders if p not in splits and any(map(is_image_name, scan_folder(p)[1]))]:
            raise DataError(
                f"{folder} has images in {', '.join(unsorted[:3])} beside the split folder {next(iter(splits)).name}; "
                "move them into class folders in train, validation or test, or elsewhere"
            )
    elif all(path.name.lower() in SPLIT_NAMES for path in folders):
        folders = []  # split folders with images but without class folders
    entries, odd = list[Entry](), list[tuple[Path, str]]()
    for root, class_dirs in (splits or {folder: folders}).items():
        class_files = {path: list(walk_files(path)) for path in class_dirs}
        files = [file for found in class_files.values() for file in found]
        if by_name:  # other files have no class in their name
            files = list(filter(is_image_name, [*scan_folder(root)[1], *files]))
        else:
            odd += [(path, "is a class folder without images") for path, found in class_files.items() if not found]
        for file in files:
            name = unicodedata.normalize("NFC", "/".join(file.parts[len(folder.parts) :]))
            split = SPLIT_NAMES[root.name.lower()] if splits else "train"
            label = _label(name.partition("/")[2] if splits else name, label_from)
            entries.append(Entry(split, label, name, file))
    for root in (folder, *splits):
        dead = [path for path in scan_folder(root)[1] if path.is_symlink() and not path.exists()]
        odd += [(path, "is a link to a missing folder") for path in dead if not is_image_name(path)]
    if label_from == "parent":
        repeats = Counter(label.rpartition("/")[2] for label in {entry.label for entry in entries})
        short = {entry.label: leaf for entry in entries if repeats[leaf := entry.label.rpartition("/")[2]] == 1}
        entries = [entry._replace(label=short.get(entry.label, entry.label)) for entry in entries]
    return entries, [(path.relative_to(folder).as_posix(), what) for path, what in odd]


def _label(name: str, label_from: str) -> str:
    """Return the class of an image from its path in the folder of its split; "" if its name is only a number."""
    if label_from == "folder":
        return name.partition("/")[0]
    if label_from == "parent":
        return name.rpartition("/")[0]
    return re.sub(rf"{SEPARATORS}\d*{SEPARATORS}$", "", PurePosixPath(name).stem)


def is_image_name(path: PurePath | str) -> bool:
    """Return whether a path has the extension of an image file."""
    return PurePath(path).suffix.lower() in SUFFIXES


def _subfolders(folder: Path) -> list[Path]:
    """Return the subfolders that may be splits or classes: those that are not hidden and not written by gingham."""
    return [path for path in scan_folder(folder)[0] if not _contains_runs(path)]


def _contains_runs(folder: Path) -> bool:
    """Return whether a folder is a run or trials, or contains one, such as the folder `runs`, and is not a split."""
    inner = [] if folder.name.lower() in SPLIT_NAMES else scan_folder(folder)[0]
    return any(map(is_run_folder, [folder, *inner]))


def require_outside_classes(out: Path, data: Path) -> None:
    """Raise a DataError if a run in the folder `out` would hide a class of the folder `data`, or become one.

    Folders of runs that `list_folder` ignores are allowed, such as `data/fast-0` and `data/runs/fast-0`.
    """
    data, out = data.resolve(), out.resolve()
    if not out.is_relative_to(data):
        return
    parts = out.relative_to(data).parts
    top = data.joinpath(*parts[:1])
    files = [] if not top.is_dir() or _contains_runs(top) else walk_files(top)
    if len(parts) not in (1, 2) or any(map(is_image_name, files)):
        raise DataError(
            f"the run folder {out} is among the images of {data}, where it would count as a class or hide one; give "
            "another --out, outside that folder or in a new folder runs of it"
        )


def walk_files(folder: Path, skip: Callable[[Path], bool] = lambda folder: False) -> Iterator[Path]:
    """Yield all files in a folder and its folders, without hidden ones and those in folders to `skip`.

    A folder that several links lead to is visited once, under the first of its names. Loops of links therefore end, and
    links to links do not give millions of paths.
    """
    visited: set[tuple[int, int]] = set()
    stack = [folder]
    while stack:
        current = stack.pop()
        folders, files = scan_folder(current)
        status = current.stat()
        if (identity := (status.st_dev, status.st_ino)) not in visited:
            visited.add(identity)
            yield from files
            stack += [path for path in reversed(folders) if not skip(path)]


def scan_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the folders, and links to folders, and the files in a folder, each by name, without hidden ones."""
    contents: tuple[list[Path], list[Path]] = [], []
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in IGNORED]
    except FileNotFoundError:
        raise DataError(f"there is no folder {folder}; give a folder of images, or a .csv table that exists") from None
    except OSError as error:
        raise DataError(f"cannot list {folder} ({error.strerror}); check its permissions") from error
    for entry in sorted(visible, key=lambda entry: entry.name):
        # is_dir() of a link that cannot be followed, such as one to itself, raises an error.
        is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # noqa: PTH112
        contents[not is_folder].append(folder / entry.name)
    return contents
