"""Load a dataset by its name or from the user's own files."""

import os
from pathlib import Path

import numpy as np
import torch

from gingham.data.cifar import find_cifar, read_cifar
from gingham.data.decode import resize_images
from gingham.data.idx import IDX_FILES, read_idx_folder
from gingham.data.image_files import list_images, read_image_dataset, read_listing
from gingham.data.memory import require_memory
from gingham.data.npz import read_npz
from gingham.data.pixel_table import is_pixel_table, read_pixel_tables
from gingham.data.raw import RawDataset, raw_from_arrays
from gingham.data.registry import REGISTRY, find_idx_folder, read_registered, registered_classes
from gingham.data.splits import DataSplits, cut_splits, make_splits
from gingham.data.table import find_tables
from gingham.errors import DataError, list_first, plural, suggest
from gingham.text import is_plain_name

FEWEST_CLASSES, MOST_CLASSES = 2, 10_000
LARGEST_SIDE = 4096
FORMATS = (
    "a folder of class folders, a .csv, .tsv or .txt table of paths and labels or of pixels, a folder with such tables "
    f"for train and test, a .npz file, or a folder with {', '.join(IDX_FILES)} (torchvision's root folder too)"
)


def load_data(
    name: str = "fashion-mnist",
    validation: int = 5000,
    classes: tuple[str, ...] | None = None,
    *,
    size: int = 0,
    skip_unreadable: bool = False,
    label_from: str = "folder",
    trained_on: torch.Tensor | None = None,
) -> DataSplits:
    """Return a dataset's training, validation and test split.

    `name` is a published dataset, verified by its checksums (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced and
    its other splits, cifar-10), or the path of your own data: a folder with one folder of images per class, directly or
    in train, validation and test folders; a table (`.csv`, `.tsv`, `.txt`) of paths and labels, or of labels and
    pixels; a folder with such tables for train and test; a `.npz` file of arrays; a folder with the four IDX files of
    MNIST's layout (or torchvision's root folder), or with CIFAR-10's binary files. If the images and labels are those
    of a published dataset, and the labels are numbers, the classes get its names.

    `validation` images are held out from the training data, stratified by class, and the same for every seed; with 0,
    none are. At most a fifth of your own data is held out. If the data already has a validation split, all of it is
    used, or joined to the training data if `validation` is 0. If there is no test split, 15 % of each class become one,
    chosen by a hash of class and file name, so that an image's split depends on nothing else. If a table has groups,
    such as one for each person, whole groups are held out.

    `size` is the side in pixels of the squares that image files are resized to, with their proportions kept
    (`fit_square`). 0 keeps their size if all are squares of one size up to 64, and means 28 otherwise. Other data is
    resized only if `size` is not 0. An unreadable image file is an error, or left out with `skip_unreadable`.
    `label_from` says what the class of an image in a folder is: "folder", the first folder (`cat` for
    `cat/young/1.jpg`); "parent", the folder that it is in (`young`; with its path, as in `cat/young`, if several are
    called so); "name", its name without the number at the end (`cat` for `cat_1.jpg`). If the labels of the data are
    numbers, `classes` names the labels 0 to K-1; if they are names, it sets their order.

    Images whose `hash_images` are in `trained_on`, int64 (N,), stay in the training split unless the data has its own
    splits: give those of a run, `run.image_hashes["train"]`, to train it further with more images.

    A published dataset is searched for in `$GINGHAM_DATA`, the user's cache and the system package, and downloaded if
    it is in none of them.

        data = load_data("fashion-mnist")
        len(data.train), len(data.validation), len(data.test)   # 55000, 5000, 10000
        data.train.images.shape, data.train.images.dtype        # (55000, 1, 28, 28), uint8

    Raises
        DataError: an unknown name; a file that is missing, unreadable, damaged or of another dataset; a class without
            images in a split; too few images.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST" (arXiv 1708.07747).
    """
    if not 0 <= size <= LARGEST_SIDE:
        raise DataError(f"size is {size}; allowed: 1 to {LARGEST_SIDE} pixels, or 0 to choose it from the data")
    if name in REGISTRY:
        raw, folder = read_registered(name)
        source = str(folder)
    else:
        raw = _read_user_data(name, size, skip_unreadable, label_from)
        source = name = str(Path(name).resolve())
        if (classes := classes or registered_classes(raw)) is not None:
            raw = _apply_class_names(raw, classes, name)
        _require_classes(raw.classes, name)
    raw = _resize(raw, size, name)
    return cut_splits(
        raw, name, source, validation, trained_on, size=size, skip_unreadable=skip_unreadable, label_from=label_from
    )


