"""List the images of a folder that has one folder per class."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from gingham.data.decode import SUFFIXES
from gingham.data.listing import SPLITS, Entry
from gingham.errors import DataError

IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}  # and what begins with a dot


def list_folder(folder: Path, training: bool) -> tuple[list[Entry], list[str]]:
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
