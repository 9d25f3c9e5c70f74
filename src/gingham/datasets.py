"""Datasets as they are trained on: from a name or a place of one's own, with fixed splits and a fingerprint."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gingham.errors import DataError, suggest
from gingham.files import cache_folder
from gingham.folders import list_pictures, raw_of_files, read_files
from gingham.pictures import resize_pictures
from gingham.published import NAMED, read_named
from gingham.readers import (
    FILES,
    Labels,
    Pixels,
    Raw,
    find_cifar,
    find_idx,
    free_memory,
    is_plain,
    map_rows,
    raw_of,
    read_cifar,
    read_idx_folder,
    read_npz,
)

BLOCK_BYTES = 1 << 16  # read together from disk
TEST_PERCENT = 15
FEWEST_CLASSES, MOST_CLASSES = 2, 10_000
LARGEST_SIDE = 4096


@dataclass(frozen=True)
class Split:
    """Pictures and labels of one split.

    `images` is uint8 (N, C, H, W), 0 to 255; `labels` is int64 (N,), 0 to K-1; `classes` holds the K names. `name` is
    "train", "validation" or "test", and decides what may open it: `fit` refuses "test". `block` is above 1 for pictures
    that stay on disk: how many neighbours are read together. `files` names the file of each picture, where they have files
    of their own. `size` and `skip_unreadable` are what `load_data` was asked for; a run keeps them, to load the same again.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    dataset: str
    fingerprint: str
    block: int = 1
    files: tuple[str, ...] = ()
    size: int = 0
    skip_unreadable: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> dict[str, int]:
        """Return how many pictures each class has, in class order."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


@dataclass(frozen=True)
class Data:
    """A dataset's splits. `validation` is None when nothing is held out; `fingerprint` is a SHA-256 of all pictures,
    labels and class names, the same whatever is held out. `notes` are sentences that whoever loads it should read."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    notes: tuple[str, ...] = ()


def load_data(
    name: str = "fashion-mnist",
    validation: int = 5000,
    classes: tuple[str, ...] | None = None,
    *,
    size: int = 0,
    skip_unreadable: bool = False,
) -> Data:
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
    if name in NAMED:
        raw, folder = read_named(name)
        source = str(folder)
    else:
        raw = _read_own(name, size, skip_unreadable)
        source = name = str(Path(name).resolve())
        if classes is not None:
            raw = _renamed(raw, classes, name)
        _require_classes(raw.classes, name)
    raw = _resized(raw, size, name)
    return _cut(raw, name, source, validation, size, skip_unreadable)


def _read_own(name: str, size: int, skip_unreadable: bool) -> Raw:
    place = Path(name).resolve() if name else None
    if place is None or not place.exists():
        raise DataError(
            f"unknown dataset {name!r}{suggest(name, NAMED)}, a folder of class folders, a .csv of paths and labels, a .npz file, "
            f"or a folder with the files {', '.join(FILES)}"
        )
    if is_pictures(place):
        raw = raw_of_files(place, size, skip_unreadable=skip_unreadable)
    elif place.suffix.lower() == ".npz":
        raw = read_npz(place)
    elif cifar := find_cifar(place):
        return read_cifar(cifar, NAMED["cifar-10"].classes)
    elif place.is_dir():
        arrays = read_idx_folder(place)
        return raw_of(arrays, tuple(str(label) for label in range(int(max(arrays[1].max(), arrays[3].max())) + 1)))
    else:
        raise DataError(
            f"{place} is no dataset; give a folder of class folders, a .csv of paths and labels, a .npz file, a folder of IDX "
            f"files, or one of: {', '.join(NAMED)}"
        )
    _require_all_classes(raw, str(place))
    return raw


def is_pictures(place: Path) -> bool:
    """Return whether a place holds pictures in files of their own: a `.csv` table, or a folder of no other kind."""
    if place.is_dir():
        return all(find_idx(place, file) is None for file in FILES) and find_cifar(place) is None
    return place.suffix.lower() == ".csv" and place.exists()


def look_into(name: str) -> tuple[Data, list[tuple[str, str]]]:
    """Return data to be examined, its validation split apart, and what is odd about its files, as (file, reason).

    Unlike `load_data`, a folder or table of pictures is taken as it is: files that cannot be read are left out, classes
    may be missing, and no test split is cut.

    Raises
        DataError: as `load_data`, but for that; no picture that can be read.
    """
    place = Path(name).resolve()
    if name in NAMED or not is_pictures(place):
        return load_data(name, validation=0), []
    listing = list_pictures(place)
    _require_classes(listing.classes, str(place))
    found = read_files(place, listing, 0)
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
        splits[title] = _split(title, found.images[start:stop], labels, listing.classes, str(place), names)
    odd = [*found.odd, *((folder, "is a class folder without a picture") for folder in listing.empty)]
    held_out = splits["validation"] if len(splits["validation"]) else None
    return Data(str(place), splits["train"], held_out, splits["test"], listing.classes, "", str(place)), odd


