"""Read `.npz` files of images and labels."""

import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from gingham.data.idx import IDX_FILES
from gingham.data.memory import free_memory
from gingham.data.raw import Pixels, RawDataset
from gingham.errors import DataError, one_line
from gingham.io import require_regular_file
from gingham.text import natural_key

NPZ_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def read_npz(path: Path) -> RawDataset:
    """Return the images and labels in a `.npz` file whose arrays are named as in Keras, in MedMNIST or plainly (NPZ_NAMES).

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; labels are integers or text, (N,) or (N, 1).
    The array `classes` or `class_names` names the classes 0 to K-1; without it, the labels are the names.

    Raises
        DataError: the file is not such a file, is damaged, is larger than half of the free memory, or holds other
        arrays.
    """
    needed = "x_train and y_train, train_images and train_labels, or images and labels"
    try:
        require_regular_file(path)
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > free_memory() // 2:
            raise DataError(
                f"{path} holds {size} bytes, more than half of the memory free here; save it as four IDX files, which "
                f"are read from disk ({', '.join(IDX_FILES)})"
            )
        with np.load(path, allow_pickle=False) as arrays:
            splits = {}
            for split, names in NPZ_NAMES.items():
                pairs = [pair for pair in names if set(pair) & set(arrays.files)]
                if not pairs:
                    continue
                pair = pairs[0]
                if missing := set(pair) - set(arrays.files):
                    raise DataError(
                        f"{path} has {_present(pair, arrays.files)} and no {missing.pop()}; it needs {needed}"
                    )
                splits[split] = (
                    _to_images(_read(arrays, pair[0], path), f"{pair[0]} of {path}"),
                    _to_labels(_read(arrays, pair[1], path), f"{pair[1]} of {path}"),
                )
            key = next((name for name in ("classes", "class_names") if name in arrays.files), None)
            classes = None
            if key:
                classes = tuple(map(str, _to_labels(_read(arrays, key, path), f"the class names of {path}").tolist()))
            if "train" not in splits:
                raise DataError(f"{path} holds {', '.join(arrays.files[:8]) or 'nothing'}; it needs {needed}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; check the path") from None
    except (
        ValueError,
        EOFError,
        zlib.error,
        zipfile.BadZipFile,
        KeyError,
        MemoryError,
        OverflowError,
        RuntimeError,
        TokenError,
    ) as error:
        # RuntimeError: an encrypted archive or unknown compression. TokenError: from numpy, for a damaged header.
        pickled = "Object arrays" in str(error)
        reason = "it holds Python objects, which are not loaded" if pickled else one_line(error)
        raise DataError(
            f"cannot read {path} ({reason}); save it anew with np.savez, from arrays of numbers and text"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions") from error
    return _assemble(path, splits, classes)


def _read(arrays: "np.lib.npyio.NpzFile", name: str, path: Path) -> npt.NDArray[Any]:
    array: Any = arrays[name]
    if not isinstance(array, np.ndarray):  # numpy returns the bytes of a member that is no array
        raise DataError(f"{name} of {path} is no array; save it anew with np.savez, from arrays of numbers and text")
    return array


def _present(pair: Sequence[str], names: Sequence[str]) -> str:
    return next(name for name in pair if name in names)


def _to_images(array: npt.NDArray[Any], origin: str) -> Pixels:
    if array.dtype != np.uint8:
        raise DataError(
            f"{origin} holds {array.dtype}, where whole numbers from 0 to 255 are needed; convert it, such as with "
            "(255 * pictures).round().astype(np.uint8) from 0 to 1"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(
            f"{origin} has the shape {array.shape}; allowed: (N, H, W), (N, H, W, C) or (N, C, H, W), with C 1 or 3: "
            "reshape it"
        )
    if not array.size:
        raise DataError(f"{origin} has the shape {array.shape} and so no pixel; it needs pictures")
    return np.ascontiguousarray(array)


def _to_labels(array: npt.NDArray[Any], origin: str) -> npt.NDArray[Any]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        remedy = "; take labels.argmax(axis=1)" if array.ndim == 2 else "; give each picture its class's number or name"
        raise DataError(
            f"{origin} holds {array.dtype} of the shape {array.shape}; allowed: whole numbers or text, (N,) or (N, "
            f"1){remedy}"
        )
    if array.dtype.kind in "iu":
        if array.size and int(array.min()) < 0:
            raise DataError(
                f"{origin} has labels down to {array.min()}; allowed: 0 and above: leave out what has no class"
            )
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if (
        array.size
        and np.frombuffer(array.astype(array.dtype.newbyteorder("=")).tobytes(), np.uint32).max(initial=0)
        > sys.maxunicode
    ):
        raise DataError(f"{origin} holds numbers that are no letters where text is due; save it anew with np.savez")
    return array


def _assemble(
    path: Path, splits: dict[str, tuple[Pixels, npt.NDArray[Any]]], names: tuple[str, ...] | None
) -> RawDataset:
    shape = splits["train"][0].shape[1:]
    for split, (images, labels) in splits.items():
        if len(images) != len(labels):
            raise DataError(
                f"{path} has {len(labels)} {split} labels for {len(images)} {split} pictures; they must be as many"
            )
        if images.shape[1:] != shape:
            raise DataError(
                f"{path} has {split} pictures of {images.shape[1:]}, training ones of {shape}; they must be alike"
            )
    merged = np.concatenate([labels for _, labels in splits.values()])  # numbers become text if some are text
    values = np.unique(merged)
    classes = tuple(sorted(map(str, values.tolist()), key=natural_key)) if names is None else names
    if len({*classes}) < len(classes):
        raise DataError(f"{path} gives one name to two classes; name each once")
    index = {name: number for number, name in enumerate(classes)}
    codes = (
        values
        if names is not None and values.dtype.kind == "i"
        else [index.get(str(value), -1) for value in values.tolist()]
    )
    codes = np.array(codes, np.int64)
    if not len(values) or codes.min() < 0 or codes.max() >= len(classes):
        raise DataError(
            f"{path} has labels from {values[:1]} to {values[-1:]} where its {len(classes)} classes are named; "
            f"allowed: their names, or 0 to {len(classes) - 1}"
        )
    targets = {
        split: codes[np.searchsorted(values, labels.astype(merged.dtype))] for split, (_, labels) in splits.items()
    }
    train_splits = [split for split in ("train", "validation") if split in splits]
    return RawDataset(
        splits["train"][0] if len(train_splits) == 1 else np.concatenate([splits[split][0] for split in train_splits]),
        np.concatenate([targets[split] for split in train_splits]),
        classes,
        splits["test"][0] if "test" in splits else None,
        targets.get("test"),
        len(targets.get("validation", ())),
    )
