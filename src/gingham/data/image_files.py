"""List and read datasets of image files, from a folder or a table."""

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gingham.data.decode import UNREADABLE
from gingham.data.image_folder import FOLDER_LAYOUT, SPLIT_NAMES, Entry, list_folder
from gingham.data.pack_cache import read_images
from gingham.data.raw import Part, RawDataset
from gingham.data.table import TABLE_LAYOUT, list_table
from gingham.errors import DataError
from gingham.text import natural_key

SPLIT_ORDER = list(dict.fromkeys(SPLIT_NAMES.values()))


class Listing(NamedTuple):
    """The image files of a folder or table, sorted by split, class and name, and the class folders without files."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty_folders: tuple[str, ...]


def list_images(path: Path, *, training: bool = True) -> Listing:
    """Return the image files of a folder of class folders, or of a `.csv` table of paths and labels.

    With `training`, at least one must be a training image. Without it, all may be in a test folder, such as photos to
    evaluate a model on.

    Raises
        DataError: no images, folders that could be either splits or classes, or an invalid table.
    """
    is_table = path.is_file()
    entries, empty = (list_table(path), []) if is_table else list_folder(path)
    if not any(entry.split == "train" or not training for entry in entries):
        layout = TABLE_LAYOUT if is_table else FOLDER_LAYOUT
        raise DataError(f"found no {'training ' * training}images in {path}; it needs {layout}")
    classes = sorted({entry.label for entry in entries}, key=natural_key)
    entries.sort(key=lambda entry: (SPLIT_ORDER.index(entry.split), natural_key(entry.label), natural_key(entry.name)))
    return Listing(tuple(entries), tuple(classes), tuple(empty))


def read_image_dataset(path: Path, size: int, *, skip_unreadable: bool) -> RawDataset:
    """Return the images of a folder of class folders or of a `.csv` table as a RawDataset, with the splits it has.

    Raises
        DataError: see `list_images` and `read_images`; also a class folder without files, or unreadable files unless
            `skip_unreadable`.
    """
    listing = list_images(path)
    if listing.empty_folders:
        empty = listing.empty_folders[0]
        raise DataError(f"the class folder {empty} of {path} is empty; put images into it, or remove it")
    raw, issues = read_listing(path, listing, size)
    unreadable = [f"{name} ({why.removeprefix(UNREADABLE)})" for name, why in issues if why.startswith(UNREADABLE)]
    if not unreadable:
        return raw
    count = f"{len(unreadable)} of the {len(listing.entries)} files"
    examples = ", ".join(unreadable[:3]) + (f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else "")
    if not skip_unreadable:
        raise DataError(
            f"{count} of {path} cannot be read as images: {examples}; fix or remove them, or leave them out "
            "with skip_unreadable (train, trials and show: --skip-unreadable)"
        )
    return raw._replace(notes=(*raw.notes, f"{count} are left out: {examples}"))


def read_listing(path: Path, listing: Listing, size: int) -> tuple[RawDataset, list[tuple[str, str]]]:
    """Return the readable images of a listing of `path`, with its splits, and the issues of its files: (name, reason).

    Raises
        DataError: see `read_images`.
    """
    decoded = read_images(path, [entry.path for entry in listing.entries], size)
    notes = [] if decoded.cached or sys.stderr.isatty() else [f"read {len(decoded.images)} images of {path}"]
    if (bits := decoded.grey_bits) < 16:
        notes.append(f"the 16-bit images of {path} use {bits} bits: {(1 << bits) - 1} is white, also for predict")
    missing = {*decoded.missing}
    entries = [entry for k, entry in enumerate(listing.entries) if k not in missing]
    class_index = {name: k for k, name in enumerate(listing.classes)}
    labels = np.array([class_index[entry.label] for entry in entries], np.int64)
    images = Part(decoded.images, labels, tuple(_printable(entry.name) for entry in entries))
    counts = Counter(entry.split for entry in entries)
    test_start = counts["train"] + counts["validation"]
    parts = {"training": images.rows(slice(test_start))}
    if listing.entries[-1].split == "test":  # entries are sorted by split, so test images are last
        parts["test"] = images.rows(slice(test_start, None))
    issues = [(_printable(listing.entries[k].name), reason) for k, reason in decoded.issues]
    return RawDataset(parts, listing.classes, counts["validation"], tuple(notes), decoded.grey_bits), issues


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file name may be invalid UTF-8
