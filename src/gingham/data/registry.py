"""The published datasets: where they are searched, how they are verified, where they are downloaded from."""

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
    """A published dataset.

    `md5` maps each file to download to its published checksum; the first of `mirrors` that has the file is used.
    `sha256`, if known, are the checksums of the decompressed IDX files, in the order of IDX_FILES, and are verified
    instead. `markers` are names of files that show that the dataset is in a folder, though they have no published
    checksum.
    """

    classes: tuple[str, ...]
    folder: str
    torchvision_folder: str
    mirrors: tuple[str, ...]
    md5: dict[str, str]
    megabytes: int
    read: Callable[[Path, "DatasetSpec"], RawDataset]
    sha256: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    debian_package: str = ""


def _read_idx(folder: Path, spec: DatasetSpec) -> RawDataset:
    return raw_from_arrays(read_idx_folder(folder), spec.classes)


def _read_qmnist(folder: Path, spec: DatasetSpec) -> RawDataset:
    arrays = []
    for name in spec.md5:
        labels = "labels" in name
        array = read_idx(folder / name, 2 if labels else 3, INT if labels else 0x08)
        arrays.append(array[:, 0, 3] if labels else array)  # the first of the eight numbers of an image is its class
    return raw_from_arrays(arrays, spec.classes)


def _read_emnist(folder: Path, spec: DatasetSpec, split: str) -> RawDataset:
    arrays = []
    for part in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1"):
        name = f"gzip/emnist-{split}-{part}-ubyte.gz"
        try:
            with (
                zipfile.ZipFile(folder / "gzip.zip") as archive,
                archive.open(name) as member,
                gzip.open(member) as file,
            ):
                array = read_idx(folder / "gzip.zip" / name, 3 if "images" in part else 1, file=cast(BinaryIO, file))
        except (KeyError, zipfile.BadZipFile, OSError) as error:
            raise DataError(f"cannot read {name} in {folder / 'gzip.zip'} ({one_line(error)}); take it anew") from error
        # Images are stored by columns; the labels of letters start at 1.
        arrays.append(
            np.ascontiguousarray(array.transpose(0, 2, 1)) if "images" in part else array - (split == "letters")
        )
    return raw_from_arrays(arrays, spec.classes)


def _read_cifar_archive(folder: Path, spec: DatasetSpec) -> RawDataset:
    return read_cifar(folder / next(iter(spec.md5)), spec.classes)


DIGITS = tuple(string.digits)
# EMNIST's merged splits have one class for the letters whose lower and upper case look alike.
MERGED_CLASSES = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")


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
        markers=tuple(
            f"{base}emnist-{split}-train-images-idx3-ubyte{end}" for base in ("", "gzip/") for end in ("", ".gz")
        ),
    )


# The MD5 sums are those in torchvision. Fashion-MNIST's SHA-256 sums are those of the clean release of 31 August 2017;
# the first release had duplicates across train and test.
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
        markers=IDX_FILES,
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
        markers=("qmnist-train-images-idx3-ubyte",),
    ),
    "emnist-balanced": _emnist("balanced", MERGED_CLASSES),
    "emnist-letters": _emnist("letters", tuple(string.ascii_uppercase)),
    "emnist-digits": _emnist("digits", DIGITS),
    "emnist-byclass": _emnist("byclass", tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase)),
    "emnist-bymerge": _emnist("bymerge", MERGED_CLASSES),
    "emnist-mnist": _emnist("mnist", DIGITS),
    "cifar-10": DatasetSpec(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "cifar-10",
        "",
        ("https://www.cs.toronto.edu/~kriz/",),
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        170,
        _read_cifar_archive,
        markers=("cifar-10-batches-bin", "data_batch_1.bin"),
    ),
}


def read_registered(name: str) -> tuple[RawDataset, Path]:
    """Return a published dataset, verified, and the folder it was read from; it is downloaded if it is not on this machine.

    Raises
        DataError: a file is missing, damaged, without a checksum, or of another dataset; the download failed.
    """
    folder = find_dataset_dir(name) or _download(name)
    return _read_verified(name, folder), folder