def _read_user_data(name: str, size: int, skip_unreadable: bool, label_from: str) -> RawDataset:
    path = Path(name).resolve()
    if not name or not path.exists():
        if "/" in name or os.sep in name:
            raise DataError(f"there is no file or folder {name}; give one that exists, or a dataset's name")
        raise DataError(f"unknown dataset {name!r}{suggest(name, REGISTRY, Path(name).parent.glob('*'))}, or {FORMATS}")
    if is_image_collection(path):
        raw = read_image_dataset(path, size, skip_unreadable=skip_unreadable, label_from=label_from)
    elif (tables := find_tables(path)) and is_pixel_table(tables["train"]):
        raw = read_pixel_tables(tables)
    elif path.suffix.lower() == ".npz":
        raw = read_npz(path)
    elif cifar := find_cifar(path):
        return raw_from_arrays(read_cifar(cifar), REGISTRY["cifar-10"].classes, path)
    elif folder := find_idx_folder(path):
        arrays = read_idx_folder(folder)
        num_classes = int(max(arrays[1].max(), arrays[3].max())) + 1
        return raw_from_arrays(arrays, tuple(map(str, range(num_classes))), path)
    else:
        raise DataError(f"{path} is not a dataset; give {FORMATS}, or one of: {', '.join(REGISTRY)}")
    return _require_all_classes(raw, path)


def is_image_collection(path: Path) -> bool:
    """Return whether a path is a dataset of image files: tables of paths, or a folder without IDX or CIFAR-10 files."""
    if path.is_dir() and (find_cifar(path) or find_idx_folder(path)):
        return False
    tables = find_tables(path)
    return not is_pixel_table(tables["train"]) if tables else path.is_dir()


def load_unchecked(name: str, label_from: str = "folder") -> tuple[DataSplits, list[tuple[str, str]]]:
    """Return a dataset to be checked, with its own validation split, and the issues of its files as (file, reason).

    Unlike `load_data`, this accepts a folder or table with missing classes or unreadable files; the files are left out.
    If there is no test split, none is made.

    Raises
        DataError: see `load_data`, with these exceptions; also if no image can be read.
    """
    path = Path(name).resolve()
    if name in REGISTRY or not is_image_collection(path):
        return load_data(name, validation=0), []
    listing = list_images(path, label_from=label_from)
    _require_classes(listing.classes, str(path))
    raw, issues = read_listing(path, listing, 0)
    parts = {"test": raw.parts["training"].rows(slice(0)), **raw.splits()}
    if not len(parts["train"].labels):
        raise DataError(f"{path} has no readable training image; check that its files are not damaged")
    issues += listing.odd
    return make_splits(parts, str(path), classes=raw.classes, dataset=str(path), fingerprint=""), issues


def _apply_class_names(raw: RawDataset, classes: tuple[str, ...], name: str) -> RawDataset:
    """Return a dataset with the given class names and order, if its own classes are numbers or among those names."""
    index = {label: k for k, label in enumerate(classes)}
    if not {*raw.classes} <= index.keys():
        if not all(label.isdecimal() for label in raw.classes):
            return raw
        index = {label: int(label) for label in raw.classes}
        if (last := max(index.values())) >= len(classes):
            raise DataError(f"{name} has labels up to {last}; allowed: 0 to {len(classes) - 1}, for the given classes")
    order = np.array([index[label] for label in raw.classes], np.int64)
    parts = {name: part._replace(labels=order[part.labels]) for name, part in raw.parts.items()}
    return raw._replace(parts=parts, classes=classes)


def _require_classes(classes: tuple[str, ...], name: str) -> None:
    if not FEWEST_CLASSES <= len(classes) <= MOST_CLASSES:
        allowed = f"{FEWEST_CLASSES} to {MOST_CLASSES:,}"
        raise DataError(
            f"{name} has {plural(len(classes), 'class')}; allowed: {allowed}; give each a folder or label, or, if the "
            "class folders are in other folders, give label_from='parent' (--label-from parent)"
        )
    for label in classes:
        if not is_plain_name(label):
            raise DataError(f"{name} has a class named {label!r}; rename it, to printable UTF-8 text on one line")


def _require_all_classes(raw: RawDataset, path: Path) -> RawDataset:
    """Return a dataset, with a note if its validation split lacks classes, as that of a published dataset may."""
    for split_name, part in raw.splits().items():
        present = {*part.labels.tolist()}
        missing = [label for k, label in enumerate(raw.classes) if k not in present]
        if missing and split_name == "validation":
            raw = raw._replace(notes=(*raw.notes, f"the validation split has no image of {list_first(missing, 3)}"))
        elif missing:
            raise DataError(
                f"the {split_name} split of {path} has no image of {', '.join(missing[:9])}; add images of each of "
                f"its {len(raw.classes)} classes, or remove the class from every split"
            )
    return raw


def _resize(raw: RawDataset, size: int, name: str) -> RawDataset:
    _, channels, height, width = raw.parts["training"].images.shape
    if size == 0 or (height, width) == (size, size):
        return raw
    count = sum(len(part.labels) for part in raw.parts.values())
    require_memory(count * channels * size * size, f"{name} at {size}x{size}", "set a smaller size, or 0")
    parts = {name: part._replace(images=resize_images(part.images, size)) for name, part in raw.parts.items()}
    return raw._replace(parts=parts)
