"""Read IDX files, the format of MNIST and Fashion-MNIST."""

import gzip
import hashlib
import io
import math
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gingham.data.memory import LARGEST_BYTES, free_memory
from gingham.data.raw import Pixels
from gingham.errors import DataError
from gingham.io import explain_read_errors, require_regular_file

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
UBYTE, INT = 0x08, 0x0C  # the IDX type codes of unsigned bytes and of integers of four bytes
CHUNK_BYTES = 1 << 24


def find_idx(folder: Path, name: str) -> Path | None:
    """Return the path of the IDX file `name` in `folder`, plain or with `.gz`, or None."""
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if os.path.lexists(path)), None)


def read_idx(path: Path, dimensions: int, type_code: int = UBYTE, file: io.BufferedIOBase | None = None) -> Pixels:
    """Return the array in an IDX file of unsigned bytes.

    `dimensions` is 1 for labels (N,) and 3 for images (N, H, W). With the `type_code` INT, the last axis of the result
    has the four bytes of each integer, the highest first. A file whose name ends in `.gz` is decompressed, but never
    much beyond the size in its header. `file`, if given, is read instead of the file at `path`; it must be decompressed
    already. An array larger than half of the free memory is memory-mapped; writing to it changes a copy, never the
    file.

        labels = read_idx(Path("t10k-labels-idx1-ubyte.gz"), dimensions=1)  # uint8, shape (10000,)

    Raises
        DataError: the file is missing, unreadable, not IDX, of another type or number of dimensions, truncated, or
            longer than its header declares.

    Source: the format's description at the end of http://yann.lecun.com/exdb/mnist/.
    """
    with explain_read_errors(path, "get the file from its source again"):
        if file is None:
            require_regular_file(path)
        with file or (gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as opened:
            shape = _read_header(opened, dimensions, type_code)
            return _read_data(opened, path, math.prod(shape)).reshape(shape)


def read_idx_folder(folder: Path) -> list[Pixels]:
    """Return the arrays of the four IDX files in a folder, in the order of IDX_FILES: images (N, H, W) and labels (N,).

    Raises
        DataError: a file is missing or invalid (see `read_idx`).
    """
    arrays = []
    for name in IDX_FILES:
        if (path := find_idx(folder, name)) is None:
            raise DataError(f"{folder / name} is missing, and so is {name}.gz; a dataset needs {', '.join(IDX_FILES)}")
        arrays.append(read_idx(path, dimensions=3 if "images" in name else 1))
    return arrays


def _read_header(file: io.BufferedIOBase, dimensions: int, type_code: int) -> tuple[int, ...]:
    """Return the shape of the array in bytes. Raise a ValueError for another header."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0":
        raise ValueError(f"it is not an IDX file: it starts with {start.hex() or 'nothing'}")
    if (start[2], start[3]) != (type_code, dimensions):
        found = f"IDX type 0x{start[2]:02x} in {start[3]} dimensions"
        raise ValueError(f"it contains {found}, not 0x{type_code:02x} in {dimensions}")
    sizes = file.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise ValueError("it is truncated inside its header")
    shape = struct.unpack(f">{dimensions}I", sizes) + (4,) * (type_code == INT)
    if not 0 < math.prod(shape) <= LARGEST_BYTES:
        raise ValueError(f"its header declares {math.prod(shape)} bytes; allowed: 1 to {LARGEST_BYTES}")
    return shape


def _read_data(file: io.BufferedIOBase, path: Path, expected: int) -> Pixels:
    """Return the data after the header. Raise a ValueError if its size is not `expected` bytes."""
    if expected <= free_memory() // 2:
        content = bytearray()  # grows with what is read, because the size in the header may be wrong
        while len(content) <= expected and (chunk := file.read(CHUNK_BYTES)):
            content += chunk
        size = len(content)
        if size == expected:
            return np.frombuffer(content, np.uint8)
    elif path.suffix == ".gz":
        raise DataError(
            f"{path} declares {expected} bytes, more than half of the free memory; decompress it (gunzip): this shows "
            "whether it is damaged, and a decompressed file is read from disk"
        )
    else:
        size = path.stat().st_size - file.tell()
        if size == expected:
            return np.memmap(path, np.uint8, "c", file.tell(), (size,))  # torch warns about read-only arrays
    raise ValueError(f"its header declares {expected} bytes; {'more' if size > expected else size} follow")


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that would contain `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
