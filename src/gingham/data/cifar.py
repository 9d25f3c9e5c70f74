"""Read CIFAR-10's binary files."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gingham.data.raw import Pixels
from gingham.errors import DataError
from gingham.io import explain_read_errors

CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_BYTES = 10_000 * (1 + 3 * 32 * 32)  # per file: 10,000 times a label and an image, channel by channel


def find_cifar(path: Path) -> Path | None:
    """Return the folder with CIFAR-10's binary files (`path` or one in it), `path` if it is an archive, or None."""
    if path.is_file():
        return path if path.name.endswith(".tar.gz") else None
    folders = (path, path / "cifar-10-batches-bin")
    return next((folder for folder in folders if (folder / CIFAR_FILES[0]).is_file()), None)


def read_cifar(path: Path) -> list[Pixels]:
    """Return CIFAR-10's training images (50000, 3, 32, 32) and labels (50000,), then those of its test set.

    `path` is the archive of the binary release, `cifar-10-binary.tar.gz`, or the folder that it contains.

    Raises
        DataError: a file is missing, has the wrong length or unknown labels, or the archive is damaged or not
            CIFAR-10's.

    Source: the layout as described at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    remedy = "get cifar-10-binary.tar.gz from its source again"
    with explain_read_errors(path, remedy):
        contents = dict(_read_folder(path) if path.is_dir() else _read_archive(path))
    for name in CIFAR_FILES:
        if len(content := contents.get(name, b"")) != CIFAR_BYTES:
            state = f"{len(content)} bytes long, not {CIFAR_BYTES}" if name in contents else "missing"
            raise DataError(f"{name} of {path} is {state}; {remedy}")
    rows = np.frombuffer(b"".join(contents[name] for name in CIFAR_FILES), np.uint8).reshape(60_000, -1)
    labels, images = rows[:, 0], np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32)
    if labels.max() > 9:
        raise DataError(f"{path} has labels up to {labels.max()}; allowed: 0 to 9; {remedy}")
    return [images[:50_000], labels[:50_000], images[50_000:], labels[50_000:]]


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in filter(Path.exists, (folder / name for name in CIFAR_FILES)):
        with path.open("rb") as file:
            yield path.name, file.read(CIFAR_BYTES + 1)


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in CIFAR_FILES and (content := archive.extractfile(member)):
                yield name, content.read(CIFAR_BYTES + 1)
