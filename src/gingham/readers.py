"""Files of pictures and labels -> uint8 arrays: IDX, the format of MNIST and Fashion-MNIST, .npz, and CIFAR-10's own."""

import contextlib
import gzip
import hashlib
import math
import re
import struct
import sys
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError, GinghamError, one_line
from gingham.files import replacing, require_plain

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UBYTE, INT = 0x08, 0x0C  # the IDX type codes of unsigned bytes and of integers of four bytes
LARGEST_BYTES = 1 << 40
DEFLATE_RATIO = 1032  # no compressed byte holds more (https://zlib.net/zlib_tech.html)
CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_BYTES = 10_000 * (1 + 3 * 32 * 32)  # of each file: a label and a picture, channel by channel, 10,000 times

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Raw:
    """A dataset as its source has it, before gingham cuts any split.

    `images` is uint8 (N, C, H, W) and `labels` int64 (N,), 0 to K-1: the training pictures and, behind them, the last
    `validation`, those of the source's own validation split. `test_images` and `test_labels` are None where it has no test
    split. `files` names the file of each picture, where they have files of their own.
    """

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]
    test_images: Pixels | None = None
    test_labels: Labels | None = None
    validation: int = 0
    files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for whoever loads it


def natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    """Return what sorts names as people do, numbers by their value, whatever the locale.

    >>> sorted(["10", "2", "b1", "B2"], key=natural)
    ['2', '10', 'B2', 'b1']
    """
    # Text and digits alternate, so that like is compared with like; a number may be longer than int() takes.
    parts = re.split("([0-9]+)", name)
    key: list[Any] = [(len(part.lstrip("0")), part.lstrip("0")) if place % 2 else part for place, part in enumerate(parts)]
    return key, name


