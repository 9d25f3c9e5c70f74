"""Split a dataset into training, validation and test images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gingham.data.memory import memory_map_rows
from gingham.data.raw import Labels, Pixels, RawDataset
from gingham.data.registry import REGISTRY
from gingham.errors import DataError
from gingham.io import cache_folder

BLOCK_BYTES = 1 << 16  # read from disk at once
TEST_PERCENT = 15
Rows = npt.NDArray[np.intp]  # indices of images, ascending


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    `images` is uint8 (N, C, H, W), 0 to 255; `labels` is int64 (N,), 0 to K-1; `classes` holds the K names. `name` is
    "train", "validation" or "test", and decides who may use the split: `fit` refuses "test". `block` is above 1 for
    images that stay on disk: the number of neighbours read at once. `files` names the file of each image, if each image
    has its own file. `size` and `skip_unreadable` are the arguments of `load_data`; a run stores them, to load the same
    data again.
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of each image: channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, in class order."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


@dataclass(frozen=True)
class DataSplits:
    """A dataset's splits. `validation` is None if nothing is held out; `fingerprint` is a SHA-256 of all images, labels
    and class names, and does not depend on what is held out. `notes` are messages for the user who loads the
    dataset."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    notes: tuple[str, ...] = ()


def cut_splits(
    raw: RawDataset, name: str, source: str, validation: int, size: int, skip_unreadable: bool
) -> DataSplits:
    """Return a dataset's splits, with `validation` images held out, and a test split cut off if there is none."""
    fingerprint = _fingerprint(raw)
    notes = list(raw.notes)
    parts = raw.splits()
    num_train = len(parts["train"][1])
    train = np.arange(num_train)

    def take(rows: Rows, images: Pixels) -> tuple[Pixels, Labels, tuple[str, ...]]:
        return images, raw.labels[rows], tuple(raw.files[row] for row in rows.tolist()) if raw.files else ()

    if "test" not in parts:
        train, rows = _hold_out_test(raw, num_train, name)
        parts["test"] = take(rows, _copy_rows(raw.images, rows, f"{fingerprint[:32]}-test"))
    if "validation" in parts and validation == 0:
        del parts["validation"]
        train = np.concatenate([train, np.arange(num_train, len(raw.labels))])
    elif "validation" not in parts or validation < 0:
        if name not in REGISTRY and validation > (cap := len(train) // 5):
            notes.append(
                f"{cap} of the {len(train)} training pictures are held out for validation, a fifth, not {validation}"
            )
            validation = cap
        remaining, held_out = _stratify(raw.labels[train], validation, name)
        if validation:
            parts["validation"] = take(train[held_out], raw.images[train[held_out]])
        train = train[remaining]
    num_held_out = len(parts["validation"][1]) if "validation" in parts else 0
    # Last, because it may overwrite the other rows of `raw.images`.
    parts["train"] = take(train, _move_rows(raw.images, train, f"{fingerprint[:32]}-{num_held_out}"))
    common: dict[str, Any] = {"classes": raw.classes, "dataset": name, "fingerprint": fingerprint}
    common |= {"size": size, "skip_unreadable": skip_unreadable}
    splits = {key: make_split(key, *part, **common) for key, part in parts.items()}
    return DataSplits(
        name, splits["train"], splits.get("validation"), splits["test"], raw.classes, fingerprint, source, tuple(notes)
    )


def make_split(split_name: str, images: Pixels, labels: Labels, files: tuple[str, ...], **fields: Any) -> Split:
    """Return a split with the given other `fields`; images mapped into memory are read in blocks."""
    mapped = isinstance(images, np.memmap) and len(images)
    block = max(1, BLOCK_BYTES // images[0].nbytes) if mapped else 1
    return Split(split_name, torch.from_numpy(images), torch.from_numpy(labels), block=block, files=files, **fields)


def _copy_rows(images: Pixels, rows: Rows, pack: str) -> Pixels:
    """Return a copy of some rows of `images`, ascending. Images on disk are copied to a file named `pack`."""
    if isinstance(images, np.memmap):
        return memory_map_rows(images, rows, cache_folder() / "packs" / pack)
    return images[rows]


def _move_rows(images: Pixels, rows: Rows, pack: str) -> Pixels:
    """Return what `_copy_rows` returns, but without a copy: as a part of `images`, whose other rows are overwritten."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return images[rows[0] : rows[-1] + 1]
    if isinstance(images, np.memmap):
        return _copy_rows(images, rows, pack)
    for start in range(0, len(rows), 4096):  # indexing all rows at once would need the memory twice
        chunk = rows[start : start + 4096]
        images[start : start + len(chunk)] = images[chunk]
    return images[: len(rows)]


def _indices_by_class(labels: Labels) -> Sequence[Rows]:
    """Return the indices of each label's images, ascending, for labels from 0 to the highest."""
    return np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])


def _hold_out_test(raw: RawDataset, num_train: int, name: str) -> tuple[Rows, Rows]:
    """Return the indices of the training and the test images, by the lowest hashes of class and file name."""
    counts = np.bincount(raw.labels[:num_train], minlength=len(raw.classes))
    if len(rare := np.flatnonzero((counts > 0) & (counts < 3))):
        label = int(rare[0])
        raise DataError(
            f"the class {raw.classes[label]} of {name} has {counts[label]} training pictures, too few to hold some out "
            "for a test; allowed: 3 or more: add pictures, or a test split, or leave the class out"
        )
    held_out = np.zeros(num_train, bool)
    for indices in filter(len, _indices_by_class(raw.labels[:num_train])):
        class_name = raw.classes[int(raw.labels[indices[0]])]
        keys = [f"{class_name}\0{raw.files[index] if raw.files else index}" for index in indices.tolist()]
        order = sorted(range(len(indices)), key=lambda k: hashlib.sha256(keys[k].encode("utf-8", "replace")).digest())
        count = max((TEST_PERCENT * len(indices) + 50) // 100, int(len(indices) >= 4))
        held_out[indices[order[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _stratify(labels: Labels, validation: int, name: str) -> tuple[Rows, Rows]:
    """Return the indices of the training and held-out images; the largest remainders by class are rounded up."""
    if not 0 <= validation < len(labels):
        raise DataError(
            f"{validation} validation pictures were asked of the {len(labels)} training pictures of {name}; "
            f"allowed: 0 to {len(labels) - 1} (--set validation_images=N)"
        )
    exact = np.bincount(labels) * (validation / len(labels))
    counts = np.floor(exact).astype(int)
    for label in np.argsort(counts - exact, kind="stable")[: validation - counts.sum()]:
        counts[label] += 1
    # RandomState's stream is frozen by numpy's compatibility policy (NEP 19): the split never changes.
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), bool)
    for indices, count in zip(_indices_by_class(labels), counts, strict=True):
        held_out[random.permutation(indices)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _fingerprint(raw: RawDataset) -> str:
    digest = hashlib.sha256("\0".join(raw.classes).encode())
    for array in (raw.images, raw.labels, raw.test_images, raw.test_labels):
        if array is None:
            continue
        if array.ndim == 1:
            array = array.astype(np.uint8 if len(raw.classes) <= 256 else "<i8")  # noqa: PLW2901
        elif array.shape[1] == 1:
            array = array[:, 0]  # noqa: PLW2901  # the shape in IDX files
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    if raw.num_validation:
        digest.update(f"{raw.num_validation} for validation".encode())
    return digest.hexdigest()
