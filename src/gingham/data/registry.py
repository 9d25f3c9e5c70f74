"""The datasets known by name: where they may be, how they are verified, where they are downloaded from."""

import contextlib
import gzip
import hashlib
import os
import socket
import string
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np

from gingham.data.cifar import read_cifar
from gingham.data.idx import IDX_FILES, INT, find_idx, idx_sha256, read_idx, read_idx_folder
from gingham.data.raw import RawDataset, raw_from_arrays
from gingham.errors import DataError, one_line
from gingham.io import cache_folder

SYSTEM_FOLDER = Path("/usr/share/datasets")


@dataclass(frozen=True)
class DatasetSpec:
    """A published dataset. `md5` has the files that are downloaded from the first of `mirrors` that has them, each with
    its published checksum; `sha256`, where known, those of the decompressed IDX files, in the order of FILES, which are
    then what is verified. `loose` are names of files that show the dataset is there, though nothing verifies them."""

    classes: tuple[str, ...]
    folder: str
    torchvision_folder: str
    mirrors: tuple[str, ...]
    md5: dict[str, str]
    megabytes: int
    read: Callable[[Path, "DatasetSpec"], RawDataset]
    sha256: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    debian_package: str = ""


def _read_idx(folder: Path, known: DatasetSpec) -> RawDataset:
    return raw_from_arrays(read_idx_folder(folder), known.classes)


def _read_qmnist(folder: Path, known: DatasetSpec) -> RawDataset:
    arrays = []
    for name in known.md5:
        labels = "labels" in name
        array = read_idx(folder / name, 2 if labels else 3, INT if labels else 0x08)
        arrays.append(array[:, 0, 3] if labels else array)  # of the eight numbers a picture the first is its class
    return raw_from_arrays(arrays, known.classes)


def _read_emnist(folder: Path, known: DatasetSpec, split: str) -> RawDataset:
    arrays = []
    for part in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1"):
        name = f"gzip/emnist-{split}-{part}-ubyte.gz"
        try:
            with zipfile.ZipFile(folder / "gzip.zip") as archive, archive.open(name) as packed, gzip.open(packed) as file:
                array = read_idx(folder / "gzip.zip" / name, 3 if "images" in part else 1, file=cast(BinaryIO, file))
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise DataError(f"cannot read {name} in {folder / 'gzip.zip'} ({one_line(error)}); take it anew") from error
        # Each picture is stored by columns; the letters' labels count from 1.
        arrays.append(np.ascontiguousarray(array.transpose(0, 2, 1)) if "images" in part else array - (split == "letters"))
    return raw_from_arrays(arrays, known.classes)


def _read_cifar_archive(folder: Path, known: DatasetSpec) -> RawDataset:
    return read_cifar(folder / next(iter(known.md5)), known.classes)


DIGITS = tuple(string.digits)
# Of these letters, alike in both cases, the large and the small one are one class in EMNIST's merged splits.
MERGED = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")


def _mnist_files(md5: tuple[str, str, str, str]) -> dict[str, str]:
    return {f"{file}.gz": value for file, value in zip(IDX_FILES, md5, strict=True)}


def _emnist(split: str, classes: tuple[str, ...]) -> DatasetSpec:
    return DatasetSpec(
        classes,
        "emnist",
        "EMNIST/raw",
        ("https://biometrics.nist.gov/cs_links/EMNIST/",),
        {"gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"},
        562,
        partial(_read_emnist, split=split),
        loose=tuple(f"{where}emnist-{split}-train-images-idx3-ubyte{end}" for where in ("", "gzip/") for end in ("", ".gz")),
    )


# The MD5 sums are those that torchvision publishes. Of Fashion-MNIST's SHA-256 sums: those of the clean release of 31 August
# 2017; the first one held duplicates across train and test.
REGISTRY = {
    "fashion-mnist": DatasetSpec(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "fashion-mnist",
        "FashionMNIST/raw",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _mnist_files(
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            )
        ),
        30,
        _read_idx,
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        debian_package="dataset-fashion-mnist",
    ),
    "mnist": DatasetSpec(
        DIGITS,
        "mnist",
        "MNIST/raw",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        _mnist_files(
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            )
        ),
        12,
        _read_idx,
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "kmnist": DatasetSpec(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        "kmnist",
        "KMNIST/raw",
        ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        _mnist_files(
            (
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            )
        ),
        21,
        _read_idx,
        loose=IDX_FILES,
    ),
    "qmnist": DatasetSpec(
        DIGITS,
        "qmnist",
        "QMNIST/raw",
        ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",),
        {
            "qmnist-train-images-idx3-ubyte.gz": "ed72d4157d28c017586c42bc6afe6370",
            "qmnist-train-labels-idx2-int.gz": "0058f8dd561b90ffdd0f734c6a30e5e4",
            "qmnist-test-images-idx3-ubyte.gz": "1394631089c404de565df7b7aeaf9412",
            "qmnist-test-labels-idx2-int.gz": "5b5b05890a5e13444e108efe57b788aa",
        },
        20,
        _read_qmnist,
        loose=("qmnist-train-images-idx3-ubyte",),
    ),
    "emnist-balanced": _emnist("balanced", MERGED),
    "emnist-letters": _emnist("letters", tuple(string.ascii_uppercase)),
    "emnist-digits": _emnist("digits", DIGITS),
    "emnist-byclass": _emnist("byclass", tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)),
    "emnist-bymerge": _emnist("bymerge", MERGED),
    "emnist-mnist": _emnist("mnist", DIGITS),
    "cifar-10": DatasetSpec(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "cifar-10",
        "",
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        170,
        _read_cifar_archive,
        loose=("cifar-10-batches-bin", "data_batch_1.bin"),
    ),
}


