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
from gingham.io import require_plain

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UBYTE, INT = 0x08, 0x0C  # the IDX type codes of unsigned bytes and of integers of four bytes
DEFLATE_RATIO = 1032  # no compressed byte holds more (https://zlib.net/zlib_tech.html)


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
    for file in IDX_FILES:
        path = find_idx(folder, file)
        if path is None:
            raise DataError(f"{folder / file} is missing (nor is there {file}.gz); a dataset needs {', '.join(IDX_FILES)}")
        arrays.append(read_idx(path, dimensions=3 if "images" in file else 1))
    for images, labels, files in ((arrays[0], arrays[1], IDX_FILES[:2]), (arrays[2], arrays[3], IDX_FILES[2:])):
        if len(images) != len(labels):
            raise DataError(
                f"{folder / files[1]} holds {len(labels)} labels for the {len(images)} pictures of {files[0]}; "
                "they must be as many: take both files from their source again"
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder / IDX_FILES[2]} holds pictures of {arrays[2].shape[1]}x{arrays[2].shape[2]}, the training ones are "
            f"{arrays[0].shape[1]}x{arrays[0].shape[2]}; take both files from the same source"
        )
    return arrays[0], arrays[1], arrays[2], arrays[3]


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


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that holds `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
