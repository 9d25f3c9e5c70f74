"""Split a dataset into training, validation and test images."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gingham.data.image_hashes import hash_images
from gingham.data.raw import Labels, Part, Pixels, RawDataset
from gingham.data.registry import REGISTRY
from gingham.data.sampler import limit_count
from gingham.display import Displayable
from gingham.errors import DataError, GinghamError, one_line, plural
from gingham.io import atomic_write, cache_folder
from gingham.text import render_table

BLOCK_BYTES = 1 << 16  # read from disk at once
TEST_PERCENT = 15
MAX_SHOWN_CLASSES = 100
SAMPLE_PIXELS = 1 << 22  # in a sample, which should take a second at most to evaluate
Rows = npt.NDArray[np.intp]  # indices of images, ascending


@dataclass(frozen=True, repr=False)
class Split:
    """Images and labels of one split.

    `images` is uint8 (N, C, H, W), 0 to 255; `labels` is int64 (N,), 0 to K-1; `classes` are the K names. `name` is
    "train", "validation" or "test", and decides who may use the split: `fit` refuses "test". `block` is above 1 for
    images that stay on disk: the number of neighbours read at once. `files` names the file of each image, if each image
    has its own file. `size`, `skip_unreadable` and `label_from` are the arguments of `load_data`; a run stores them, so
    that it can load the same data again. `grey_bits` is how many bits the values of 16-bit grey image files use; a run
    stores it, so that photos are scaled in the same way.
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
    label_from: str = "folder"
    grey_bits: int = 16
    keeps_trained: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<Split {self.name} of {self.dataset}: {len(self):,} images of {shape}, {len(self.classes)} classes>"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of each image: channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def sample(self, count: int, pixels: int = SAMPLE_PIXELS) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images and labels of `count` images evenly spread over the split, or of all if it has fewer.

        There are fewer of large images, with at most `pixels` in all: by default 83 of 224x224.
        """
        count = limit_count(min(count, len(self)), self.images, pixels)
        indices = torch.linspace(0, len(self) - 1, count).long()
        return self.images[indices], self.labels[indices]

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, in class order."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


@dataclass(frozen=True, repr=False)
class DataSplits(Displayable):
    """A dataset's splits.

    `validation` is None if nothing is held out. `fingerprint` is a SHA-256 of all images, labels and class names, and
    of which images are in the test split; it does not depend on which are held out for validation. `notes` are
    messages for the user who loads the dataset.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        counts = [list(split.counts().values()) for split in splits]
        rows = [[name, *(f"{n:,}" for n in numbers)] for name, *numbers in zip(self.classes, *counts, strict=True)]
        if (hidden := len(rows) - MAX_SHOWN_CLASSES) > 0:
            rows = [*rows[:MAX_SHOWN_CLASSES], [f"... {hidden:,} more classes", *("" for _ in splits)]]
        rows.append(["all", *(f"{len(split):,}" for split in splits)])
        table = render_table(["class", *(split.name for split in splits)], rows)
        return f"{self.name}: uint8 images of {'x'.join(map(str, self.train.image_shape))}\n{table}"

    def plot(self) -> Any:
        """Return a figure of the first training images of each class."""
        from gingham.plots import draw_contact_sheet

        return draw_contact_sheet(self.train.images, self.train.labels, self.classes, Path(self.name).name)