def find_idx(folder: Path, name: str) -> Path | None:
    """Return where the IDX file `name` lies in `folder`, plain or with `.gz`, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists() or path.is_symlink():
            return path
    return None


def read_idx(path: Path, dimensions: int, kind: int = UBYTE, file: BinaryIO | None = None) -> Pixels:
    """Return the array that an IDX file of unsigned bytes holds.

    `dimensions` is 1 for labels (N,) and 3 for pictures (N, H, W). With the `kind` INT the last axis of what comes back holds
    the four bytes of each integer, the highest first. A name ending in `.gz` is decompressed, never
    beyond what the header announces; `file` is read in place of the one at `path`, decompressed already. An array larger than
    half of the memory that is free stays on disk: what comes back
    is then mapped into memory and read where it is used; writing to it changes a copy, never the file.

        labels = read_idx(Path("t10k-labels-idx1-ubyte.gz"), dimensions=1)  # uint8, shape (10000,)

    Raises
        DataError: missing, unreadable, not IDX, another number of dimensions, truncated, or longer than it says.

    Source: the format's description at the end of http://yann.lecun.com/exdb/mnist/.
    """
    again = "take the file from its source again"
    try:
        if file is None:
            require_plain(path)
        with file or (cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")) as opened:
            head = opened.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise DataError(f"{path} is not an IDX file (it starts with {head[:4].hex() or 'nothing'}); {again}")
            if head[2] != kind or head[3] != dimensions:
                needed = "unsigned bytes (0x08)" if kind == UBYTE else "integers of four bytes (0x0c)"
                raise DataError(
                    f"{path} holds IDX type 0x{head[2]:02x} in {head[3]} dimensions, where {needed} in "
                    f"{dimensions} are needed; check that it is the file its name says, or {again}"
                )
            sizes = opened.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DataError(f"{path} is truncated inside its header; {again}")
            shape = struct.unpack(f">{dimensions}I", sizes) + (4,) * (kind == INT)
            expected = math.prod(shape)
            if not 0 < expected <= LARGEST_BYTES:
                raise DataError(f"{path} announces {expected} bytes (shape {shape}); allowed: 1 to {LARGEST_BYTES}; {again}")
            if file is None and path.suffix == ".gz" and expected > DEFLATE_RATIO * path.stat().st_size:
                raise DataError(
                    f"{path} is truncated: its header announces {expected} bytes, more than its {path.stat().st_size} compressed "
                    f"ones can hold; {again}"
                )
            if file is None and path.suffix != ".gz" and (there := path.stat().st_size - opened.tell()) < expected:
                raise DataError(f"{path} is truncated: its header announces {expected} bytes, {there} are there; {again}")
            array, found = _content(opened, path, expected)
            if found < expected:
                raise DataError(f"{path} is truncated: its header announces {expected} bytes, {found} are there; {again}")
            if found > expected:
                raise DataError(f"{path} is longer than the {expected} bytes its header announces; {again}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {again}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); {again}") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions, or {again}"
        ) from error
    return array.reshape(shape)


def read_idx_folder(folder: Path) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """Return what the four IDX files in a folder hold, in the order of FILES: pictures (N, H, W) and labels (N,).

    Raises
        DataError: a file missing or as in `read_idx`, or files that do not belong together.
    """
    arrays = []
    for file in FILES:
        path = find_idx(folder, file)
        if path is None:
            raise DataError(f"{folder / file} is missing (nor is there {file}.gz); a dataset needs {', '.join(FILES)}")
        arrays.append(read_idx(path, dimensions=3 if "images" in file else 1))
    for images, labels, files in ((arrays[0], arrays[1], FILES[:2]), (arrays[2], arrays[3], FILES[2:])):
        if len(images) != len(labels):
            raise DataError(
                f"{folder / files[1]} holds {len(labels)} labels for the {len(images)} pictures of {files[0]}; "
                "they must be as many: take both files from their source again"
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder / FILES[2]} holds pictures of {arrays[2].shape[1]}x{arrays[2].shape[2]}, the training ones are "
            f"{arrays[0].shape[1]}x{arrays[0].shape[2]}; take both files from the same source"
        )
    return arrays[0], arrays[1], arrays[2], arrays[3]


def raw_of(arrays: Sequence[Pixels], classes: tuple[str, ...]) -> Raw:
    """Return grey pictures (N, H, W) and labels (N,), of training and of test, as a Raw."""
    images, labels, test_images, test_labels = arrays
    return Raw(images[:, None], labels.astype(np.int64), classes, test_images[:, None], test_labels.astype(np.int64))


def _content(file: BinaryIO, path: Path, expected: int) -> tuple[npt.NDArray[np.uint8], int]:
    """What follows the header, and how many bytes there are, counted no further than one too many."""
    if expected > free_memory() // 2:
        if path.suffix == ".gz":
            raise DataError(
                f"{path} holds {expected} bytes, more than half of the memory free here; decompress it (gunzip), and it will "
                "be read from disk"
            )
        found = path.stat().st_size - file.tell()
        # Copy on write: torch warns of arrays that cannot be written to.
        return np.memmap(path, np.uint8, "c", file.tell(), (min(found, expected),)) if found else np.empty(0, np.uint8), found
    array = np.empty(expected, np.uint8)  # filled in place: a second copy would double what a large set needs
    view, found = array.data, 0
    while found < expected and (count := file.readinto(view[found : found + (1 << 24)])):  # type: ignore[attr-defined]
        found += count
    return array, found + len(file.read(1)) if found == expected else found


def free_memory() -> int:
    """Return how many bytes of memory this process can still take, by the system and by its container's limit."""
    free = [LARGEST_BYTES]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kind, group = line.split(":", 2)
            if kind in ("", "memory"):  # of cgroup v2 and v1
                root = Path("/sys/fs/cgroup", kind)
                name = "memory.limit_in_bytes" if kind else "memory.max"
                for folder in (root, root / group.lstrip("/")):  # inside a container its own group is the root
                    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                        free.append(int((folder / name).read_text()))
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    except (OSError, ValueError, IndexError, StopIteration):
        pass
    return min(free)


