"""Training, validation and test split, and how a dataset is cut into them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from gingham.data.memory import memory_map_rows
from gingham.data.raw import Labels, Pixels, RawDataset
from gingham.data.registry import REGISTRY
from gingham.errors import DataError
from gingham.io import cache_folder

BLOCK_BYTES = 1 << 16  # read together from disk
TEST_PERCENT = 15


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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of each image: channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def counts(self) -> dict[str, int]:
        """Return how many pictures each class has, in class order."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


@dataclass(frozen=True)
class DataSplits:
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


def cut_splits(raw: RawDataset, name: str, source: str, validation: int, size: int, skip_unreadable: bool) -> DataSplits:
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
        if name not in REGISTRY and validation > (most := len(train) // 5):
            notes.append(f"{most} of the {len(train)} training pictures are held out for validation, a fifth, not {validation}")
            validation = most
        kept, taken = _stratify(raw.labels[train], validation, name)
        train, held_out = train[kept], train[taken]
        held_out_images = _rows(raw.images, held_out)

    def split(title: str, images: Pixels, labels: Labels, files: tuple[str, ...]) -> Split:
        made = make_split(title, images, labels, raw.classes, name, files)
        return dataclasses.replace(made, fingerprint=fingerprint, size=size, skip_unreadable=skip_unreadable)

    labels, files = raw.labels[held_out], _named(raw.files, held_out)
    validation_split = split("validation", held_out_images, labels, files) if len(held_out) else None
    pack = f"{fingerprint[:32]}-{len(held_out)}"
    return DataSplits(
        name=name,
        train=split("train", _rows(raw.images, train, pack, last=True), raw.labels[train], _named(raw.files, train)),
        validation=validation_split,
        test=split("test", test_images, test_labels, test_files),
        classes=raw.classes,
        fingerprint=fingerprint,
        source=source,
        notes=tuple(notes),
    )


def make_split(
    title: str, images: Pixels, labels: Labels, classes: tuple[str, ...], name: str, files: tuple[str, ...]
) -> Split:
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
        return memory_map_rows(images, rows, cache_folder() / "packs" / pack)
    if not last:
        return np.array(images[rows])
    for start in range(0, len(rows), 4096):  # indexing would hold all pictures twice
        part = rows[start : start + 4096]
        images[start : start + len(part)] = images[part]
    return images[: len(rows)]


def _by_class(labels: Labels) -> Sequence[npt.NDArray[np.intp]]:
    """The places of each label's pictures, ascending, for labels from 0 to the highest."""
    return np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])


def _hold_out_test(raw: RawDataset, own: int, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
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


def _fingerprint(raw: RawDataset) -> str:
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
