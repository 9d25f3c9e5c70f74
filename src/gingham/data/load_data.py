"""Load a dataset by its name or from the user's own files."""

from pathlib import Path

import numpy as np

from gingham.data.cifar import find_cifar, read_cifar
from gingham.data.decode import resize_images
from gingham.data.idx import IDX_FILES, find_idx, read_idx_folder
from gingham.data.image_files import list_images, read_image_dataset, read_listing
from gingham.data.memory import free_memory
from gingham.data.npz import read_npz
from gingham.data.raw import RawDataset, raw_from_arrays
from gingham.data.registry import REGISTRY, read_registered
from gingham.data.splits import DataSplits, cut_splits, make_splits
from gingham.errors import DataError, plural, suggest
from gingham.text import is_plain_name

FEWEST_CLASSES, MOST_CLASSES = 2, 10_000
LARGEST_SIDE = 4096
FORMATS = f"a folder of class folders, a .csv of paths and labels, a .npz file, or a folder with {', '.join(IDX_FILES)}"


def load_data(
    name: str = "fashion-mnist",
    validation: int = 5000,
    classes: tuple[str, ...] | None = None,
    *,
    size: int = 0,
    skip_unreadable: bool = False,
) -> DataSplits:
    """Return a dataset's training, validation and test split.

    `name` is a published dataset, verified by its checksums (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced and
    its other splits, cifar-10), or the path of your own data: a folder with one folder of images per class, directly or
    in train, validation and test folders; a `.csv` table of paths and labels; a `.npz` file of arrays; a folder with
    the four IDX files of MNIST's layout, or with CIFAR-10's binary files.

    `validation` images are held out from the training data, stratified by class, and the same for every seed; with 0,
    none are. At most a fifth of your own data is held out. If the data already has a validation split, all of it is
    used, or joined to the training data if `validation` is 0. If there is no test split, 15 % of each class become one,
    chosen by a hash of class and file name, so that an image's split depends on nothing else.

    `size` is the side in pixels of the squares that image files are resized to, with their proportions kept
    (`fit_square`). 0 keeps their size if all are squares of one size up to 64, and means 28 otherwise. Other data is
    resized only if `size` is not 0. An unreadable image file is an error, or left out with `skip_unreadable`. If the
    labels of the data are numbers, `classes` names the labels 0 to K-1; if they are names, it sets their order.

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
        raw = _read_user_data(name, size, skip_unreadable)
        source = name = str(Path(name).resolve())
        if classes is not None:
            raw = _apply_class_names(raw, classes, name)
        _require_classes(raw.classes, name)
    raw = _resize(raw, size, name)
    return cut_splits(raw, name, source, validation, size=size, skip_unreadable=skip_unreadable)


def _read_user_data(name: str, size: int, skip_unreadable: bool) -> RawDataset:
    path = Path(name).resolve()
    if not name or not path.exists():
        raise DataError(f"unknown dataset {name!r}{suggest(name, REGISTRY, Path(name).parent.glob('*'))}, or {FORMATS}")
    if is_image_collection(path):
        raw = read_image_dataset(path, size, skip_unreadable=skip_unreadable)
    elif path.suffix.lower() == ".npz":
        raw = read_npz(path)
    elif cifar := find_cifar(path):
        return raw_from_arrays(read_cifar(cifar), REGISTRY["cifar-10"].classes, path)
    elif path.is_dir():
        arrays = read_idx_folder(path)
        num_classes = int(max(arrays[1].max(), arrays[3].max())) + 1
        return raw_from_arrays(arrays, tuple(map(str, range(num_classes))), path)
    else:
        raise DataError(f"{path} is not a dataset; give {FORMATS}, or one of: {', '.join(REGISTRY)}")
    _require_all_classes(raw, path)
    return raw


def is_image_collection(path: Path) -> bool:
    """Return whether a path is a dataset of image files: a `.csv` table, or a folder without IDX or CIFAR-10 files."""
    if path.is_dir():
        return all(find_idx(path, file) is None for file in IDX_FILES) and find_cifar(path) is None
    return path.suffix.lower() == ".csv" and path.exists()


def load_unchecked(name: str) -> tuple[DataSplits, list[tuple[str, str]]]:
    """Return a dataset to be checked, with its own validation split, and the issues of its files as (file, reason).

    Unlike `load_data`, this accepts a folder or table with missing classes or unreadable files; the files are left out.
    If there is no test split, none is made.

    Raises
        DataError: see `load_data`, with these exceptions; also if no image can be read.
    """
    path = Path(name).resolve()
    if name in REGISTRY or not is_image_collection(path):
        return load_data(name, validation=0), []
    listing = list_images(path)
    _require_classes(listing.classes, str(path))
    raw, issues = read_listing(path, listing, 0)
    parts = {"test": raw.parts["training"].rows(slice(0)), **raw.splits()}
    if not len(parts["train"].labels):
        raise DataError(f"{path} has no readable training image; check that its files are not damaged")
    issues += [(folder, "is a class folder without images") for folder in listing.empty_folders]
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
        raise DataError(f"{name} has {plural(len(classes), 'class')}; allowed: {allowed}; give each a folder or label")
    for label in classes:
        if not is_plain_name(label):
            raise DataError(f"{name} has a class named {label!r}; rename it, to printable UTF-8 text on one line")


def _require_all_classes(raw: RawDataset, path: Path) -> None:
    for split_name, part in raw.splits().items():
        present = {*part.labels.tolist()}
        if missing := [label for k, label in enumerate(raw.classes) if k not in present]:
            raise DataError(
                f"the {split_name} split of {path} has no image of {', '.join(missing[:9])}; add images of each of "
                f"its {len(raw.classes)} classes, or remove the class from every split"
            )


def _resize(raw: RawDataset, size: int, name: str) -> RawDataset:
    _, channels, height, width = raw.parts["training"].images.shape
    if size == 0 or (height, width) == (size, size):
        return raw
    count = sum(len(part.labels) for part in raw.parts.values())
    if (bytes_needed := count * channels * size * size) > free_memory() // 2:
        raise DataError(
            f"{name} at {size}x{size} takes {bytes_needed} bytes, more than half of the free memory; set a smaller "
            "size, or 0"
        )
    parts = {name: part._replace(images=resize_images(part.images, size)) for name, part in raw.parts.items()}
    return raw._replace(parts=parts)