def _renamed(raw: Raw, classes: tuple[str, ...], name: str) -> Raw:
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
    if odd := [label for label in classes if not is_plain(label)]:
        raise DataError(f"{name} has a class of the name {odd[0]!r}; rename it, in plain letters of UTF-8")


def _require_all_classes(raw: Raw, name: str) -> None:
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


def _resized(raw: Raw, size: int, name: str) -> Raw:
    if size == 0 or raw.images.shape[2:] == (size, size):
        return raw
    count = len(raw.images) + len(raw.test_images if raw.test_images is not None else ())
    if (bytes_needed := count * raw.images.shape[1] * size * size) > free_memory() // 2:
        raise DataError(
            f"{name} at {size}x{size} takes {bytes_needed} bytes, more than half of the memory free here; set a smaller size, or 0"
        )
    test = None if raw.test_images is None else resize_pictures(raw.test_images, size)
    return dataclasses.replace(raw, images=resize_pictures(raw.images, size), test_images=test)


def _cut(raw: Raw, name: str, source: str, validation: int, size: int, skip_unreadable: bool) -> Data:
    fingerprint = _fingerprint(raw)
    notes = list(raw.notes)
    own = len(raw.labels) - raw.validation
    train, given = np.arange(own), np.arange(own, len(raw.labels))
    test_images, test_labels, test_files = raw.test_images, raw.test_labels, raw.test_files
    if test_images is None or test_labels is None:
        train, tested = _hold_out_test(raw, own, name)
        test_images = _rows(raw.images, tested, f"{fingerprint[:32]}-test")
        test_labels, test_files = raw.labels[tested], _named(raw.files, tested)
    if len(given) and validation >= 0:
        train, held_out = (train, given) if validation else (np.concatenate([train, given]), given[:0])
        held_out_images = raw.images[own:]
    else:
        if name not in NAMED and validation > (most := len(train) // 5):
            notes.append(f"{most} of the {len(train)} training pictures are held out for validation, a fifth, not {validation}")
            validation = most
        kept, taken = _stratify(raw.labels[train], validation, name)
        train, held_out = train[kept], train[taken]
        held_out_images = _rows(raw.images, held_out)

    def split(title: str, images: Pixels, labels: Labels, files: tuple[str, ...]) -> Split:
        made = _split(title, images, labels, raw.classes, name, files)
        return dataclasses.replace(made, fingerprint=fingerprint, size=size, skip_unreadable=skip_unreadable)

    labels, files = raw.labels[held_out], _named(raw.files, held_out)
    validation_split = split("validation", held_out_images, labels, files) if len(held_out) else None
    pack = f"{fingerprint[:32]}-{len(held_out)}"
    return Data(
        name=name,
        train=split("train", _rows(raw.images, train, pack, last=True), raw.labels[train], _named(raw.files, train)),
        validation=validation_split,
        test=split("test", test_images, test_labels, test_files),
        classes=raw.classes,
        fingerprint=fingerprint,
        source=source,
        notes=tuple(notes),
    )


def _split(title: str, images: Pixels, labels: Labels, classes: tuple[str, ...], name: str, files: tuple[str, ...]) -> Split:
    mapped = isinstance(images, np.memmap) and len(images)
    block = max(1, BLOCK_BYTES // images[0].nbytes) if mapped else 1
    return Split(title, torch.from_numpy(images), torch.from_numpy(labels), classes, name, "", block, files)


def _named(files: tuple[str, ...], rows: npt.NDArray[np.intp]) -> tuple[str, ...]:
    return tuple(files[row] for row in rows.tolist()) if files else ()


def _rows(images: Pixels, rows: npt.NDArray[np.intp], pack: str = "", *, last: bool = False) -> Pixels:
    """A copy of some rows, ascending; of the `last` ones wanted without one: where they lie, or moved to the front.

    Of pictures on disk those with a `pack` are copied to a file of that name.
    """
    if last and rows[-1] - rows[0] + 1 == len(rows):
        return images[rows[0] : rows[-1] + 1]
    if isinstance(images, np.memmap) and pack:
        return map_rows(images, rows, cache_folder() / "packs" / pack)
    if not last:
        return np.array(images[rows])
    for start in range(0, len(rows), 4096):  # indexing would hold all pictures twice
        part = rows[start : start + 4096]
        images[start : start + len(part)] = images[part]
    return images[: len(rows)]


def _by_class(labels: Labels) -> Sequence[npt.NDArray[np.intp]]:
    """The places of each label's pictures, ascending, for labels from 0 to the highest."""
    return np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])


