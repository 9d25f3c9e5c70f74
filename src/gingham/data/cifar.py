"""Read CIFAR-10's binary files."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gingham.data.raw import RawDataset
from gingham.errors import DataError, one_line

CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_BYTES = 10_000 * (1 + 3 * 32 * 32)  # of each file: a label and a picture, channel by channel, 10,000 times


def find_cifar(place: Path) -> Path | None:
    """Return the folder of CIFAR-10's binary files that `place` is or holds, or its archive, if it is one, or None."""
    if place.is_file():
        return place if place.name.endswith(".tar.gz") else None
    folders = (place, place / "cifar-10-batches-bin")
    return next((folder for folder in folders if (folder / CIFAR_FILES[0]).is_file()), None)


def read_cifar(place: Path, classes: tuple[str, ...]) -> RawDataset:
    """Return CIFAR-10 from its binary release: the archive `cifar-10-binary.tar.gz`, or the folder it holds.

    Raises
        DataError: a file missing, of another length, with other labels, or an archive that is damaged or another one.

    Source: the layout as described at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    again = "take cifar-10-binary.tar.gz from its source again"
    try:
        found = dict(_cifar_parts(place))
    except (EOFError, zlib.error, tarfile.TarError, OSError) as error:
        raise DataError(f"cannot read {place} ({one_line(error)}); {again}") from error
    for name in CIFAR_FILES:
        if len(content := found.get(name, b"")) != CIFAR_BYTES:
            state = f"{len(content)} bytes long, not {CIFAR_BYTES}" if name in found else "missing"
            raise DataError(f"{name} of {place} is {state}; {again}")
    rows = [np.frombuffer(found[name], np.uint8).reshape(10_000, -1) for name in CIFAR_FILES]
    if max(int(row[:, 0].max()) for row in rows) >= len(classes):
        raise DataError(f"{place} has labels above {len(classes) - 1}; {again}")
    images, test_images = (np.concatenate([row[:, 1:] for row in part]).reshape(-1, 3, 32, 32) for part in (rows[:5], rows[5:]))
    labels, test_labels = (np.concatenate([row[:, 0] for row in part]).astype(np.int64) for part in (rows[:5], rows[5:]))
    return RawDataset(images, labels, classes, test_images, test_labels)


def _cifar_parts(place: Path) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for name in CIFAR_FILES:
            if (place / name).exists():
                with (place / name).open("rb") as file:
                    yield name, file.read(CIFAR_BYTES + 1)
        return
    with tarfile.open(place, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in CIFAR_FILES and (inside := archive.extractfile(member)):
                yield name, inside.read(CIFAR_BYTES + 1)
