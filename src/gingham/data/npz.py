"""Read `.npz` files of images and labels."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gingham.data.idx import IDX_FILES
from gingham.data.memory import require_memory
from gingham.data.raw import Part, Pixels, RawDataset, join_splits
from gingham.errors import DataError
from gingham.io import explain_read_errors, require_regular_file
from gingham.text import natural_key

NPZ_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}
PART_SIZE = 1024  # images converted at once
CLASS_NAMES = ("classes", "class_names")
KNOWN_NAMES = {*CLASS_NAMES, *(name for pairs in NPZ_NAMES.values() for pair in pairs for name in pair)}
Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]  # by split


def read_npz(path: Path) -> RawDataset:
    """Return the images and labels of a `.npz` file whose arrays are named as in Keras or MedMNIST, or plainly.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, uint8 or other numbers (see `to_uint8`). Labels
    are whole numbers or text, (N,) or (N, 1), or one-hot, (N, K). The array `classes` or `class_names` names the
    classes 0 to K-1; without it, the labels are the names. NPZ_NAMES lists the names of arrays.

    Raises
        DataError: the file is damaged or not a `.npz` file, is larger than half of the free memory, or contains other
            arrays.
    """
    with explain_read_errors(path, "save it again with np.savez, from arrays of numbers and text"):
        require_regular_file(path)
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        require_memory(size, str(path), f"save it as four IDX files, which stay on disk ({', '.join(IDX_FILES)})")
        with np.load(path, allow_pickle=False) as file:
            names = file.files
            arrays = {name: _read_array(file, name) for name in names if name in KNOWN_NAMES}
    # If a split has several pairs of arrays, the first pair is used.
    chosen = {split: pair for split, pairs in NPZ_NAMES.items() for pair in pairs[::-1] if arrays.keys() & pair}
    missing = [name for pair in chosen.values() for name in pair if name not in arrays]
    if missing or "train" not in chosen:
        raise DataError(
            f"{path} contains {', '.join(names[:8]) or 'nothing'}{' but no ' if missing else ''}{', '.join(missing)}; "
            "it needs x_train and y_train, train_images and train_labels, or images and labels"
        )
    images = {split: _to_images(arrays[name], f"{name} of {path}") for split, (name, _) in chosen.items()}
    labels = {split: to_labels(arrays[name], f"{name} of {path}") for split, (_, name) in chosen.items()}
    one_hot = [name for _, name in chosen.values() if arrays[name].ndim == 2 and arrays[name].shape[1] > 1]
    note = f"{', '.join(one_hot)} of {path}, one-hot, became the numbers of classes" if one_hot else ""
    class_names = [to_labels(arrays[name], f"{name} of {path}") for name in CLASS_NAMES if name in arrays]
    return raw_from_numbers(images, labels, path, note, class_names[0] if class_names else None)


def raw_from_numbers(images: Arrays, labels: Arrays, path: Path, note: str, names: Array | None = None) -> RawDataset:
    """Return a RawDataset of images of numbers (N, C, H, W) and of labels (N,) as `to_labels` returns them, by split.

    `names` are those of the classes 0 to K-1, (K,); without them, the labels are the names. `note` is one for the user,
    or empty.

    Raises
        DataError: a label is none of the classes, or the numbers cannot be pixels.
    """
    pixels, pixel_note = to_uint8(images, str(path))
    labels_as_text = {split: [str(label) for label in array.tolist()] for split, array in labels.items()}
    known = {label for part in labels_as_text.values() for label in part}
    classes = tuple(sorted(known, key=natural_key) if names is None else map(str, names.tolist()))
    index = {name: k for k, name in enumerate(classes)}
    if len(index) < len(classes):
        raise DataError(f"{path} has two classes of the same name; give each its own name")
    if names is not None and all(array.dtype.kind != "U" for array in labels.values()):
        index = {str(k): k for k in range(len(classes))}
    if unknown := sorted(known - index.keys(), key=natural_key):
        raise DataError(
            f"{path} has the label {unknown[0]!r}, which is none of its {len(classes)} classes; allowed: their names, "
            f"or 0 to {len(classes) - 1}"
        )
    indices = {split: np.array([index[label] for label in part], np.int64) for split, part in labels_as_text.items()}
    parts = {split: Part(np.ascontiguousarray(pixels[split]), indices[split]) for split in pixels}
    return join_splits(parts, classes, path)._replace(notes=tuple(filter(None, [pixel_note, note])))


def _read_array(file: "np.lib.npyio.NpzFile", name: str) -> Array:
    array: Any = file[name]
    if not isinstance(array, np.ndarray):  # numpy returns the bytes of a member that is not an array
        raise ValueError(f"{name} is not an array")
    if array.dtype.kind == "U":  # numpy accepts numbers that are not valid characters
        array = np.char.encode(array, "utf-8")
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def _to_images(array: Array, origin: str) -> Array:
    images = array[:, None] if array.ndim == 3 else array
    if array.ndim == 4 and array.shape[3] in (1, 3):
        images = array.transpose(0, 3, 1, 2)
    if images.dtype.kind not in "uifb" or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise DataError(
            f"{origin} is {array.dtype} of shape {array.shape}; allowed: one or more images of numbers, (N, H, W), "
            "(N, H, W, C) or (N, C, H, W), with C 1 or 3; reshape it"
        )
    return images


def to_labels(array: Array, origin: str) -> Array:
    """Return labels, or names of classes, as whole numbers or text (N,); `array` may be one-hot or whole floats too."""
    labels = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if labels.ndim == 2 and labels.dtype.kind in "uifb" and ((labels == 0) | (labels == 1)).all():
        labels = labels.argmax(axis=1) if (labels.sum(axis=1) == 1).all() else labels
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{origin} is {array.dtype} of shape {array.shape}; allowed: whole numbers or text, (N,) or (N, 1), or "
            "one-hot, (N, K); give each image its class, for example with labels.argmax(axis=1)"
        )
    if labels.dtype.kind != "U" and labels.min(initial=0) < 0:
        raise DataError(f"{origin} has labels down to {labels.min()}; allowed: 0 and above; leave those images out")
    return labels


def to_uint8(arrays: Arrays, origin: str) -> tuple[dict[str, Pixels], str]:
    """Return images of numbers as uint8, all scaled by one rule, and a note on how; it is empty if nothing changed.

    Arrays of uint8 and whole numbers from 0 to 255 stay. Numbers from 0 to 1 are multiplied by 255, also whole ones;
    numbers from -1 (below -0.5) to 1 are mapped to the same range.

    Raises
        DataError: other numbers, or NaN.
    """
    if all(array.dtype == np.uint8 for array in arrays.values()):
        return dict(arrays), ""
    low, high = (float(limit([limit(array) for array in arrays.values()])) for limit in (np.min, np.max))
    kinds = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
    # A part at a time, because float64 takes eight times the memory.
    parts = [(name, slice(k, k + PART_SIZE)) for name in arrays for k in range(0, len(arrays[name]), PART_SIZE)]
    factor, offset = 1.0, 0.0
    if 0 <= low <= high <= 1:
        factor = 255.0
    elif -1 <= low < -0.5 and high <= 1:
        factor = offset = 127.5
    elif not (0 <= low <= high <= 255 and all((arrays[k][rows] % 1 == 0).all() for k, rows in parts)):
        raise DataError(
            f"{origin} has pixels from {low:g} to {high:g} ({kinds}); allowed: whole numbers from 0 to 255, or numbers "
            "from 0 to 1 or from -1 to 1; scale them, and replace missing values"
        )
    converted = {name: np.empty(array.shape, np.uint8) for name, array in arrays.items()}
    for name, rows in parts:
        converted[name][rows] = np.rint(arrays[name][rows] * factor + offset)
    note = f"the pixels of {origin}, from {low:g} to {high:g} ({kinds}), became 0 to 255 (uint8)"
    return converted, note if factor > 1 or "float" in kinds else ""