def find_dataset_dir(name: str = "fashion-mnist") -> Path | None:
    """Return the first folder with any of a published dataset's files, in the order `load_data` searches, or None."""
    spec = REGISTRY[name]
    folders = []
    if data_dir := os.environ.get("GINGHAM_DATA"):
        if not Path(data_dir).is_dir():
            raise DataError(
                f"GINGHAM_DATA is {data_dir}, which is no folder; point it at one that holds {name}, or unset it"
            )
        folders += [Path(data_dir) / spec.folder, Path(data_dir) / spec.torchvision_folder, Path(data_dir)]
    folders += [cache_folder() / spec.folder, SYSTEM_FOLDER / spec.folder]
    names = (*spec.md5, *spec.markers, *(IDX_FILES if spec.sha256 else ()))
    return next((folder for folder in folders if any(os.path.lexists(folder / file) for file in names)), None)


def _read_verified(name: str, folder: Path) -> RawDataset:
    spec = REGISTRY[name]
    if not spec.sha256:
        for file in spec.md5:
            _verify_file(name, folder, file)
        return spec.read(folder, spec)
    arrays = read_idx_folder(folder)
    for file, array, expected in zip(IDX_FILES, arrays, spec.sha256, strict=True):
        if (checksum := idx_sha256(array)) != expected:
            path = find_idx(folder, file) or folder / file
            _raise_mismatch(name, path, f"its SHA-256 begins {checksum[:12]}, not {expected[:12]}", checksum)
    return raw_from_arrays(arrays, spec.classes)


def _verify_file(name: str, folder: Path, file: str) -> None:
    path, expected = folder / file, REGISTRY[name].md5[file]
    if not path.is_file():
        marker = next((other for other in REGISTRY[name].markers if (folder / other).exists()), None)
        if marker is None or any((folder / other).is_file() for other in REGISTRY[name].md5):
            raise DataError(f"{path} is missing; put it there as it is published, or remove {folder} and load again")
        alternative = "" if REGISTRY[name].folder == "emnist" else f", or use what is there with --data {folder}"
        raise DataError(
            f"{folder} holds {marker}, for which no checksum is published, so that it is not known to be {name}; put "
            f"{file} there as it is published{alternative}"
        )
    digest = hashlib.md5(usedforsecurity=False)  # the published kind of checksum
    try:
        with path.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    if (checksum := digest.hexdigest()) != expected:
        _raise_mismatch(name, path, f"its MD5 begins {checksum[:12]}, not {expected[:12]}", checksum)


def _raise_mismatch(name: str, path: Path, difference: str, checksum: str) -> NoReturn:
    """Raise a DataError that names the dataset a file belongs to, if its checksum is known: several use the same names."""
    other = next((key for key, spec in REGISTRY.items() if checksum in (*spec.sha256, *spec.md5.values())), None)
    alternative = f"or use it as it is with --data {path.parent}"
    if other:
        raise DataError(
            f"{path} is {other}, not {name} (their files have the same names); remove it, or point GINGHAM_DATA at a "
            f"folder with {name}, {alternative}"
        )
    older = ", or the withdrawn release of August 2017" if name == "fashion-mnist" else ""
    raise DataError(
        f"{path} is not {name}: {difference} (altered, packed anew, another dataset under the same name{older}); "
        f"remove it and load again, {alternative}"
    )


def _download(name: str) -> Path:
    spec = REGISTRY[name]
    folder = cache_folder() / spec.folder
    package = f"on Debian or Ubuntu: apt-get install {spec.debian_package}; " if spec.debian_package else ""
    first, *others = spec.md5
    siblings = f" and its {len(others)} siblings" if others else ""
    remedy = f"with a network, try again; {package}or put {first}{siblings} into a folder and set GINGHAM_DATA to it"
    timeout = socket.getdefaulttimeout()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            # torchvision sets no timeout and prints to stdout, which is for results.
            socket.setdefaulttimeout(20)
            print(f"downloading {name}, {spec.megabytes} MB, once", file=sys.stderr)
            staging = Path(temporary) / spec.folder
            with contextlib.redirect_stdout(sys.stderr):
                for file in spec.md5:
                    _download_file(spec, file, staging)
            _read_verified(name, staging)
            if folder.is_dir():
                folder.rmdir()  # it has none of the files, or there would be no download
            staging.rename(folder)  # all files at once, or none
        return folder
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not on this machine and its download failed ({one_line(error)}); {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _download_file(spec: DatasetSpec, file: str, folder: Path) -> None:
    from torchvision.datasets.utils import download_url  # imported only here, because it takes a second

    md5 = None if spec.sha256 else spec.md5[file]  # the decompressed content is verified instead
    for number, mirror in enumerate(spec.mirrors, 1):
        try:
            download_url(mirror + file, folder, md5=md5)
            return
        except (OSError, RuntimeError):
            if number == len(spec.mirrors):
                raise
