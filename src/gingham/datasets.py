"""Datasets by name or folder: find, verify, download; the fixed validation split; the fingerprint."""

import contextlib
import hashlib
import os
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs
import torch

from gingham.errors import DataError, one_line, suggest
from gingham.readers import find_idx, idx_sha256, map_rows, read_idx, read_pictures

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SYSTEM_FOLDER = Path("/usr/share/datasets")
BLOCK_BYTES = 1 << 16  # read together from disk


@dataclass(frozen=True)
class _Named:
    classes: tuple[str, ...]
    torchvision_class: str
    debian_package: str
    sha256: tuple[str, str, str, str]  # of the decompressed IDX files, in the order of FILES


# The checksums are those of the clean release of 31 August 2017; the first one held duplicates across train and test.
NAMED = {
    "fashion-mnist": _Named(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "FashionMNIST",
        "dataset-fashion-mnist",
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    )
}

# MNIST's files have the same names; these are the checksums of their decompressed content.
MNIST_SHA256 = {
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Split:
    """Pictures and labels of one split.

    `images` is uint8 (N, C, H, W), 0 to 255; `labels` is int64 (N,), 0 to K-1; `classes` holds the K names. `name` is
    "train", "validation" or "test", and decides what may open it: `fit` refuses "test". `block` is above 1 for pictures
    that stay on disk: how many neighbours are read together. `files` names the file of each picture, where they have files
    of their own.
    """

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    dataset: str
    fingerprint: str
    block: int = 1
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> dict[str, int]:
        """Return how many pictures each class has, in class order."""
        counts = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))


@dataclass(frozen=True)
class Data:
    """A dataset's splits. `validation` is None when nothing is held out; `fingerprint` is a SHA-256 of all pictures,
    labels and class names, the same whatever is held out."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    source: str


def load_data(name: str = "fashion-mnist", validation: int = 5000, classes: tuple[str, ...] | None = None) -> Data:
    """Return a dataset's training, validation and test split.

    `name` is a known dataset, verified by its checksums, or a folder with the four IDX files of MNIST's layout, checked
    for structure only. `validation` pictures, stratified by class and fixed per dataset whatever the seed, are cut from
    the training data; 0 holds none out. `classes` names the labels 0 to K-1 of a folder, whose files have numbers alone.

    A known dataset is looked for in `$GINGHAM_DATA`, the user's cache, the system package, and then downloaded.

        data = load_data("fashion-mnist")
        len(data.train), len(data.validation), len(data.test)   # 55000, 5000, 10000

    Raises
        DataError: an unknown name; a file missing, unreadable, damaged or of another dataset; too few pictures.

    Source: Xiao, Rasul & Vollgraf, "Fashion-MNIST" (arXiv 1708.07747).
    """
    if name in NAMED:
        folder = locate(name) or _download(name, cache_folder() / name)
        arrays = _read(folder)
        names = NAMED[name].classes
        _verify(name, folder, arrays)
    elif name and Path(name).is_dir():
        folder = Path(name).resolve()
        arrays = _read(folder)
        highest = int(max(arrays[1].max(), arrays[3].max()))
        names = classes or tuple(str(label) for label in range(highest + 1))
        if highest >= len(names):
            raise DataError(
                f"{folder} has labels up to {highest}, where {len(names)} classes are known; allowed: 0 to {len(names) - 1}"
            )
    else:
        raise DataError(f"unknown dataset {name!r}{suggest(name, NAMED)}, or a folder with the files {', '.join(FILES)}")
    return _cut(name if name in NAMED else str(folder), str(folder), arrays, names, validation)


PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SPLIT_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "valid": "validation", "test": "test"}


def look_into_folder(folder: Path, side: int = 28) -> tuple[Data, list[tuple[str, str]]]:
    """Return a folder of pictures, one folder a class, as data to be examined, and what is odd about its files.

    The class folders lie in `folder`, or in train, validation and test folders in it. Every picture is read and shrunk to
    `side` pixels square, grey where all are grey. What is odd is a list of (file, reason), files named from `folder`.

    Raises
        DataError: no class folders with pictures in them, or no picture that can be read.
    """
    top = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    halls = [(SPLIT_FOLDERS[place.name.lower()], place) for place in top if place.name.lower() in SPLIT_FOLDERS]
    found: dict[str, list[tuple[str, Path]]] = {"train": [], "validation": [], "test": []}
    for split, hall in halls or [("train", folder)]:
        for room in sorted(place for place in hall.iterdir() if place.is_dir() and not place.name.startswith(".")):
            found[split] += [(room.name, file) for file in sorted(room.rglob("*")) if file.is_file()]
    if not any(found.values()):
        raise DataError(f"{folder} holds no class folders with pictures in them; put the pictures of each class into a folder")
    classes = tuple(sorted({name for files in found.values() for name, _ in files}))
    odd: list[tuple[str, str]] = []
    read = {split: read_pictures([file for _, file in files], side) for split, files in found.items()}
    if not any(len(pictures.kept) for pictures in read.values()):
        raise DataError(f"{folder} holds no file that can be read as a picture; give PNG, JPEG, WEBP, BMP, GIF or TIFF files")
    grey = all(pictures.grey for pictures in read.values())
    splits = {}
    for split, pictures in read.items():
        files = found[split]
        odd += [(str(file.relative_to(folder)), reason) for file, reason in pictures.odd]
        images = torch.from_numpy(pictures.images[:, :1].copy() if grey else pictures.images)
        labels = torch.tensor([classes.index(files[k][0]) for k in pictures.kept], dtype=torch.long)
        names = tuple(str(files[k][1].relative_to(folder)) for k in pictures.kept)
        splits[split] = Split(split, images, labels, classes, str(folder), "", files=names)
    validation = splits["validation"] if len(splits["validation"]) else None
    return Data(str(folder), splits["train"], validation, splits["test"], classes, "", str(folder)), odd


Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


def _cut(name: str, source: str, arrays: Arrays, classes: tuple[str, ...], validation: int) -> Data:
    train_images, train_labels, test_images, test_labels = arrays
    fingerprint = _fingerprint(arrays, classes)
    kept, held_out = _stratify(train_labels, validation, name)

    def split(title: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
        block = max(1, BLOCK_BYTES // images[0].nbytes) if isinstance(images, np.memmap) else 1
        tensors = torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()
        return Split(title, *tensors, classes, name, fingerprint, block)

    validation_split = None
    if len(held_out):
        validation_split = split("validation", np.array(train_images[held_out]), train_labels[held_out])
        if isinstance(train_images, np.memmap):
            pack = cache_folder() / "packs" / f"{fingerprint[:32]}-{validation}"
            train_images = map_rows(train_images, kept, pack)
        else:
            train_images = _compact(train_images, kept)
    return Data(
        name=name,
        train=split("train", train_images, train_labels[kept]),
        validation=validation_split,
        test=split("test", test_images, test_labels),
        classes=classes,
        fingerprint=fingerprint,
        source=source,
    )


def _compact(array: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Move ascending rows to the front, in place: indexing would hold all pictures twice."""
    for start in range(0, len(rows), 4096):
        part = rows[start : start + 4096]
        array[start : start + len(part)] = array[part]
    return array[: len(rows)]