def cut_splits(
    raw: RawDataset, name: str, source: str, validation: int, trained_on: torch.Tensor | None, **fields: Any
) -> DataSplits:
    """Return a dataset's splits, with `validation` images held out, and with a test split, made if there is none.

    Images in `trained_on`, as for `load_data`, are not held out. All splits get the other `fields` of `Split`.
    """
    fingerprint = _fingerprint(raw)
    notes = list(raw.notes)
    images, labels, files, groups = raw.parts["training"]
    parts = raw.splits()
    num_train = len(parts["train"].labels)
    train = np.arange(num_train)
    free = np.ones(num_train, bool)  # the images that may be held out
    if trained_on is not None and not groups:
        free = ~torch.isin(hash_images(torch.from_numpy(images[:num_train])), trained_on).numpy()

    def take(rows: Rows, chosen: Pixels) -> Part:
        names = (tuple(texts[row] for row in rows.tolist()) if texts else () for texts in (files, groups))
        return Part(chosen, labels[rows], *names)

    if "test" not in parts:
        held_out = _choose_test(parts["train"], raw.classes, name, free)
        # File names choose the test images. If they change, images that a run was trained on become test images.
        fingerprint = hashlib.sha256(fingerprint.encode() + held_out.astype("<i8").tobytes()).hexdigest()
        parts["test"] = take(held_out, _copy_rows(images, held_out, f"{fingerprint[:32]}-test"))
        train = np.setdiff1d(train, held_out)
    if "validation" in parts and validation == 0:
        del parts["validation"]
        train = np.concatenate([train, np.arange(num_train, len(labels))])
    elif "validation" not in parts or validation < 0:
        if name not in REGISTRY and validation > (cap := len(train) // 5):
            held = (
                f"{cap} of the {len(train)} training images are held out for validation (at most a fifth; "
                f"validation_images is {validation})"
            )
            notes += [] if groups else [held]
            validation = cap
        if groups and validation > 0:
            held_out = train[_choose_groups(labels[train], [groups[row] for row in train], validation)]
        else:
            held_out = train[free[train]]
            # As many as that are those which a run to load has held out.
            if validation != len(held_out) or len(held_out) == len(train):
                held_out = train[_choose_validation(labels[train], validation, name, free[train])]
        if len(held_out):
            parts["validation"] = take(held_out, images[held_out])
        train = np.setdiff1d(train, held_out)
    num_held_out = len(parts["validation"].labels) if "validation" in parts else 0
    # Last, because it may overwrite the other rows of `images`.
    parts["train"] = take(train, _move_rows(images, train, f"{fingerprint[:32]}-{num_held_out}"))
    if groups:
        counts = [f"{name} {len({*part.groups})} ({len(part.labels)} images)" for name, part in parts.items()]
        notes.append(f"each group is in one split; groups of each split: {', '.join(counts)}")
    fields |= {"classes": raw.classes, "dataset": name, "fingerprint": fingerprint, "grey_bits": raw.grey_bits}
    fields["keeps_trained"] = trained_on is not None
    return make_splits(parts, source, notes, **fields)


def make_splits(parts: Mapping[str, Part], source: str, notes: Sequence[str] = (), **fields: Any) -> DataSplits:
    """Return the splits of a dataset, all with the given `fields` of `Split`. Images on disk are read in blocks."""
    splits = {}
    for name, (images, labels, files, _) in parts.items():
        mapped = isinstance(images, np.memmap) and len(images)
        block = max(1, BLOCK_BYTES // images[0].nbytes) if mapped else 1
        tensors = torch.from_numpy(images), torch.from_numpy(labels)
        splits[name] = Split(name, *tensors, block=block, files=files, **fields)
    train, validation, test = splits["train"], splits.get("validation"), splits["test"]
    return DataSplits(train.dataset, train, validation, test, train.classes, train.fingerprint, source, tuple(notes))


def _copy_rows(images: Pixels, rows: Rows, pack: str) -> Pixels:
    """Return a copy of some rows of `images`, ascending. Images on disk are copied to a file named `pack` in the cache.

    An existing file of the right size is reused.

    Raises
        DataError: the file cannot be written, for example because the disk is full.
    """
    if not isinstance(images, np.memmap):
        return images[rows]
    path = cache_folder() / "packs" / pack
    shape = (len(rows), *images.shape[1:])
    size = math.prod(shape)
    try:
        if not (path.exists() and path.stat().st_size == size):
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                for chunk in np.array_split(rows, -(-size // (1 << 26))):
                    file.write(images[chunk].tobytes())
        return np.memmap(path, np.uint8, "c", 0, shape)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {path} ({one_line(error)}), which is needed for a dataset larger than half of the free "
            f"memory; free {size} bytes there, or hold no images out (on the command line: --set validation_images=0)"
        ) from error


def _move_rows(images: Pixels, rows: Rows, pack: str) -> Pixels:
    """Return the same as `_copy_rows`, but as a part of `images`, whose other rows may be overwritten."""
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


def _choose_test(part: Part, classes: Sequence[str], name: str, free: npt.NDArray[np.bool_]) -> Rows:
    """Return the indices of the `free` images to hold out for the test: the lowest hashes of class and file name.

    If there are groups, whole groups are held out, with images of each class if possible.

    Raises
        DataError: a class has too few images, or no group can be held out.
    """
    if part.groups:
        count = round(TEST_PERCENT / 100 * len(part.labels))
        if not len(chosen := _choose_groups(part.labels, part.groups, count, every_class=True)):
            raise DataError(
                f"no group of {name} can be held out for the test, because it has all training images of a class, such "
                f"as {classes[part.labels[0]]}; give each class two groups or more, add a test split, or remove the "
                "column"
            )
        return chosen

    def image_hash(index: int) -> bytes:
        key = f"{classes[part.labels[index]]}\0{part.files[index] if part.files else index}"
        return hashlib.sha256(key.encode("utf-8", "replace")).digest()

    held_out: list[int] = []
    for indices in filter(len, _indices_by_class(part.labels)):
        if len(indices) < 3:
            raise DataError(
                f"the class {classes[part.labels[indices[0]]]} of {name} has {plural(len(indices), 'training image')}, "
                "too few to hold test images out; allowed: 3 or more; add images, add a test split, or leave it out"
            )
        count = max((TEST_PERCENT * len(indices) + 50) // 100, int(len(indices) >= 4))
        held_out += sorted(indices[free[indices]].tolist(), key=image_hash)[:count]
    return np.array(sorted(held_out), np.intp)


def _choose_groups(labels: Labels, groups: Sequence[str], count: int, *, every_class: bool = False) -> Rows:
    """Return the indices of the images of whole groups to hold out: up to `count` images, or one group.

    In turn, the class of which the smallest share is held out gets its next group, in the order of their hashes. Groups
    are skipped if they are too large, or have all other images of a class. With `every_class`, the first group of a
    class is not too large. The result is the same if `count` is the number of images in it, which a run stores.
    """
    unique, group_of = np.unique(groups, return_inverse=True)
    names: list[str] = unique.tolist()
    sizes = np.zeros((len(names), labels.max() + 1), np.int64)
    np.add.at(sizes, (group_of, labels), 1)
    held, totals, chosen = np.zeros_like(sizes[0]), sizes.sum(axis=0), set[int]()

    def is_possible(group: int) -> bool:
        return bool((held + sizes[group] < totals)[sizes[group] > 0].all())

    order = sorted(range(len(names)), key=lambda k: hashlib.sha256(names[k].encode("utf-8", "replace")).digest())
    count = max(count, min((int(sizes[k].sum()) for k in order if is_possible(k)), default=0))
    queues = {k: [group for group in reversed(order) if sizes[group, k]] for k in np.flatnonzero(totals).tolist()}
    while queues:
        label = min(queues, key=lambda k: held[k] / totals[k])
        group = queues[label].pop()
        fits = held.sum() + sizes[group].sum() <= count or (every_class and not held[label])
        if fits and group not in chosen and is_possible(group):
            chosen.add(group)
            held += sizes[group]
        if not queues[label]:
            del queues[label]
    return np.flatnonzero(np.isin(group_of, list(chosen)))


def _choose_validation(labels: Labels, validation: int, name: str, free: npt.NDArray[np.bool_]) -> Rows:
    """Return the indices of `free` images to hold out, stratified; the largest remainders by class are rounded up.

    Classes with too few free images get fewer.
    """
    if not 0 <= validation < len(labels):
        raise DataError(
            f"cannot hold {validation} validation images out of the {len(labels)} training images of {name}; "
            f"allowed: 0 to {len(labels) - 1} (on the command line: --set validation_images=N)"
        )
    exact = np.bincount(labels) * (validation / len(labels))
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: validation - counts.sum()]] += 1
    # numpy's compatibility policy (NEP 19) freezes RandomState's stream, so the split never changes.
    random = np.random.RandomState(0)
    shuffled = [random.permutation(indices) for indices in _indices_by_class(labels)]
    chosen = [indices[free[indices]][:count] for indices, count in zip(shuffled, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def _fingerprint(raw: RawDataset) -> str:
    digest = hashlib.sha256("\0".join(raw.classes).encode())
    for images, labels, *_ in raw.parts.values():
        images_as_in_idx = images[:, 0] if images.shape[1] == 1 else images
        for array in (images_as_in_idx, labels.astype(np.uint8 if len(raw.classes) <= 256 else "<i8")):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
    if raw.num_validation:
        digest.update(f"{raw.num_validation} for validation".encode())
    return digest.hexdigest()
