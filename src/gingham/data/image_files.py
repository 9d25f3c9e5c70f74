"""List and read datasets of image files, from a folder or a table."""

import sys
from pathlib import Path

import numpy as np

from gingham.data.image_folder import list_folder
from gingham.data.listing import SPLIT_ORDER, Listing
from gingham.data.pack_cache import read_images
from gingham.data.raw import RawDataset
from gingham.data.table import list_table
from gingham.errors import DataError
from gingham.text import is_plain_name, natural_key


def list_images(path: Path, *, training: bool = True) -> Listing:
    """Return the image files of a folder of class folders, or of a `.csv` table of paths and labels.

    With `training`, some must be training images; photos to evaluate a model on may all be in a test folder.

    Raises
        DataError: no class folders, folders that could be either splits or classes, or an invalid table.
    """
    entries, empty = list_table(path, training) if path.is_file() else list_folder(path, training)
    for entry in entries:
        if not is_plain_name(entry.label):
            raise DataError(f"{path} has a class of the name {entry.label!r}; rename it, in plain letters of UTF-8")
    classes = sorted({entry.label for entry in entries}, key=natural_key)
    class_index = {name: index for index, name in enumerate(classes)}
    entries.sort(key=lambda entry: (SPLIT_ORDER.index(entry.split), class_index[entry.label], natural_key(entry.name)))
    return Listing(tuple(entries), tuple(classes), tuple(empty))


def read_image_dataset(path: Path, size: int, *, skip_unreadable: bool) -> RawDataset:
    """Return the images of a folder of class folders or of a `.csv` table as a RawDataset, with the splits it has.

    Raises
        DataError: see `list_images` and `read_images`; also a class folder without files, or unreadable files unless
            `skip_unreadable`.
    """
    listing = list_images(path)
    if listing.empty_folders:
        raise DataError(
            f"the class folder {listing.empty_folders[0]} of {path} is empty; put pictures into it, or remove it"
        )
    decoded = read_images(path, listing, size)
    unreadable = decoded.unreadable()
    examples = ", ".join(f"{_printable(name)} ({reason})" for name, reason in unreadable[:3])
    examples += f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    if unreadable and not skip_unreadable:
        raise DataError(
            f"{len(unreadable)} of the {len(listing.entries)} files of {path} cannot be read as pictures: {examples}; "
            "mend or remove them, or leave them out with --skip-unreadable (of train, trials and show)"
        )
    notes = [f"{len(unreadable)} of the {len(listing.entries)} files are left out: {examples}"] if unreadable else []
    if not (decoded.from_pack or sys.stderr.isatty()):
        notes.insert(0, f"read {len(decoded.entries)} pictures of {path}")
    class_index = {name: k for k, name in enumerate(listing.classes)}
    labels = np.array([class_index[entry.label] for entry in decoded.entries], np.int64)
    test_start = next((k for k, entry in enumerate(decoded.entries) if entry.split == "test"), len(labels))
    has_test = any(entry.split == "test" for entry in listing.entries)
    files = tuple(_printable(entry.name) for entry in decoded.entries)
    return RawDataset(
        decoded.images[:test_start],
        labels[:test_start],
        listing.classes,
        decoded.images[test_start:] if has_test else None,
        labels[test_start:] if has_test else None,
        sum(entry.split == "validation" for entry in decoded.entries),
        files[:test_start],
        files[test_start:],
        tuple(notes),
    )


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file name may be invalid UTF-8
