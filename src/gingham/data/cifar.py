"""Read CIFAR-10's binary files."""

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gingham.data.raw import RawDataset
from gingham.errors import DataError, one_line

CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_BYTES = 10_000 * (1 + 3 * 32 * 32)  # per file: 10,000 times a label and an image, channel by channel


def find_cifar(path: Path) -> Path | None:
    """Return the folder with CIFAR-10's binary files (`path` or in it), or `path` if it is an archive, or None."""
    if path.is_file():
        return path if path.name.endswith(".tar.gz") else None
    folders = (path, path / "cifar-10-batches-bin")
    return next((folder for folder in folders if (folder / CIFAR_FILES[0]).is_file()), None)


def read_cifar(path: Path, classes: tuple[str, ...]) -> RawDataset:
    """Return CIFAR-10 from its binary release: the archive `cifar-10-binary.tar.gz`, or the folder it holds.

    Raises
        DataError: a file is missing, has the wrong length or unknown labels, or the archive is damaged or another one.

    Source: the layout as described at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    remedy = "take cifar-10-binary.tar.gz from its source again"
    try:
        contents = dict(_read_files(path))
    except (EOFError, zlib.error, tarfile.TarError, OSError) as error:
        raise DataError(f"cannot read {path} ({one_line(error)}); {remedy}") from error
    for name in CIFAR_FILES:
        if len(content := contents.get(name, b"")) != CIFAR_BYTES:
            state = f"{len(content)} bytes long, not {CIFAR_BYTES}" if name in contents else "missing"
            raise DataError(f"{name} of {path} is {state}; {remedy}")
    rows = [np.frombuffer(contents[name], np.uint8).reshape(10_000, -1) for name in CIFAR_FILES]
    if max(int(row[:, 0].max()) for row in rows) >= len(classes):
        raise DataError(f"{path} has labels above {len(classes) - 1}; {remedy}")
    images, test_images = (
        np.concatenate([row[:, 1:] for row in part]).reshape(-1, 3, 32, 32) for part in (rows[:5], rows[5:])
    )
    labels, test_labels = (
        np.concatenate([row[:, 0] for row in part]).astype(np.int64) for part in (rows[:5], rows[5:])
    )
    return RawDataset(images, labels, classes, test_images, test_labels)


def _read_files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for name in CIFAR_FILES:
            if (path / name).exists():
                with (path / name).open("rb") as file:
                    yield name, file.read(CIFAR_BYTES + 1)
        return
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in CIFAR_FILES and (content := archive.extractfile(member)):
                yield name, content.read(CIFAR_BYTES + 1)