def locate(name: str = "fashion-mnist") -> Path | None:
    """Return the first folder that holds any of a known dataset's files, in the order `load_data` looks, or None."""
    folders = []
    if own := os.environ.get("GINGHAM_DATA"):
        if not Path(own).is_dir():
            raise DataError(f"GINGHAM_DATA is {own}, which is no folder; point it at one that holds {name}, or unset it")
        folders += [Path(own) / name, Path(own) / NAMED[name].torchvision_class / "raw", Path(own)]
    folders += [cache_folder() / name, SYSTEM_FOLDER / name]
    return next((folder for folder in folders if any(find_idx(folder, file) for file in FILES)), None)


def cache_folder() -> Path:
    """Return the folder of the user's cache that datasets are kept in (`~/.cache/gingham` on Linux)."""
    return platformdirs.user_cache_path("gingham")


def _download(name: str, folder: Path) -> Path:
    known = NAMED[name]
    way_out = (
        f"with a network, try again; on Debian or Ubuntu: apt-get install {known.debian_package}; "
        f"or put {FILES[0]}.gz and its three siblings into a folder and set GINGHAM_DATA to it"
    )
    import torchvision.datasets  # only a download needs it, and it takes a second to import

    timeout = socket.getdefaulttimeout()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as side:
            # torchvision opens its connections without a timeout and prints to stdout, where results belong.
            socket.setdefaulttimeout(20)
            print(f"downloading {name}, 30 MB, once", file=sys.stderr)
            with contextlib.redirect_stdout(sys.stderr):
                getattr(torchvision.datasets, known.torchvision_class)(side, download=True)
            raw = Path(side) / known.torchvision_class / "raw"
            _verify(name, raw, _read(raw))
            whole = Path(side) / name
            whole.mkdir()
            for file in FILES:
                (raw / file).rename(whole / file)
            if folder.is_dir():
                folder.rmdir()  # none of the files is in it, or there had been no download
            whole.rename(folder)  # all four at once, or none
        return folder
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} is not on this machine and its download failed ({one_line(error)}); {way_out}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _read(folder: Path) -> Arrays:
    arrays = []
    for file in FILES:
        path = find_idx(folder, file)
        if path is None and any(place.suffix.lower() in PICTURE_SUFFIXES for place in folder.glob("*/*")):
            raise DataError(
                f"{folder} holds folders of pictures, which gingham cannot train on yet (gingham diagnose looks at them); a dataset "
                f"needs the files {', '.join(FILES)}"
            )
        if path is None:
            raise DataError(f"{folder / file} is missing (nor is there {file}.gz); a dataset needs {', '.join(FILES)}")
        arrays.append(read_idx(path, dimensions=3 if "images" in file else 1))
    for images, labels, files in ((arrays[0], arrays[1], FILES[:2]), (arrays[2], arrays[3], FILES[2:])):
        if len(images) != len(labels):
            raise DataError(
                f"{folder / files[1]} holds {len(labels)} labels for the {len(images)} pictures of {files[0]}; "
                "they must be as many: take both files from their source again"
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise DataError(
            f"{folder / FILES[2]} holds pictures of {arrays[2].shape[1]}x{arrays[2].shape[2]}, the training ones are "
            f"{arrays[0].shape[1]}x{arrays[0].shape[2]}; take both files from the same source"
        )
    return arrays[0], arrays[1], arrays[2], arrays[3]


def _verify(name: str, folder: Path, arrays: Arrays) -> None:
    for file, array, expected in zip(FILES, arrays, NAMED[name].sha256, strict=True):
        found = idx_sha256(array)
        if found == expected:
            continue
        path = find_idx(folder, file)
        if found in MNIST_SHA256:
            raise DataError(
                f"{path} is MNIST, not {name} (their files have the same names); remove it, or point GINGHAM_DATA "
                f"at a folder with {name}, or use this one as it is with --data {folder}"
            )
        raise DataError(
            f"{path} is not {name}: its SHA-256 begins {found[:12]}, not {expected[:12]} (altered, another dataset such as "
            f"MNIST under the same name, or the withdrawn release of August 2017); remove it and load again, or use it "
            f"as it is with --data {folder}"
        )


def _stratify(labels: npt.NDArray[np.uint8], validation: int, name: str) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Indices kept and held out, each ascending; every class gives its share, largest remainders rounded up."""
    if not 0 <= validation < len(labels):
        raise DataError(
            f"{validation} validation pictures were asked of the {len(labels)} training pictures of {name}; "
            f"allowed: 0 to {len(labels) - 1} (--set validation_images=N)"
        )
    counts = np.bincount(labels)
    exact = counts * (validation / len(labels))
    shares = np.floor(exact).astype(int)
    for label in np.argsort(shares - exact, kind="stable")[: validation - shares.sum()]:
        shares[label] += 1
    # RandomState's stream is frozen by numpy's compatibility policy (NEP 19): the split never moves.
    random = np.random.RandomState(0)
    held_out = np.zeros(len(labels), bool)
    for label, share in enumerate(shares):
        held_out[random.permutation(np.flatnonzero(labels == label))[:share]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _fingerprint(arrays: Arrays, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join(classes).encode())
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def count_duplicates(data: Data) -> dict[str, int]:
    """Return how many pictures of a dataset are exact copies, byte by byte, labels aside.

    `train` counts the training pictures (held-out ones included) that an earlier training picture equals, `test` the
    same within the test split, and `across` the test pictures that some training picture equals.

        count_duplicates(load_data("fashion-mnist"))   # {'train': 0, 'test': 0, 'across': 0}
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = [picture.tobytes() for part in parts for picture in part.images.numpy()]
    test = [picture.tobytes() for picture in data.test.images.numpy()]
    seen = set(train)
    return {
        "train": len(train) - len(seen),
        "test": len(test) - len(set(test)),
        "across": sum(picture in seen for picture in test),
    }


def describe(data: Data) -> dict[str, Any]:
    """Return the facts of a dataset as JSON values: what `gingham show --json` prints, but for the figure.

    `images` and `per_class` count training and test pictures together, `splits` and `per_class_train`/`_test` apart.
    `mean` and `std` are of the training pictures' pixels from 0 to 1, a number for grey, a list by channel for colour.
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = {name: sum(part.counts()[name] for part in parts) for name in data.classes}
    test = data.test.counts()
    pixels = torch.cat([part.images for part in parts]).transpose(0, 1).flatten(1)  # (C, N H W)
    # From a count of each of the 256 values: exact, and without a float copy of every picture.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double() / pixels.shape[1]
    mean = (counts * values).sum(dim=1)
    std = ((counts * values**2).sum(dim=1) - mean**2).clamp(min=0).sqrt()
    grey = len(mean) == 1
    return {
        "name": data.name,
        "source": data.source,
        "images": sum(train.values()) + len(data.test),
        "splits": {"train": sum(train.values()), "test": len(data.test)},
        "classes": list(data.classes),
        "shape": list(data.train.images.shape[1:]),
        "per_class": {name: train[name] + test[name] for name in data.classes},
        "per_class_train": train,
        "per_class_test": test,
        "mean": float(mean) if grey else mean.tolist(),
        "std": float(std) if grey else std.tolist(),
        "duplicates": count_duplicates(data),
        "fingerprint": data.fingerprint,
    }
