"""Read the image files of a listing, and cache the decoded images as a pack in the user's cache."""

import contextlib
import hashlib
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gingham.data.decode import UNREADABLE, common_side, decode_images
from gingham.data.listing import Entry, Listing
from gingham.data.memory import free_memory
from gingham.data.raw import Pixels
from gingham.errors import DataError, GinghamError, one_line
from gingham.io import atomic_write, cache_folder, read_json, write_json

PACK_FORMAT = 1
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class DecodedImages:
    """The decoded images of a listing: uint8 `images` (N, C, S, S) of the `entries` that could be read, in order, and
    the issues of its files as (name, reason)."""

    images: Pixels
    entries: tuple[Entry, ...]
    issues: tuple[tuple[str, str], ...]
    from_pack: bool

    def unreadable(self) -> list[tuple[str, str]]:
        return [
            (name, reason.removeprefix(UNREADABLE)) for name, reason in self.issues if reason.startswith(UNREADABLE)
        ]


def read_images(path: Path, listing: Listing, size: int) -> DecodedImages:
    """Return the images of a listing as squares of `size` pixels (0: their common size, or 28), grey if all are grey.

    The decoded images are cached as a pack. Its name depends on the names, sizes and times of the files, so that the
    pack is rewritten when a file changes or the pack is damaged. A pack larger than half of the free memory is
    memory-mapped.

    Raises
        DataError: no file can be read, or the disk is full and the images are larger than memory.
    """
    pack = cache_folder() / "packs" / _pack_name(path, listing, size)
    cached = _read_pack(pack, len(listing.entries))
    images, missing, issues = cached or _decode_and_pack(path, listing, size, pack)
    if not len(images):
        raise DataError(
            f"{path} holds no file that can be read as a picture; give PNG, JPEG, WEBP, BMP, GIF or TIFF files"
        )
    excluded = {*missing}
    entries = tuple(entry for index, entry in enumerate(listing.entries) if index not in excluded)
    return DecodedImages(
        images, entries, tuple((listing.entries[index].name, reason) for index, reason in issues), cached is not None
    )


PackContents = tuple[Pixels, list[int], list[tuple[int, str]]]  # images, indices of missing files, (index, issue)


def _decode_and_pack(path: Path, listing: Listing, size: int, pack: Path) -> PackContents:
    files = [entry.path for entry in listing.entries]
    side = size or common_side(files)
    shape = (len(files), 3, side, side)
    large = len(files) * 3 * side * side > free_memory() // 2
    title = f"reading {path.name}"
    if not large:
        images = np.empty(shape, np.uint8)
        result = decode_images(files, images, title)
        images = images[: len(result.decoded), : 1 if result.grey else 3]
        metadata = _metadata(result.decoded, result.issues, len(files))
        if len(images) and not result.transient:
            with contextlib.suppress(GinghamError, OSError):  # without a cache the result is the same, only slower
                _write_pack(pack, images, metadata)
        return np.ascontiguousarray(images), metadata["missing"], result.issues
    try:
        pack.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=pack.parent) as file:
            _reserve(file, math.prod(shape))
            images = np.memmap(file, np.uint8, "w+", shape=shape)
            result = decode_images(files, images, title)
            metadata = _metadata(result.decoded, result.issues, len(files))
            if result.decoded:
                _write_pack(pack, images[: len(result.decoded), : 1 if result.grey else 3], metadata)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {pack} ({one_line(error)}), which pictures larger than half of the free memory need; free "
            f"{2 * len(files) * 3 * side * side} bytes there, or set a smaller size"
        ) from error
    return _read_pack(pack, len(files)) or (np.empty((0, *shape[1:]), np.uint8), metadata["missing"], result.issues)


def _metadata(decoded: Sequence[int], issues: Sequence[tuple[int, str]], num_files: int) -> dict[str, Any]:
    return {"format": PACK_FORMAT, "missing": sorted({*range(num_files)} - {*decoded}), "odd": issues}


def _pack_name(path: Path, listing: Listing, size: int) -> str:
    """Return the file name of a listing's pack: a hash of its path and the image size, and a hash of the files' state."""
    state_hash = hashlib.sha256(f"{PACK_FORMAT}\0{size}".encode())
    for entry in listing.entries:
        try:
            status = entry.path.stat()
            # ctime too, because a copy may keep the old mtime.
            state = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        except OSError as error:
            state = f"{error.errno}"
        state_hash.update(b"\0".join([os.fsencode(entry.path), state.encode()]) + b"\n")
    source_hash = hashlib.sha256(os.fsencode(path) + f"\0{size}".encode())
    return f"{source_hash.hexdigest()[:16]}-{state_hash.hexdigest()[:32]}.npy"


def _write_pack(path: Path, images: npt.NDArray[np.uint8], metadata: dict[str, Any]) -> None:
    """Write images and their metadata, and remove the packs of earlier states of the same folder or table."""
    crc, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(images), rows):
            chunk = np.ascontiguousarray(images[start : start + rows])
            file.write(chunk.data)
            crc = zlib.crc32(chunk.data, crc)
    write_json(path.with_suffix(".json"), {**metadata, "crc32": crc})
    for old in path.parent.glob(f"{path.name[:17]}*"):
        if old.stem != path.stem:
            old.unlink(missing_ok=True)


def _reserve(file: IO[bytes], size: int) -> None:
    """Reserve disk space for a file before it is mapped: if the disk fills up later, writing to the map kills the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)


def _read_pack(path: Path, num_files: int) -> PackContents | None:
    """Return what `_write_pack` wrote, or None if it is missing, damaged or for another number of files."""
    try:
        metadata = read_json(path.with_suffix(".json"))
        large = path.stat().st_size > free_memory() // 2
        images = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        missing, issues = (
            [int(index) for index in metadata["missing"]],
            [(int(index), str(reason)) for index, reason in metadata["odd"]],
        )
        crc, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            crc = zlib.crc32(np.ascontiguousarray(images[start : start + rows]).data, crc)
        valid = images.dtype == np.uint8 and images.ndim == 4 and len(images) + len(missing) == num_files
        valid &= len({*missing}) == len(missing) and all(
            0 <= index < num_files for index in [*missing, *(index for index, _ in issues)]
        )
        return (images, missing, issues) if valid and crc == metadata["crc32"] else None
    except (
        OSError,
        GinghamError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        OverflowError,
        TokenError,
        MemoryError,
    ):
        return None  # MemoryError: numpy allocates what a damaged header says
