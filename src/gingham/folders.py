"""Pictures in files of their own: folders of classes and tables of paths listed, read, and packed in the user's cache."""

import contextlib
import csv
import hashlib
import io
import math
import os
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError, GinghamError, one_line
from gingham.files import cache_folder, read_json, replacing, write_json
from gingham.pictures import SUFFIXES, UNREADABLE, common_side, read_pictures
from gingham.readers import Pixels, Raw, free_memory, is_plain, natural

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}
ORDER = ("train", "validation", "test")
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}  # and what begins with a dot
PACK_FORMAT = 1
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Entry:
    """A picture's file, with the split and the class it is of; `name` is its path as the user would write it."""

    split: str
    label: str
    name: str
    file: Path


@dataclass(frozen=True)
class Listing:
    """The picture files of a place, ordered by split, class and name, whatever the order on disk; `empty` class folders."""

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    empty: tuple[str, ...] = ()


def list_pictures(place: Path, *, training: bool = True) -> Listing:
    """Return the picture files of a folder of class folders, or of a `.csv` table of paths and labels.

    With `training` some of them must be to train on; photographs to measure a model on may all lie in a test folder.

    Raises
        DataError: no class folders, folders that could be either splits or classes, or a table that is none.
    """
    entries, empty = _list_table(place, training) if place.is_file() else _list_folder(place, training)
    for entry in entries:
        if not is_plain(entry.label):
            raise DataError(f"{place} has a class of the name {entry.label!r}; rename it, in plain letters of UTF-8")
    classes = sorted({entry.label for entry in entries}, key=natural)
    number = {name: place for place, name in enumerate(classes)}
    entries.sort(key=lambda entry: (ORDER.index(entry.split), number[entry.label], natural(entry.name)))
    return Listing(tuple(entries), tuple(classes), tuple(empty))


def _list_folder(folder: Path, training: bool) -> tuple[list[Entry], list[str]]:
    wanted = "put the pictures of each class into a folder of its own, in it or in train, validation and test folders in it"
    top = _folders(folder)
    halls = [place for place in top if place.name.lower() in SPLITS and _folders(place)]
    if halls:
        others = [
            place for place in top if place not in halls and any(file.suffix.lower() in SUFFIXES for file, _ in _inside(place))
        ]
        if others:
            names = ", ".join(place.name for place in others[:3])
            raise DataError(
                f"{folder} holds pictures in {names} beside the split folder {halls[0].name}; move them into class folders in "
                "train, validation or test, or elsewhere"
            )
        if training and not any(SPLITS[hall.name.lower()] == "train" for hall in halls):
            raise DataError(f"{folder} has class folders in {halls[0].name} and none in train; {wanted}")
    elif all(place.name.lower() in SPLITS for place in top):
        top = []  # train and test with pictures and no classes in them
    rooms = [(SPLITS[hall.name.lower()], room) for hall in halls for room in _folders(hall)] or [
        ("train", room) for room in top
    ]
    entries, empty = [], []
    for split, room in rooms:
        files = list(_files(room))
        label = unicodedata.normalize("NFC", room.name)
        entries += [
            Entry(split, label, unicodedata.normalize("NFC", file.relative_to(folder).as_posix()), file) for file in files
        ]
        empty += [] if files else [room.relative_to(folder).as_posix()]
    if not entries:
        raise DataError(f"{folder} holds no class folders with pictures in them; {wanted}")
    return entries, empty


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder that may be splits or classes: not hidden ones, nor what gingham has written there."""
    return [place for place, is_folder in _inside(folder) if is_folder and not _holds_runs(place)]


def _holds_runs(folder: Path) -> bool:
    places = [folder, *(place for place, is_folder in _inside(folder) if is_folder)]
    return any((place / name).exists() for place in places for name in ("model.json", "checkpoint", "trials.json"))


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder and in those in it. A folder that several links lead to counts once, by the first of its names:
    a circle of links ends so, and a few links to links do not make millions of paths."""
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        inside = sorted(_inside(here))
        status = here.stat()
        own = (status.st_dev, status.st_ino)
        if own not in seen:
            seen.add(own)
            yield from (place for place, is_folder in inside if not is_folder)
            waiting += [place for place, is_folder in reversed(inside) if is_folder]


def _inside(folder: Path) -> list[tuple[Path, bool]]:
    """What a folder holds but for hidden things, and which of it are folders, or links to some."""
    try:
        with os.scandir(folder) as entries:
            return [(folder / entry.name, entry.is_dir()) for entry in entries if _shown(entry.name)]
    except OSError as error:
        raise DataError(f"cannot list {folder} ({error.strerror}); check its permissions") from error


def _shown(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in IGNORED


def _list_table(path: Path, training: bool) -> tuple[list[Entry], list[str]]:
    head = "a first line with the columns path (or file, image) and label (or class), and, if you like, split"
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8 ({one_line(error)}); it needs {head}") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    columns = [next((header.index(name) for name in names if name in header), None) for names in
               (("path", "file", "image"), ("label", "class"), ("split",))]  # fmt: skip
    at, label_at, split_at = columns
    if at is None or label_at is None:
        raise DataError(f"{path} begins with {', '.join(header[:6]) or 'nothing'}; it needs {head}")
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    for line, row in rows[1:]:
        cells = [unicodedata.normalize("NFC", cell.strip()) for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header) or not cells[at] or not cells[label_at]:
            raise DataError(
                f"line {line} of {path} has {len(cells)} columns, or an empty path or label; it needs all {len(header)}"
            )
        if "\0" in cells[at]:
            raise DataError(
                f"line {line} of {path} has the path {cells[at]!r}; a file's name cannot hold a zero byte: take it out"
            )
        split = SPLITS.get(cells[split_at].lower()) if split_at is not None else "train"
        if split is None:
            raise DataError(f"line {line} of {path} has the split {cells[split_at or 0]!r}; allowed: {', '.join(SPLITS)}")
        if (before := lines.setdefault(cells[at], line)) != line:
            raise DataError(f"lines {before} and {line} of {path} both name {cells[at]}; name each picture once")
        entries.append(Entry(split, cells[label_at], cells[at], path.parent / row[at].strip()))
    if training and not any(entry.split == "train" for entry in entries):
        raise DataError(f"{path} names no training picture; it needs {head}, and a line for each picture")
    return entries, []