def read_registered(name: str) -> tuple[RawDataset, Path]:
    """Return a published dataset, verified, and the folder it was read from; it is downloaded where it is nowhere else.

    Raises
        DataError: a file missing, damaged, without a checksum, or of another dataset; a download that failed.
    """
    folder = find_dataset_dir(name) or _download(name)
    return _read_verified(name, folder), folder


def find_dataset_dir(name: str = "fashion-mnist") -> Path | None:
    """Return the first folder that holds any of a known dataset's files, in the order `load_data` looks, or None."""
    known = REGISTRY[name]
    folders = []
    if own := os.environ.get("GINGHAM_DATA"):
        if not Path(own).is_dir():
            raise DataError(f"GINGHAM_DATA is {own}, which is no folder; point it at one that holds {name}, or unset it")
        folders += [Path(own) / known.folder, Path(own) / known.torchvision_folder, Path(own)]
    folders += [cache_folder() / known.folder, SYSTEM_FOLDER / known.folder]
    names = (*known.md5, *known.loose, *(IDX_FILES if known.sha256 else ()))
    return next((place for place in folders if any(os.path.lexists(place / file) for file in names)), None)


def _read_verified(name: str, folder: Path) -> RawDataset:
    known = REGISTRY[name]
    if not known.sha256:
        for file in known.md5:
            _verify_file(name, folder, file)
        return known.read(folder, known)
    arrays = read_idx_folder(folder)
    for file, array, expected in zip(IDX_FILES, arrays, known.sha256, strict=True):
        if (found := idx_sha256(array)) != expected:
            _refuse(
                name, find_idx(folder, file) or folder / file, f"its SHA-256 begins {found[:12]}, not {expected[:12]}", found
            )
    return raw_from_arrays(arrays, known.classes)


def _verify_file(name: str, folder: Path, file: str) -> None:
    path, expected = folder / file, REGISTRY[name].md5[file]
    if not path.is_file():
        loose = next((one for one in REGISTRY[name].loose if (folder / one).exists()), None)
        if loose is None or any((folder / other).is_file() for other in REGISTRY[name].md5):
            raise DataError(f"{path} is missing; put it there as it is published, or remove {folder} and load again")
        other_way = "" if REGISTRY[name].folder == "emnist" else f", or use what is there with --data {folder}"
        raise DataError(
            f"{folder} holds {loose}, for which no checksum is published, so that it is not known to be {name}; put {file} "
            f"there as it is published{other_way}"
        )
    digest = hashlib.md5(usedforsecurity=False)  # what was published
    try:
        with path.open("rb") as content:
            while part := content.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    if (found := digest.hexdigest()) != expected:
        _refuse(name, path, f"its MD5 begins {found[:12]}, not {expected[:12]}", found)


def _refuse(name: str, path: Path, evidence: str, found: str) -> NoReturn:
    """Files of several datasets have the same names: a known checksum says whose file it is."""
    other = next((one for one, known in REGISTRY.items() if found in (*known.sha256, *known.md5.values())), None)
    use = f"or use it as it is with --data {path.parent}"
    if other:
        raise DataError(
            f"{path} is {other}, not {name} (their files have the same names); remove it, or point GINGHAM_DATA at a folder with "
            f"{name}, {use}"
        )
    older = ", or the withdrawn release of August 2017" if name == "fashion-mnist" else ""
    raise DataError(
        f"{path} is not {name}: {evidence} (altered, packed anew, another dataset under the same name{older}); remove it and load "
        f"again, {use}"
    )


def _download(name: str) -> Path:
    known = REGISTRY[name]
    folder = cache_folder() / known.folder
    package = f"on Debian or Ubuntu: apt-get install {known.debian_package}; " if known.debian_package else ""
    first, *others = known.md5
    siblings = f" and its {len(others)} siblings" if others else ""
    way_out = f"with a network, try again; {package}or put {first}{siblings} into a folder and set GINGHAM_DATA to it"
    timeout = socket.getdefaulttimeout()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as side:
            # torchvision opens its connections without a timeout and prints to stdout, where results belong.
            socket.setdefaulttimeout(20)
            print(f"downloading {name}, {known.megabytes} MB, once", file=sys.stderr)
            whole = Path(side) / known.folder
            with contextlib.redirect_stdout(sys.stderr):
                for file in known.md5:
                    _fetch(known, file, whole)
            _read_verified(name, whole)
            if folder.is_dir():
                folder.rmdir()  # none of the files is in it, or there had been no download
            whole.rename(folder)  # all of them at once, or none
        return folder
    except (OSError, RuntimeError) as error:
        raise DataError(f"{name} is not on this machine and its download failed ({one_line(error)}); {way_out}") from error
    finally:
        socket.setdefaulttimeout(timeout)


def _fetch(known: DatasetSpec, file: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url  # only a download needs it, and it takes a second to import

    md5 = None if known.sha256 else known.md5[file]  # their content is verified, however it was packed
    for number, mirror in enumerate(known.mirrors, 1):
        try:
            download_url(mirror + file, folder, md5=md5)
            return
        except (OSError, RuntimeError):
            if number == len(known.mirrors):
                raise