def _hold_out_test(raw: Raw, own: int, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places kept and held out, each ascending: of each class those whose hash of class and file name is lowest."""
    counts = np.bincount(raw.labels[:own], minlength=len(raw.classes))
    if len(few_of := np.flatnonzero((counts > 0) & (counts < 3))):
        few = int(few_of[0])
        raise DataError(
            f"the class {raw.classes[few]} of {name} has {counts[few]} training pictures, too few to hold some out for a test; "
            "allowed: 3 or more: add pictures, or a test split, or leave the class out"
        )
    held_out = np.zeros(own, bool)
    for places in filter(len, _by_class(raw.labels[:own])):
        label = raw.classes[int(raw.labels[places[0]])]
        texts = [f"{label}\0{raw.files[place] if raw.files else place}" for place in places.tolist()]
        order = sorted(range(len(places)), key=lambda k: hashlib.sha256(texts[k].encode("utf-8", "replace")).digest())
        share = max((TEST_PERCENT * len(places) + 50) // 100, int(len(places) >= 4))
        held_out[places[order[:share]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _stratify(labels: Labels, validation: int, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Places kept and held out, each ascending; every class gives its share, largest remainders rounded up."""
    if not 0 <= validation < len(labels):
        raise DataError(
            f"{validation} validation pictures were asked of the {len(labels)} training pictures of {name}; "
            f"allowed: 0 to {len(labels) - 1} (--set validation_images=N)"
        )
    exact = np.bincount(labels) * (validation / len(labels))
    shares = np.floor(exact).astype(int)
    for label in np.argsort(shares - exact, kind="stable")[: validation - shares.sum()]:
        shares[label] += 1
    # RandomState's stream is frozen by numpy's compatibility policy (NEP 19): the split never moves.
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), bool)
    for places, share in zip(_by_class(labels), shares, strict=True):
        held_out[random.permutation(places)[:share]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _fingerprint(raw: Raw) -> str:
    digest = hashlib.sha256("\0".join(raw.classes).encode())
    for array in (raw.images, raw.labels, raw.test_images, raw.test_labels):
        if array is None:
            continue
        if array.ndim == 1:
            array = array.astype(np.uint8 if len(raw.classes) <= 256 else "<i8")  # noqa: PLW2901
        elif array.shape[1] == 1:
            array = array[:, 0]  # noqa: PLW2901  # as IDX files hold it
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    if raw.validation:
        digest.update(f"{raw.validation} for validation".encode())
    return digest.hexdigest()


def count_duplicates(data: Data) -> dict[str, int]:
    """Return how many pictures of a dataset are exact copies, byte by byte, labels aside.

    `train` counts the training pictures (held-out ones included) that an earlier training picture equals, `test` the
    same within the test split, and `across` the test pictures that some training picture equals.

        count_duplicates(load_data("fashion-mnist"))   # {'train': 0, 'test': 0, 'across': 0}
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = [picture.tobytes() for part in parts for picture in part.images.numpy()]
    test = [picture.tobytes() for picture in data.test.images.numpy()]
    seen = set(train)
    return {
        "train": len(train) - len(seen),
        "test": len(test) - len(set(test)),
        "across": sum(picture in seen for picture in test),
    }


def describe(data: Data) -> dict[str, Any]:
    """Return the facts of a dataset as JSON values: what `gingham show --json` prints, but for the figure.

    `images` and `per_class` count training and test pictures together, `splits` and `per_class_train`/`_test` apart.
    `mean` and `std` are of the training pictures' pixels from 0 to 1, a number for grey, a list by channel for colour.
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = {name: sum(part.counts()[name] for part in parts) for name in data.classes}
    test = data.test.counts()
    pixels = torch.cat([part.images for part in parts]).transpose(0, 1).flatten(1)  # (C, N H W)
    # From a count of each of the 256 values: exact, and without a float copy of every picture.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double() / pixels.shape[1]
    mean = (counts * values).sum(dim=1)
    std = ((counts * values**2).sum(dim=1) - mean**2).clamp(min=0).sqrt()
    grey = len(mean) == 1
    return {
        "name": data.name,
        "source": data.source,
        "images": sum(train.values()) + len(data.test),
        "splits": {"train": sum(train.values()), "test": len(data.test)},
        "classes": list(data.classes),
        "shape": list(data.train.images.shape[1:]),
        "per_class": {name: train[name] + test[name] for name in data.classes},
        "per_class_train": train,
        "per_class_test": test,
        "mean": float(mean) if grey else mean.tolist(),
        "std": float(std) if grey else std.tolist(),
        "duplicates": count_duplicates(data),
        "fingerprint": data.fingerprint,
    }
