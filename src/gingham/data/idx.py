"""Read IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from gingham.data.memory import LARGEST_BYTES, free_memory
from gingham.data.raw import Pixels
from gingham.errors import DataError, one_line
from gingham.io import require_regular_file

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UBYTE, INT = 0x08, 0x0C  # the IDX type codes of unsigned bytes and of integers of four bytes
DEFLATE_RATIO = 1032  # DEFLATE's highest compression ratio (https://zlib.net/zlib_tech.html)


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the path of the IDX file `name` in `folder`, plain or with `.gz`, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists() or path.is_symlink():
            return path
    return None


def read_idx(path: Path, dimensions: int, type_code: int = UBYTE, file: BinaryIO | None = None) -> Pixels:
    """Return the array in an IDX file of unsigned bytes.

    `dimensions` is 1 for labels (N,) and 3 for images (N, H, W). With the `type_code` INT, the last axis of the result
    holds the four bytes of each integer, the highest first. A name ending in `.gz` is decompressed, never beyond the
    size in its header. `file`, if given, is read instead of the file at `path`; it must be decompressed already. An
    array larger than half of the free memory is memory-mapped; writing to it changes a copy, never the file.

        labels = read_idx(Path("t10k-labels-idx1-ubyte.gz"), dimensions=1)  # uint8, shape (10000,)

    Raises
        DataError: the file is missing, unreadable, not IDX, of other dimensions, truncated, or longer than its header
        says.

    Source: the format's description at the end of http://yann.lecun.com/exdb/mnist/.
    """
    remedy = "take the file from its source again"
    try:
        if file is None:
            require_regular_file(path)
        with file or (cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")) as opened:
            magic = opened.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0":
                raise DataError(f"{path} is not an IDX file (it starts with {magic[:4].hex() or 'nothing'}); {remedy}")
            if magic[2] != type_code or magic[3] != dimensions:
                needed = "unsigned bytes (0x08)" if type_code == UBYTE else "integers of four bytes (0x0c)"
                raise DataError(
                    f"{path} holds IDX type 0x{magic[2]:02x} in {magic[3]} dimensions, where {needed} in "
                    f"{dimensions} are needed; check that it is the file its name says, or {remedy}"
                )
            sizes = opened.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DataError(f"{path} is truncated inside its header; {remedy}")
            shape = struct.unpack(f">{dimensions}I", sizes) + (4,) * (type_code == INT)
            expected = math.prod(shape)
            if not 0 < expected <= LARGEST_BYTES:
                raise DataError(
                    f"{path} announces {expected} bytes (shape {shape}); allowed: 1 to {LARGEST_BYTES}; {remedy}"
                )
            if file is None and path.suffix == ".gz" and expected > DEFLATE_RATIO * path.stat().st_size:
                raise DataError(
                    f"{path} is truncated: its header announces {expected} bytes, more than its {path.stat().st_size} "
                    f"compressed ones can hold; {remedy}"
                )
            if file is None and path.suffix != ".gz" and (available := path.stat().st_size - opened.tell()) < expected:
                raise DataError(
                    f"{path} is truncated: its header announces {expected} bytes, {available} are there; {remedy}"
                )
            array, size = _read_content(opened, path, expected)
            if size < expected:
                raise DataError(
                    f"{path} is truncated: its header announces {expected} bytes, {size} are there; {remedy}"
                )
            if size > expected:
                raise DataError(f"{path} is longer than the {expected} bytes its header announces; {remedy}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {remedy}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); {remedy}") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions, or {remedy}"
        ) from error
    return array.reshape(shape)


def read_idx_folder(folder: Path) -> tuple[Pixels, Pixels, Pixels, Pixels]:
    """Return the arrays of the four IDX files in a folder, in the order of IDX_FILES: images (N, H, W) and labels (N,).

    Raises
        DataError: a file is missing or invalid (see `read_idx`), or the files do not belong together.
    """
    arrays = []
    for file in IDX_FILES:
        path = find_idx(folder, file)
        if path is None:
            raise DataError(
                f"{folder / file} is missing (nor is there {file}.gz); a dataset needs {', '.join(IDX_FILES)}"
            )
        arrays.append(read_idx(path, dimensions=3 if "images" in file else 1))
    for images, labels, files in ((arrays[0], arrays[1], IDX_FILES[:2]), (arrays[2], arrays[3], IDX_FILES[2:])):
        if len(images) != len(labels):
            raise DataError(
                f"{folder / files[1]} holds {len(labels)} labels for the {len(images)} pictures of {files[0]}; "
                "they must be as many: take both files from their source again"
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder / IDX_FILES[2]} holds pictures of {arrays[2].shape[1]}x{arrays[2].shape[2]}, the training ones "
            f"are {arrays[0].shape[1]}x{arrays[0].shape[2]}; take both files from the same source"
        )
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _read_content(file: BinaryIO, path: Path, expected: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the data after the header and its size in bytes, at most `expected` + 1."""
    if expected > free_memory() // 2:
        if path.suffix == ".gz":
            raise DataError(
                f"{path} holds {expected} bytes, more than half of the memory free here; decompress it (gunzip), and "
                "it will be read from disk"
            )
        size = path.stat().st_size - file.tell()
        # Copy on write, because torch warns about read-only arrays.
        return np.memmap(path, np.uint8, "c", file.tell(), (min(size, expected),)) if size else np.empty(
            0, np.uint8
        ), size
    array = np.empty(expected, np.uint8)  # filled in place: a second copy would double the memory
    view, size = array.data, 0
    while size < expected and (count := file.readinto(view[size : size + (1 << 24)])):  # type: ignore[attr-defined]
        size += count
    return array, size + len(file.read(1)) if size == expected else size


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that would hold `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
