"""A cache of decoded images: read the files of a listing once, and keep the result in the user's cache."""

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
from gingham.io import cache_folder, read_json, replacing, write_json

PACK_FORMAT = 1
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class DecodedImages:
    """The pictures of a listing: uint8 `images` (N, C, S, S) of its `entries` that could be read, in order, and what is odd
    about files, as (name, reason)."""

    images: Pixels
    entries: tuple[Entry, ...]
    odd: tuple[tuple[str, str], ...]
    from_pack: bool

    def unreadable(self) -> list[tuple[str, str]]:
        return [(name, reason.removeprefix(UNREADABLE)) for name, reason in self.odd if reason.startswith(UNREADABLE)]


def read_images(place: Path, listing: Listing, size: int) -> DecodedImages:
    """Return the pictures of a listing as squares of `size` pixels (0: their common size, or 28), grey where all are grey.

    They are read once, and kept as a pack in the user's cache; a pack is known by the names, sizes and times of the
    files, so that it is made anew when one of them changes or the pack is damaged. Pictures larger than half of the free
    memory stay there, and are mapped into memory.

    Raises
        DataError: none can be read, or there is no room for pictures larger than memory.
    """
    pack = cache_folder() / "packs" / _pack_name(place, listing, size)
    packed = _unpack(pack, len(listing.entries))
    images, missing, odd = packed or _read_anew(place, listing, size, pack)
    if not len(images):
        raise DataError(f"{place} holds no file that can be read as a picture; give PNG, JPEG, WEBP, BMP, GIF or TIFF files")
    gone = {*missing}
    entries = tuple(entry for number, entry in enumerate(listing.entries) if number not in gone)
    return DecodedImages(
        images, entries, tuple((listing.entries[number].name, reason) for number, reason in odd), packed is not None
    )


Found = tuple[Pixels, list[int], list[tuple[int, str]]]  # the pictures, the places of those missing, (place, what is odd)


def _read_anew(place: Path, listing: Listing, size: int, pack: Path) -> Found:
    files = [entry.file for entry in listing.entries]
    side = size or common_side(files)
    shape = (len(files), 3, side, side)
    large = len(files) * 3 * side * side > free_memory() // 2
    title = f"reading {place.name}"
    if not large:
        images = np.empty(shape, np.uint8)
        reading = decode_images(files, images, title)
        images = images[: len(reading.kept), : 1 if reading.grey else 3]
        metadata = _metadata(reading.kept, reading.odd, len(files))
        if len(images) and not reading.passing:
            with contextlib.suppress(GinghamError, OSError):  # a cache that cannot be written to costs time, no result
                _pack(pack, images, metadata)
        return np.ascontiguousarray(images), metadata["missing"], reading.odd
    try:
        pack.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=pack.parent) as side_file:
            _reserve(side_file, math.prod(shape))
            images = np.memmap(side_file, np.uint8, "w+", shape=shape)
            reading = decode_images(files, images, title)
            metadata = _metadata(reading.kept, reading.odd, len(files))
            if reading.kept:
                _pack(pack, images[: len(reading.kept), : 1 if reading.grey else 3], metadata)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {pack} ({one_line(error)}), which pictures larger than half of the free memory need; free "
            f"{2 * len(files) * 3 * side * side} bytes there, or set a smaller size"
        ) from error
    return _unpack(pack, len(files)) or (np.empty((0, *shape[1:]), np.uint8), metadata["missing"], reading.odd)


def _metadata(kept: Sequence[int], odd: Sequence[tuple[int, str]], files: int) -> dict[str, Any]:
    return {"format": PACK_FORMAT, "missing": sorted({*range(files)} - {*kept}), "odd": odd}


def _pack_name(place: Path, listing: Listing, size: int) -> str:
    """The name of a listing's pack: the first half says of which place and size, the second in which state."""
    state = hashlib.sha256(f"{PACK_FORMAT}\0{size}".encode())
    for entry in listing.entries:
        try:
            status = entry.file.stat()
            # The time of the last change of any kind too: a copy may be given the old time of writing.
            seen = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        except OSError as error:
            seen = f"{error.errno}"
        state.update(b"\0".join([os.fsencode(entry.file), seen.encode()]) + b"\n")
    of = hashlib.sha256(os.fsencode(place) + f"\0{size}".encode())
    return f"{of.hexdigest()[:16]}-{state.hexdigest()[:32]}.npy"


def _pack(path: Path, images: npt.NDArray[np.uint8], metadata: dict[str, Any]) -> None:
    """Write pictures and what is known of them, and remove the packs of earlier states of the same place."""
    check, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
    with replacing(path) as side, side.open("wb") as file:
        model_metadata = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(file, model_metadata)
        for start in range(0, len(images), rows):
            part = np.ascontiguousarray(images[start : start + rows])
            file.write(part.data)
            check = zlib.crc32(part.data, check)
    write_json(path.with_suffix(".json"), {**metadata, "crc32": check})
    for old in path.parent.glob(f"{path.name[:17]}*"):
        if old.stem != path.stem:
            old.unlink(missing_ok=True)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the room for a file that is to be mapped: on a disk that fills up later, writing into memory ends the process."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(file.fileno(), 0, size)


def _unpack(path: Path, files: int) -> Found | None:
    """What `_pack` wrote, or None where it is missing, damaged or of other files."""
    try:
        metadata = read_json(path.with_suffix(".json"))
        large = path.stat().st_size > free_memory() // 2
        images = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        missing, odd = (
            [int(place) for place in metadata["missing"]],
            [(int(place), str(reason)) for place, reason in metadata["odd"]],
        )
        check, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            check = zlib.crc32(np.ascontiguousarray(images[start : start + rows]).data, check)
        whole = images.dtype == np.uint8 and images.ndim == 4 and len(images) + len(missing) == files
        whole &= len({*missing}) == len(missing) and all(
            0 <= place < files for place in [*missing, *(place for place, _ in odd)]
        )
        return (images, missing, odd) if whole and check == metadata["crc32"] else None
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
        return None  # numpy asks for as much memory as a damaged header says
