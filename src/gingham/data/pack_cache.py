"""Read image files, and cache the decoded images as a pack in the user's cache."""

import contextlib
import hashlib
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gingham.data.decode import FORMAT_LIST, GREY_BITS, DecodedImages, common_side, decode_images, read_size
from gingham.data.memory import free_memory
from gingham.data.raw import Pixels
from gingham.errors import DataError, GinghamError, one_line
from gingham.io import atomic_write, cache_folder, read_json, write_json

PACK_FORMAT = 3
NUM_SAMPLED = 100  # files whose sizes are read before all are decoded


def read_images(path: Path, files: Sequence[Path], size: int) -> DecodedImages:
    """Return the images in `files` as squares of `size` pixels (0: their common size, or 28), grey if all are grey.

    `path` is the folder or table that lists them. The decoded images are cached as a pack. Its name depends on the
    names, sizes and times of the files, so that the pack is rewritten when a file changes or the pack is damaged. A
    pack larger than half of the free memory is memory-mapped.

    Raises
        DataError: no file can be read, or the images are larger than half of the free memory and the pack cannot be
            written.
    """
    pack = pack_path(path, files, size)
    decoded = _read_pack(pack, len(files)) or _decode_and_pack(path, files, size, pack)
    if not len(decoded.images):
        raise DataError(f"{path} has no readable file; give {FORMAT_LIST} images")
    return decoded


def _decode_and_pack(path: Path, files: Sequence[Path], size: int, pack: Path) -> DecodedImages:
    """Decode files and write their pack. Without `size`, they are decoded again if their common side is another one."""
    side = size or common_side([read_size(file) for file in files[:: max(1, len(files) // NUM_SAMPLED)]])
    shape = (len(files), 3, side, side)
    num_bytes = math.prod(shape)
    title = f"reading {path.name}"
    if num_bytes <= free_memory() // 2:
        decoded = decode_images(files, np.empty(shape, np.uint8), title)
        if not size and decoded.side != side:
            return _decode_and_pack(path, files, decoded.side, pack)
        if not decoded.transient:
            with contextlib.suppress(GinghamError, OSError):  # without a cache the result is the same, only slower
                _write_pack(pack, decoded)
        return decoded._replace(images=np.ascontiguousarray(decoded.images))
    try:
        pack.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=pack.parent) as file:
            if hasattr(os, "posix_fallocate"):  # writing to a map on a full disk would kill the process
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            decoded = decode_images(files, np.memmap(file, np.uint8, "w+", shape=shape), title)
            if size or decoded.side == side:
                _write_pack(pack, decoded)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {pack} ({one_line(error)}), which is needed for images larger than half of the free memory; "
            f"free {2 * num_bytes} bytes there, or set a smaller size"
        ) from error
    if not size and decoded.side != side:
        return _decode_and_pack(path, files, decoded.side, pack)
    return (_read_pack(pack, len(files)) or decoded)._replace(cached=False)


def pack_path(path: Path, files: Sequence[Path], size: int) -> Path:
    """Return the path of the pack of images, the array; its metadata are beside it, with the suffix `.json`."""
    return cache_path("packs", path, files, f"{PACK_FORMAT}\0{size}").with_suffix(".npy")


def cache_path(kind: str, path: Path, files: Sequence[Path], variant: str = "") -> Path:
    """Return the path in the cache, without suffix, of what is read from `files`, which `path` contains.

    Its name is a hash of the path and the `variant`, and a hash of the names, sizes and times of the files.
    """
    state_hash = hashlib.sha256(variant.encode())
    for file in files:
        try:
            status = file.stat()
            # ctime too, because a copy may keep the old mtime.
            state = f"{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}"
        except OSError as error:
            state = f"{error.errno}"
        state_hash.update(b"\0".join([os.fsencode(file), state.encode()]) + b"\n")
    source_hash = hashlib.sha256(os.fsencode(path) + f"\0{variant}".encode())
    return cache_folder() / kind / f"{source_hash.hexdigest()[:16]}-{state_hash.hexdigest()[:32]}"


def remove_earlier(path: Path) -> None:
    """Remove what the cache has of earlier states of the same files."""
    for old in path.parent.glob(f"{path.name[:17]}*"):
        if old.stem != path.stem:
            with contextlib.suppress(OSError):  # Windows cannot remove an open file
                old.unlink(missing_ok=True)


def _write_pack(path: Path, decoded: DecodedImages) -> None:
    """Write images and their metadata, and remove the packs of earlier states."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.save(file, decoded.images)
    metadata = {"format": PACK_FORMAT, "missing": decoded.missing, "odd": decoded.issues}
    metadata |= {"grey_bits": decoded.grey_bits, "crc32": _crc32(decoded.images)}
    write_json(path.with_suffix(".json"), metadata)
    remove_earlier(path)


def _read_pack(path: Path, num_files: int) -> DecodedImages | None:
    """Return what `_write_pack` wrote, or None if it is missing, damaged or for another number of files."""
    with contextlib.suppress(Exception):  # for a damaged file numpy raises errors of many types
        metadata = read_json(path.with_suffix(".json"))
        large = path.stat().st_size > free_memory() // 2
        images = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        issues = {int(index): str(reason) for index, reason in metadata["odd"]}
        decoded = DecodedImages(images, list(issues.items()), cached=True, grey_bits=int(metadata["grey_bits"]))
        valid = images.dtype == np.uint8 and images.ndim == 4 and len(images) + len(decoded.missing) == num_files
        valid = valid and issues.keys() <= {*range(num_files)} and decoded.grey_bits in GREY_BITS
        valid = valid and _crc32(images) == metadata["crc32"]
        return decoded if valid else None
    return None


def _crc32(images: Pixels) -> int:
    crc = 0
    for image in images:  # one by one, because all together may be larger than memory
        crc = zlib.crc32(image.data, crc)
    return crc
