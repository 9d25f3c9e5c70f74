"""List and read datasets of image files, from a folder or a table."""

import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from gingham.data.decode import UNREADABLE
from gingham.data.image_folder import FOLDER_LAYOUT, SPLIT_ORDER, Entry, list_folder
from gingham.data.pack_cache import read_images
from gingham.data.raw import Part, RawDataset
from gingham.data.table import TABLE_LAYOUT, find_tables, list_tables
from gingham.errors import DataError, list_first
from gingham.text import natural_key


class Listing(NamedTuple):
    """The image files of a folder or table, sorted by split, class and name.

    `odd` are class folders without files, and links to missing folders: their names, and what they are.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    odd: tuple[tuple[str, str], ...]


def list_images(path: Path, *, training: bool = True, label_from: str = "folder") -> Listing:
    """Return the image files of a folder of class folders, or of one or more tables of paths and labels.

    With `training`, at least one must be a training image. Without it, all may be in a test folder, such as photos to
    evaluate a model on. `label_from` is that of `load_data`.

    Raises
        DataError: no images, folders that could be either splits or classes, or an invalid table.
    """
    tables = find_tables(path)
    entries, odd = (list_tables(tables), []) if tables else list_folder(path, label_from)
    if not any(entry.split == "train" or not training for entry in entries):
        layout = TABLE_LAYOUT if tables else FOLDER_LAYOUT
        found = "".join(f" ({name} {what})" for name, what in odd[:1])
        advice = "; if their names begin with the class, as in cat_1.jpg, give label_from='name' (--label-from name)"
        advice *= path.is_dir() and len({entry.label for entry in list_folder(path, "name")[0]} - {""}) > 1
        raise DataError(f"found no {'training ' * training}images in {path}{found}; it needs {layout}{advice}")
    if unnamed := next((entry.name for entry in entries if not entry.label), None):
        raise DataError(f"{unnamed} of {path} has no class in its name; give it one, as in cat_1.jpg, or remove it")
    classes = sorted({entry.label for entry in entries}, key=natural_key)
    order = {name: k for k, name in enumerate(classes)}
    entries.sort(key=lambda entry: (SPLIT_ORDER.index(entry.split), order[entry.label], natural_key(entry.name)))
    return Listing(tuple(entries), tuple(classes), tuple(odd))


def count_formats(names: Iterable[str]) -> str:
    """Return the number of files of each extension, the most common first, such as ".txt 3, .mp4 1"."""
    counts = Counter(PurePath(name).suffix.lower() or "no extension" for name in names)
    return ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common())


def read_image_dataset(path: Path, size: int, *, skip_unreadable: bool, label_from: str = "folder") -> RawDataset:
    """Return the images of a folder of class folders or of tables as a RawDataset, with the splits it has.

    Raises
        DataError: see `list_images` and `read_images`; also a class folder without files, a link to a missing folder,
            or unreadable files unless `skip_unreadable`.
    """
    listing = list_images(path, label_from=label_from)
    for name, what in listing.odd:
        raise DataError(f"{name} of {path} {what}; put images there, or remove it")
    raw, issues = read_listing(path, listing, size)
    reasons = {name: why.removeprefix(UNREADABLE) for name, why in issues if why.startswith(UNREADABLE)}
    unreadable = [f"{name} ({why})" for name, why in reasons.items()]
    if not unreadable:
        return raw
    count = f"{len(unreadable)} of the {len(listing.entries)} files"
    examples = f"({count_formats(reasons)}): {list_first(unreadable, 3)}"
    if not skip_unreadable:
        raise DataError(
            f"{count} of {path} cannot be read as images {examples}; fix or remove them, or leave them out with "
            "skip_unreadable (train, trials and show: --skip-unreadable)"
        )
    verb = "is" if len(unreadable) == 1 else "are"
    return raw._replace(notes=(*raw.notes, f"{count} {verb} left out {examples}"))


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
    groups = tuple(entry.group for entry in entries) if any(entry.group for entry in entries) else ()
    images = Part(decoded.images, labels, tuple(_printable(entry.name) for entry in entries), groups)
    counts = Counter(entry.split for entry in entries)
    test_start = counts["train"] + counts["validation"]
    parts = {"training": images.rows(slice(test_start))}
    if listing.entries[-1].split == "test":  # entries are sorted by split, so test images are last
        parts["test"] = images.rows(slice(test_start, None))
    issues = [(_printable(listing.entries[k].name), reason) for k, reason in decoded.issues]
    return RawDataset(parts, listing.classes, counts["validation"], tuple(notes), decoded.grey_bits), issues


def _printable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file name may be invalid UTF-8