@dataclass(frozen=True)
class Pictures:
    """The pictures of a listing: uint8 `images` (N, C, S, S) of its `entries` that could be read, in order, and what is odd
    about files, as (name, reason)."""

    images: Pixels
    entries: tuple[Entry, ...]
    odd: tuple[tuple[str, str], ...]
    from_pack: bool

    def unreadable(self) -> list[tuple[str, str]]:
        return [(name, reason.removeprefix(UNREADABLE)) for name, reason in self.odd if reason.startswith(UNREADABLE)]


def read_files(place: Path, listing: Listing, size: int) -> Pictures:
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
    return Pictures(
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
        reading = read_pictures(files, images, title)
        images = images[: len(reading.kept), : 1 if reading.grey else 3]
        facts = _facts(reading.kept, reading.odd, len(files))
        if len(images) and not reading.passing:
            with contextlib.suppress(GinghamError, OSError):  # a cache that cannot be written to costs time, no result
                _pack(pack, images, facts)
        return np.ascontiguousarray(images), facts["missing"], reading.odd
    try:
        pack.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=pack.parent) as side_file:
            _reserve(side_file, math.prod(shape))
            images = np.memmap(side_file, np.uint8, "w+", shape=shape)
            reading = read_pictures(files, images, title)
            facts = _facts(reading.kept, reading.odd, len(files))
            if reading.kept:
                _pack(pack, images[: len(reading.kept), : 1 if reading.grey else 3], facts)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {pack} ({one_line(error)}), which pictures larger than half of the free memory need; free "
            f"{2 * len(files) * 3 * side * side} bytes there, or set a smaller size"
        ) from error
    return _unpack(pack, len(files)) or (np.empty((0, *shape[1:]), np.uint8), facts["missing"], reading.odd)


def _facts(kept: Sequence[int], odd: Sequence[tuple[int, str]], files: int) -> dict[str, Any]:
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


def _pack(path: Path, images: npt.NDArray[np.uint8], facts: dict[str, Any]) -> None:
    """Write pictures and what is known of them, and remove the packs of earlier states of the same place."""
    check, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
    with replacing(path) as side, side.open("wb") as file:
        facts_of = {"descr": "|u1", "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(file, facts_of)
        for start in range(0, len(images), rows):
            part = np.ascontiguousarray(images[start : start + rows])
            file.write(part.data)
            check = zlib.crc32(part.data, check)
    write_json(path.with_suffix(".json"), {**facts, "crc32": check})
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
        facts = read_json(path.with_suffix(".json"))
        large = path.stat().st_size > free_memory() // 2
        images = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        missing, odd = [int(place) for place in facts["missing"]], [(int(place), str(reason)) for place, reason in facts["odd"]]
        check, rows = 0, max(1, CHUNK_BYTES // images[0].nbytes)
        for start in range(0, len(images), rows):
            check = zlib.crc32(np.ascontiguousarray(images[start : start + rows]).data, check)
        whole = images.dtype == np.uint8 and images.ndim == 4 and len(images) + len(missing) == files
        whole &= len({*missing}) == len(missing) and all(
            0 <= place < files for place in [*missing, *(place for place, _ in odd)]
        )
        return (images, missing, odd) if whole and check == facts["crc32"] else None
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


def raw_of_files(place: Path, size: int, *, skip_unreadable: bool) -> Raw:
    """Return the pictures of a folder of class folders or of a `.csv` table as a Raw, with the splits it has.

    Raises
        DataError: as `list_pictures` and `read_files`; a class folder without files; files that cannot be read, unless
            `skip_unreadable`.
    """
    listing = list_pictures(place)
    if listing.empty:
        raise DataError(f"the class folder {listing.empty[0]} of {place} is empty; put pictures into it, or remove it")
    found = read_files(place, listing, size)
    unreadable = found.unreadable()
    named = ", ".join(f"{_readable(name)} ({reason})" for name, reason in unreadable[:3])
    named += f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
    if unreadable and not skip_unreadable:
        raise DataError(
            f"{len(unreadable)} of the {len(listing.entries)} files of {place} cannot be read as pictures: {named}; mend or "
            "remove them, or leave them out with --skip-unreadable (of train, trials and show)"
        )
    notes = [f"{len(unreadable)} of the {len(listing.entries)} files are left out: {named}"] if unreadable else []
    if not (found.from_pack or sys.stderr.isatty()):
        notes.insert(0, f"read {len(found.entries)} pictures of {place}")
    number = {name: k for k, name in enumerate(listing.classes)}
    labels = np.array([number[entry.label] for entry in found.entries], np.int64)
    test = next((k for k, entry in enumerate(found.entries) if entry.split == "test"), len(labels))
    tested = any(entry.split == "test" for entry in listing.entries)
    files = tuple(_readable(entry.name) for entry in found.entries)
    return Raw(
        found.images[:test],
        labels[:test],
        listing.classes,
        found.images[test:] if tested else None,
        labels[test:] if tested else None,
        sum(entry.split == "validation" for entry in found.entries),
        files[:test],
        files[test:],
        tuple(notes),
    )


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a name on disk may be no text at all