def map_rows(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], path: Path) -> npt.NDArray[np.uint8]:
    """Copy some rows of a large array to a file of their own, once, and return that file mapped into memory.

    `images` is uint8 (N, H, W), `rows` ascending indices (M,). A file of the right size that is there already is used.

    Raises
        DataError: the file cannot be written, such as for want of room.
    """
    shape = (len(rows), *images.shape[1:])
    size = math.prod(shape)
    try:
        if not (path.exists() and path.stat().st_size == size):
            with replacing(path) as side, side.open("wb") as file:
                for part in np.array_split(rows, -(-size // (1 << 26))):
                    file.write(images[part].tobytes())
        return np.memmap(path, np.uint8, "c", 0, shape)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {path} ({one_line(error)}), which a dataset larger than half of the free memory needs; "
            f"free {size} bytes there, or hold no pictures out (--set validation_images=0)"
        ) from error


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that holds `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


NPZ_NAMES = {
    "train": (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels")),
    "validation": (("x_val", "y_val"), ("val_images", "val_labels")),
    "test": (("x_test", "y_test"), ("test_images", "test_labels")),
}


def read_npz(path: Path) -> Raw:
    """Return the pictures and labels in a `.npz` file of Keras's, MedMNIST's or plain names (NPZ_NAMES).

    Pictures are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; labels are integers or text, (N,) or (N, 1).
    The array `classes` or `class_names` names the classes 0 to K-1; without it they are named by their labels.

    Raises
        DataError: not such a file, damaged, larger than half of the free memory, or arrays of another kind.
    """
    wanted = "x_train and y_train, train_images and train_labels, or images and labels"
    try:
        require_plain(path)
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > free_memory() // 2:
            raise DataError(
                f"{path} holds {size} bytes, more than half of the memory free here; save it as four IDX files, which are "
                f"read from disk ({', '.join(FILES)})"
            )
        with np.load(path, allow_pickle=False) as arrays:
            found = {}
            for split, names in NPZ_NAMES.items():
                pairs = [pair for pair in names if set(pair) & set(arrays.files)]
                if not pairs:
                    continue
                pair = pairs[0]
                if lacking := set(pair) - set(arrays.files):
                    raise DataError(f"{path} has {_known(pair, arrays.files)} and no {lacking.pop()}; it needs {wanted}")
                found[split] = (
                    _pixels(_member(arrays, pair[0], path), f"{pair[0]} of {path}"),
                    _labels(_member(arrays, pair[1], path), f"{pair[1]} of {path}"),
                )
            named = next((name for name in ("classes", "class_names") if name in arrays.files), None)
            classes = None
            if named:
                classes = tuple(map(str, _labels(_member(arrays, named, path), f"the class names of {path}").tolist()))
            if "train" not in found:
                raise DataError(f"{path} holds {', '.join(arrays.files[:8]) or 'nothing'}; it needs {wanted}")
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
        # RuntimeError: a password is needed, or a compression that is not known. TokenError: numpy's, of a torn header.
        pickled = "Object arrays" in str(error)
        reason = "it holds Python objects, which are not loaded" if pickled else one_line(error)
        raise DataError(
            f"cannot read {path} ({reason}); save it anew with np.savez, from arrays of numbers and text"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions") from error
    return _assembled(path, found, classes)


def _member(arrays: "np.lib.npyio.NpzFile", name: str, path: Path) -> npt.NDArray[Any]:
    array: Any = arrays[name]
    if not isinstance(array, np.ndarray):  # numpy gives the bytes of what does not begin as an array does
        raise DataError(f"{name} of {path} is no array; save it anew with np.savez, from arrays of numbers and text")
    return array


def _known(pair: Sequence[str], names: Sequence[str]) -> str:
    return next(name for name in pair if name in names)


def _pixels(array: npt.NDArray[Any], what: str) -> Pixels:
    if array.dtype != np.uint8:
        raise DataError(
            f"{what} holds {array.dtype}, where whole numbers from 0 to 255 are needed; convert it, such as with "
            "(255 * pictures).round().astype(np.uint8) from 0 to 1"
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in (1, 3):
        raise DataError(
            f"{what} has the shape {array.shape}; allowed: (N, H, W), (N, H, W, C) or (N, C, H, W), with C 1 or 3: reshape it"
        )
    if not array.size:
        raise DataError(f"{what} has the shape {array.shape} and so no pixel; it needs pictures")
    return np.ascontiguousarray(array)


def _labels(array: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        ways = "; take labels.argmax(axis=1)" if array.ndim == 2 else "; give each picture its class's number or name"
        raise DataError(
            f"{what} holds {array.dtype} of the shape {array.shape}; allowed: whole numbers or text, (N,) or (N, 1){ways}"
        )
    if array.dtype.kind in "iu":
        if array.size and int(array.min()) < 0:
            raise DataError(f"{what} has labels down to {array.min()}; allowed: 0 and above: leave out what has no class")
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        return np.char.decode(array, "utf-8")
    if (
        array.size
        and np.frombuffer(array.astype(array.dtype.newbyteorder("=")).tobytes(), np.uint32).max(initial=0) > sys.maxunicode
    ):
        raise DataError(f"{what} holds numbers that are no letters where text is due; save it anew with np.savez")
    return array


def is_plain(name: str) -> bool:
    """Return whether a class may be called so: in letters that are shown on one line and can be written as UTF-8."""
    return bool(name) and not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name)


def _assembled(path: Path, found: dict[str, tuple[Pixels, npt.NDArray[Any]]], names: tuple[str, ...] | None) -> Raw:
    shape = found["train"][0].shape[1:]
    for split, (images, labels) in found.items():
        if len(images) != len(labels):
            raise DataError(f"{path} has {len(labels)} {split} labels for {len(images)} {split} pictures; they must be as many")
        if images.shape[1:] != shape:
            raise DataError(f"{path} has {split} pictures of {images.shape[1:]}, training ones of {shape}; they must be alike")
    every = np.concatenate([labels for _, labels in found.values()])  # numbers beside text become text
    values = np.unique(every)
    classes = tuple(sorted(map(str, values.tolist()), key=natural)) if names is None else names
    if len({*classes}) < len(classes):
        raise DataError(f"{path} gives one name to two classes; name each once")
    place = {name: number for number, name in enumerate(classes)}
    order = (
        values if names is not None and values.dtype.kind == "i" else [place.get(str(value), -1) for value in values.tolist()]
    )
    order = np.array(order, np.int64)
    if not len(values) or order.min() < 0 or order.max() >= len(classes):
        raise DataError(
            f"{path} has labels from {values[:1]} to {values[-1:]} where its {len(classes)} classes are named; allowed: their names, or "
            f"0 to {len(classes) - 1}"
        )
    numbers = {split: order[np.searchsorted(values, labels.astype(every.dtype))] for split, (_, labels) in found.items()}
    learning = [split for split in ("train", "validation") if split in found]
    return Raw(
        found["train"][0] if len(learning) == 1 else np.concatenate([found[split][0] for split in learning]),
        np.concatenate([numbers[split] for split in learning]),
        classes,
        found["test"][0] if "test" in found else None,
        numbers.get("test"),
        len(numbers.get("validation", ())),
    )


def find_cifar(place: Path) -> Path | None:
    """Return the folder of CIFAR-10's binary files that `place` is or holds, or its archive, if it is one, or None."""
    if place.is_file():
        return place if place.name.endswith(".tar.gz") else None
    folders = (place, place / "cifar-10-batches-bin")
    return next((folder for folder in folders if (folder / CIFAR_FILES[0]).is_file()), None)


def read_cifar(place: Path, classes: tuple[str, ...]) -> Raw:
    """Return CIFAR-10 from its binary release: the archive `cifar-10-binary.tar.gz`, or the folder it holds.

    Raises
        DataError: a file missing, of another length, with other labels, or an archive that is damaged or another one.

    Source: the layout as described at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    again = "take cifar-10-binary.tar.gz from its source again"
    try:
        found = dict(_cifar_parts(place))
    except (EOFError, zlib.error, tarfile.TarError, OSError) as error:
        raise DataError(f"cannot read {place} ({one_line(error)}); {again}") from error
    for name in CIFAR_FILES:
        if len(content := found.get(name, b"")) != CIFAR_BYTES:
            state = f"{len(content)} bytes long, not {CIFAR_BYTES}" if name in found else "missing"
            raise DataError(f"{name} of {place} is {state}; {again}")
    rows = [np.frombuffer(found[name], np.uint8).reshape(10_000, -1) for name in CIFAR_FILES]
    if max(int(row[:, 0].max()) for row in rows) >= len(classes):
        raise DataError(f"{place} has labels above {len(classes) - 1}; {again}")
    images, test_images = (np.concatenate([row[:, 1:] for row in part]).reshape(-1, 3, 32, 32) for part in (rows[:5], rows[5:]))
    labels, test_labels = (np.concatenate([row[:, 0] for row in part]).astype(np.int64) for part in (rows[:5], rows[5:]))
    return Raw(images, labels, classes, test_images, test_labels)


def _cifar_parts(place: Path) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for name in CIFAR_FILES:
            if (place / name).exists():
                with (place / name).open("rb") as file:
                    yield name, file.read(CIFAR_BYTES + 1)
        return
    with tarfile.open(place, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in CIFAR_FILES and (inside := archive.extractfile(member)):
                yield name, inside.read(CIFAR_BYTES + 1)
