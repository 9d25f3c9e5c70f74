"""Datasets of image files: list them, from a folder or a table, and read them."""

import sys
from pathlib import Path

import numpy as np

from gingham.data.image_folder import list_folder
from gingham.data.listing import ORDER, Listing
from gingham.data.pack_cache import read_images
from gingham.data.raw import RawDataset
from gingham.data.table import list_table
from gingham.errors import DataError
from gingham.text import is_plain_name, natural_key


def list_images(place: Path, *, training: bool = True) -> Listing:
    """Return the picture files of a folder of class folders, or of a `.csv` table of paths and labels.

    With `training` some of them must be to train on; photographs to measure a model on may all lie in a test folder.

    Raises
        DataError: no class folders, folders that could be either splits or classes, or a table that is none.
    """
    entries, empty = list_table(place, training) if place.is_file() else list_folder(place, training)
    for entry in entries:
        if not is_plain_name(entry.label):
            raise DataError(f"{place} has a class of the name {entry.label!r}; rename it, in plain letters of UTF-8")
    classes = sorted({entry.label for entry in entries}, key=natural_key)
    number = {name: place for place, name in enumerate(classes)}
    entries.sort(key=lambda entry: (ORDER.index(entry.split), number[entry.label], natural_key(entry.name)))
    return Listing(tuple(entries), tuple(classes), tuple(empty))


def read_image_dataset(place: Path, size: int, *, skip_unreadable: bool) -> RawDataset:
    """Return the pictures of a folder of class folders or of a `.csv` table as a Raw, with the splits it has.

    Raises
        DataError: as `list_images` and `read_images`; a class folder without files; files that cannot be read, unless
            `skip_unreadable`.
    """
    listing = list_images(place)
    if listing.empty:
        raise DataError(f"the class folder {listing.empty[0]} of {place} is empty; put pictures into it, or remove it")
    found = read_images(place, listing, size)
    unreadable = found.unreadable()
    named = ", ".join(f"{_readable(name)} ({reason})" for name, reason in unreadable[:3])
    named += f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    if unreadable and not skip_unreadable:
        raise DataError(
            f"{len(unreadable)} of the {len(listing.entries)} files of {place} cannot be read as pictures: {named}; mend or "
            "remove them, or leave them out with --skip-unreadable (of train, trials and show)"
        )
    notes = [f"{len(unreadable)} of the {len(listing.entries)} files are left out: {named}"] if unreadable else []
    if not (found.from_pack or sys.stderr.isatty()):
        notes.insert(0, f"read {len(found.entries)} pictures of {place}")
    number = {name: k for k, name in enumerate(listing.classes)}
    labels = np.array([number[entry.label] for entry in found.entries], np.int64)
    test = next((k for k, entry in enumerate(found.entries) if entry.split == "test"), len(labels))
    tested = any(entry.split == "test" for entry in listing.entries)
    files = tuple(_readable(entry.name) for entry in found.entries)
    return RawDataset(
        found.images[:test],
        labels[:test],
        listing.classes,
        found.images[test:] if tested else None,
        labels[test:] if tested else None,
        sum(entry.split == "validation" for entry in found.entries),
        files[:test],
        files[test:],
        tuple(notes),
    )


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a name on disk may be no text at all
