"""Files of pictures and labels -> uint8 arrays. IDX, the format of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError, one_line

UBYTE = 0x08  # the IDX type code of unsigned bytes
LARGEST_BYTES = 16 << 30


def find_idx(folder: Path, name: str) -> Path | None:
    """Return where the IDX file `name` lies in `folder`, plain or with `.gz`, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists() or path.is_symlink():
            return path
    return None


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the array that an IDX file of unsigned bytes holds.

    `dimensions` is 1 for labels (N,) and 3 for pictures (N, H, W). A name ending in `.gz` is decompressed, never
    beyond what the header announces.

        labels = read_idx(Path("t10k-labels-idx1-ubyte.gz"), dimensions=1)  # uint8, shape (10000,)

    Raises
        DataError: missing, unreadable, not IDX, another number of dimensions, truncated, or longer than it says.

    Source: the format's description at the end of http://yann.lecun.com/exdb/mnist/.
    """
    again = "take the file from its source again"
    try:
        with cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise DataError(f"{path} is not an IDX file (it starts with {head[:4].hex() or 'nothing'}); {again}")
            if head[2] != UBYTE or head[3] != dimensions:
                raise DataError(
                    f"{path} holds IDX type 0x{head[2]:02x} in {head[3]} dimensions, where unsigned bytes (0x08) in "
                    f"{dimensions} are needed; check that it is the file its name says, or {again}"
                )
            sizes = file.read(4 * dimensions)
            if len(sizes) < 4 * dimensions:
                raise DataError(f"{path} is truncated inside its header; {again}")
            shape = struct.unpack(f">{dimensions}I", sizes)
            expected = math.prod(shape)
            if not 0 < expected <= LARGEST_BYTES:
                raise DataError(f"{path} announces {expected} bytes (shape {shape}); allowed: 1 to {LARGEST_BYTES}; {again}")
            content = file.read(expected)
            if len(content) < expected:
                raise DataError(
                    f"{path} is truncated: its header announces {expected} bytes, {len(content)} are there; {again}"
                )
            if file.read(1):
                raise DataError(f"{path} is longer than the {expected} bytes its header announces; {again}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {again}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); {again}") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions, or {again}"
        ) from error
    return np.frombuffer(bytearray(content), np.uint8).reshape(shape)


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that holds `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
