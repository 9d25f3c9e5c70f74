"""Files of pictures and labels -> uint8 arrays. IDX, the format of MNIST and Fashion-MNIST, plain or gzipped."""

import contextlib
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gingham.errors import DataError, GinghamError, one_line
from gingham.files import replacing

UBYTE = 0x08  # the IDX type code of unsigned bytes
LARGEST_BYTES = 1 << 40


def find_idx(folder: Path, name: str) -> Path | None:
    """Return where the IDX file `name` lies in `folder`, plain or with `.gz`, or None."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists() or path.is_symlink():
            return path
    return None


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Return the array that an IDX file of unsigned bytes holds.

    `dimensions` is 1 for labels (N,) and 3 for pictures (N, H, W). A name ending in `.gz` is decompressed, never
    beyond what the header announces. An array larger than half of the memory that is free stays on disk: what comes back
    is then mapped into memory and read where it is used; writing to it changes a copy, never the file.

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
            array, found = _content(file, path, expected)
            if found < expected:
                raise DataError(f"{path} is truncated: its header announces {expected} bytes, {found} are there; {again}")
            if found > expected:
                raise DataError(f"{path} is longer than the {expected} bytes its header announces; {again}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {again}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged ({one_line(error)}); {again}") from error
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror or one_line(error)}); check its permissions, or {again}"
        ) from error
    return array.reshape(shape)


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


@dataclass(frozen=True)
class Pictures:
    """Files read as pictures: uint8 `images` (N, 3, S, S), the places of their files in the list given, whether all are
    grey, and what is odd, as (file, reason)."""

    images: npt.NDArray[np.uint8]
    kept: list[int]
    grey: bool
    odd: list[tuple[Path, str]]


def read_pictures(files: Sequence[Path], side: int) -> Pictures:
    """Read image files and shrink each to a square of `side` pixels; one that cannot be read is left out and named.

    Odd are files that are no pictures, empty or damaged, of a format their name does not say, with several frames, far
    longer than wide, or smaller than `side`.
    """
    images, kept, odd, grey = [], [], [], True
    for place, file in enumerate(files):
        try:
            with Image.open(file) as image:
                reason = _oddity(image, file, side)
                pixels = ImageOps.exif_transpose(image).convert("RGB").resize((side, side), Image.Resampling.BOX)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            empty = file.stat().st_size == 0
            odd.append(
                (file, "cannot be read: " + ("it is empty" if empty else one_line(error).replace(str(file), "").strip(" '")))
            )
            continue
        if reason:
            odd.append((file, reason))
        array = np.asarray(pixels)
        grey = grey and bool((array == array[..., :1]).all())
        images.append(array.transpose(2, 0, 1))
        kept.append(place)
    return Pictures(np.stack(images) if images else np.empty((0, 3, side, side), np.uint8), kept, grey, odd)


def _oddity(image: Image.Image, file: Path, side: int) -> str | None:
    named = Image.registered_extensions().get(file.suffix.lower())
    width, height = image.size
    if named != image.format and not {named, image.format} <= {"JPEG", "MPO"}:
        return f"is a {image.format} file, whatever its name says"
    if getattr(image, "n_frames", 1) > 1:
        return f"has {getattr(image, 'n_frames', 1)} frames, of which only the first counts"
    if max(width, height) > 4 * min(width, height):
        return f"is {width}x{height}, far from square"
    if max(width, height) < side:
        return f"is {width}x{height}, smaller than the {side}x{side} it would be trained at"
    return None


def idx_sha256(array: npt.NDArray[np.uint8]) -> str:
    """Return the SHA-256, in hex, of the decompressed IDX file that holds `array`."""
    digest = hashlib.sha256(struct.pack(f">BBBB{array.ndim}I", 0, 0, UBYTE, array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
