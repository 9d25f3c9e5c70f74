"""Load a dataset by its name or from the user's own files."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gingham.data.cifar import find_cifar, read_cifar
from gingham.data.decode import resize_images
from gingham.data.idx import IDX_FILES, find_idx, read_idx_folder
from gingham.data.image_files import list_images, read_image_dataset
from gingham.data.memory import free_memory
from gingham.data.npz import read_npz
from gingham.data.pack_cache import read_images
from gingham.data.raw import RawDataset, raw_from_arrays
from gingham.data.registry import REGISTRY, read_registered
from gingham.data.splits import DataSplits, cut_splits, make_split
from gingham.errors import DataError, suggest
from gingham.text import is_plain_name

FEWEST_CLASSES, MOST_CLASSES = 2, 10_000
LARGEST_SIDE = 4096


def load_data(
    name: str = "fashion-mnist",
    validation: int = 5000,
    classes: tuple[str, ...] | None = None,
    *,
    size: int = 0,
    skip_unreadable: bool = False,
) -> DataSplits:
    """Return a dataset's training, validation and test split.

    `name` is a published dataset, verified by its checksums (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced and its
    other splits, cifar-10), or data of one's own: a folder with a folder of pictures for each class, in it or in train,
    validation and test folders in it; a `.csv` table of paths and labels; a `.npz` file of arrays; a folder with the four
    IDX files of MNIST's layout, or with CIFAR-10's binary files.

    `validation` pictures, stratified by class and fixed per dataset whatever the seed, are cut from the training data; 0
    holds none out. Of data of one's own at most a fifth is held out, and a validation split it comes with is taken whole, or
    joined to the training data with 0. Where there is no test split, 15 % of each class become one, chosen by a hash of
    class and file name, so that a picture's split depends on nothing else.

    `size` is the side in pixels of the square pictures that image files become, in their own proportions (`fit_square`); 0
    keeps their own where all are squares of one size up to 64, and is 28 otherwise. Other data is resized only if `size`
    says so. An image file that cannot be read is an error, or left out with `skip_unreadable`. `classes` names the labels
    0 to K-1 of data that has numbers alone, and gives the order where it has names.

    A published dataset is looked for in `$GINGHAM_DATA`, the user's cache, the system package, and then downloaded.

        data = load_data("fashion-mnist")
        len(data.train), len(data.validation), len(data.test)   # 55000, 5000, 10000
        data.train.images.shape, data.train.images.dtype        # (55000, 1, 28, 28), uint8

    Raises
        DataError: an unknown name; a file missing, unreadable, damaged or of another dataset; classes that a split lacks;
            too few pictures.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST" (arXiv 1708.07747).
    """
    if not 0 <= size <= LARGEST_SIDE:
        raise DataError(
            f"pictures of size {size} were asked for; allowed: 1 to {LARGEST_SIDE} pixels, or 0 to leave it to the data"
        )
    if name in REGISTRY:
        raw, folder = read_registered(name)
        source = str(folder)
    else:
        raw = _read_own(name, size, skip_unreadable)
        source = name = str(Path(name).resolve())
        if classes is not None:
            raw = _renamed(raw, classes, name)
        _require_classes(raw.classes, name)
    raw = _resized(raw, size, name)
    return cut_splits(raw, name, source, validation, size, skip_unreadable)


def _read_own(name: str, size: int, skip_unreadable: bool) -> RawDataset:
    place = Path(name).resolve() if name else None
    if place is None or not place.exists():
        raise DataError(
            f"unknown dataset {name!r}{suggest(name, REGISTRY)}, a folder of class folders, a .csv of paths and labels, a .npz file, "
            f"or a folder with the files {', '.join(IDX_FILES)}"
        )
    if is_image_collection(place):
        raw = read_image_dataset(place, size, skip_unreadable=skip_unreadable)
    elif place.suffix.lower() == ".npz":
        raw = read_npz(place)
    elif cifar := find_cifar(place):
        return read_cifar(cifar, REGISTRY["cifar-10"].classes)
    elif place.is_dir():
        arrays = read_idx_folder(place)
        return raw_from_arrays(arrays, tuple(str(label) for label in range(int(max(arrays[1].max(), arrays[3].max())) + 1)))
    else:
        raise DataError(
            f"{place} is no dataset; give a folder of class folders, a .csv of paths and labels, a .npz file, a folder of IDX "
            f"files, or one of: {', '.join(REGISTRY)}"
        )
    _require_all_classes(raw, str(place))
    return raw


def is_image_collection(place: Path) -> bool:
    """Return whether a place holds pictures in files of their own: a `.csv` table, or a folder of no other kind."""
    if place.is_dir():
        return all(find_idx(place, file) is None for file in IDX_FILES) and find_cifar(place) is None
    return place.suffix.lower() == ".csv" and place.exists()


def load_unchecked(name: str) -> tuple[DataSplits, list[tuple[str, str]]]:
    """Return data to be examined, its validation split apart, and what is odd about its files, as (file, reason).

    Unlike `load_data`, a folder or table of pictures is taken as it is: files that cannot be read are left out, classes
    may be missing, and no test split is cut.

    Raises
        DataError: as `load_data`, but for that; no picture that can be read.
    """
    place = Path(name).resolve()
    if name in REGISTRY or not is_image_collection(place):
        return load_data(name, validation=0), []
    listing = list_images(place)
    _require_classes(listing.classes, str(place))
    found = read_images(place, listing, 0)
    if found.entries[0].split != "train":
        raise DataError(f"{place} holds no training picture that can be read; see that its files are whole")
    number = {label: k for k, label in enumerate(listing.classes)}
    splits = {}
    for title in ("train", "validation", "test"):
        rows = [k for k, entry in enumerate(found.entries) if entry.split == title]
        start, stop = (rows[0], rows[-1] + 1) if rows else (0, 0)  # a listing is ordered by split
        entries = found.entries[start:stop]
        labels = np.array([number[entry.label] for entry in entries], np.int64)
        names = tuple(entry.name for entry in entries)
        splits[title] = make_split(title, found.images[start:stop], labels, listing.classes, str(place), names)
    odd = [*found.odd, *((folder, "is a class folder without a picture") for folder in listing.empty)]
    held_out = splits["validation"] if len(splits["validation"]) else None
    return DataSplits(str(place), splits["train"], held_out, splits["test"], listing.classes, "", str(place)), odd


def _renamed(raw: RawDataset, classes: tuple[str, ...], name: str) -> RawDataset:
    """The labels by the names that a model has for them, where they are numbers or a part of those names."""
    number = {label: k for k, label in enumerate(classes)}
    if set(raw.classes) <= set(number):
        order = np.array([number[label] for label in raw.classes], np.int64)
    elif all(label.isdecimal() for label in raw.classes):
        order = np.array([int(label) for label in raw.classes], np.int64)
        if order.max() >= len(classes):
            raise DataError(
                f"{name} has labels up to {order.max()}, where {len(classes)} classes are known; allowed: 0 to {len(classes) - 1}"
            )
    else:
        return raw
    test_labels = None if raw.test_labels is None else order[raw.test_labels]
    return dataclasses.replace(raw, labels=order[raw.labels], test_labels=test_labels, classes=classes)


def _require_classes(classes: Sequence[str], name: str) -> None:
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"{name} has {len(classes)} classes; allowed: {FEWEST_CLASSES} to {MOST_CLASSES:,}: give each class its folder, or its label"
        )
    if odd := [label for label in classes if not is_plain_name(label)]:
        raise DataError(f"{name} has a class of the name {odd[0]!r}; rename it, in plain letters of UTF-8")


def _require_all_classes(raw: RawDataset, name: str) -> None:
    train = len(raw.labels) - raw.validation
    parts = {"training": raw.labels[:train], "validation": raw.labels[train:], "test": raw.test_labels}
    for title, labels in parts.items():
        if labels is None or (title == "validation" and not raw.validation):
            continue
        missing = np.flatnonzero(np.bincount(labels, minlength=len(raw.classes)) == 0)
        if len(missing):
            names = ", ".join(raw.classes[k] for k in missing[:3]) + (
                f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            )
            raise DataError(
                f"the {title} split of {name} has no picture of {names}, one of its classes; add some, or take the class out of "
                "every split"
            )


def _resized(raw: RawDataset, size: int, name: str) -> RawDataset:
    if size == 0 or raw.images.shape[2:] == (size, size):
        return raw
    count = len(raw.images) + len(raw.test_images if raw.test_images is not None else ())
    if (bytes_needed := count * raw.images.shape[1] * size * size) > free_memory() // 2:
        raise DataError(
            f"{name} at {size}x{size} takes {bytes_needed} bytes, more than half of the memory free here; set a smaller size, or 0"
        )
    test = None if raw.test_images is None else resize_images(raw.test_images, size)
    return dataclasses.replace(raw, images=resize_images(raw.images, size), test_images=test)
