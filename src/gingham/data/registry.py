"""The published datasets: where they are searched, how they are verified, where they are downloaded from."""

import hashlib
import http.client
import os
import shutil
import string
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from pathlib import Path

from tqdm import tqdm

from gingham.data.cifar import find_cifar, read_cifar
from gingham.data.idx import IDX_FILES, INT, find_idx, idx_sha256, read_idx, read_idx_folder
from gingham.data.raw import Pixels, RawDataset, raw_from_arrays
from gingham.errors import DataError, one_line
from gingham.io import cache_folder

SYSTEM_FOLDER = Path("/usr/share/datasets")


@dataclass(frozen=True)
class DatasetSpec:
    """A published dataset.

    `md5` maps each file to download to its published checksum; the first of `mirrors` that has the file is used. `read`
    returns the arrays of a folder of these files, as `raw_from_arrays` takes them. `sha256`, if known, are the
    checksums of the decompressed IDX files, in the order of IDX_FILES, and are verified instead. `markers` are names of
    files that show that the dataset is in a folder, though they have no published checksum.
    """

    classes: tuple[str, ...]
    folder: str
    torchvision_folder: str
    mirrors: tuple[str, ...]
    md5: dict[str, str]
    megabytes: int
    read: Callable[[Path], Sequence[Pixels]] = read_idx_folder
    sha256: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    debian_package: str = ""


def _read_qmnist(folder: Path) -> list[Pixels]:
    arrays = []
    for part in ("train", "test"):
        labels = read_idx(folder / f"qmnist-{part}-labels-idx2-int.gz", 2, INT)
        # The first of the eight numbers of an image is its class.
        arrays += [read_idx(folder / f"qmnist-{part}-images-idx3-ubyte.gz", 3), labels[:, 0, 3]]
    return arrays


def _read_emnist(folder: Path, split: str) -> list[Pixels]:
    def read(name: str, dimensions: int) -> Pixels:
        with archive.open(f"gzip/emnist-{split}-{name}-ubyte.gz") as member:
            return read_idx(folder / "gzip.zip" / member.name, dimensions, file=GzipFile(fileobj=member))

    arrays = []
    with zipfile.ZipFile(folder / "gzip.zip") as archive:
        for part in ("train", "test"):
            images, labels = read(f"{part}-images-idx3", 3), read(f"{part}-labels-idx1", 1)
            # Images are stored by columns; the labels of letters start at 1.
            arrays += [images.transpose(0, 2, 1).copy(), labels - (split == "letters")]
    return arrays


def _read_cifar_archive(folder: Path) -> list[Pixels]:
    return read_cifar(folder / "cifar-10-binary.tar.gz")


DIGITS = tuple(string.digits)
# EMNIST's merged splits have one class for the letters whose lower and upper case look alike.
MERGED_CLASSES = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")


def _idx_md5(*md5: str) -> dict[str, str]:
    return {f"{file}.gz": value for file, value in zip(IDX_FILES, md5, strict=True)}


def _emnist(split: str, classes: tuple[str, ...]) -> DatasetSpec:
    marker = f"emnist-{split}-train-images-idx3-ubyte"
    return DatasetSpec(
        classes,
        "emnist",
        "EMNIST/raw",
        ("https://biometrics.nist.gov/cs_links/EMNIST/",),
        {"gzip.zip": "58c8d27c78d21e728a6bc7b3cc06412e"},
        562,
        partial(_read_emnist, split=split),
        markers=(marker, f"{marker}.gz", f"gzip/{marker}", f"gzip/{marker}.gz"),
    )


# The MD5 sums are those in torchvision. Fashion-MNIST's SHA-256 sums are those of the clean release of 31 August 2017;
# the first release had duplicates across train and test.
REGISTRY = {
    "fashion-mnist": DatasetSpec(
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        "fashion-mnist",
        "FashionMNIST/raw",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        _idx_md5(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        30,
        sha256=(
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
        _idx_md5(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        12,
        sha256=(
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
        _idx_md5(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
        21,
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
    spec = REGISTRY[name]
    if not spec.sha256:
        for file in spec.md5:
            _verify_file(name, folder, file)
    arrays = spec.read(folder)
    for file, array, expected in zip(IDX_FILES, arrays, spec.sha256, strict=False):  # no `sha256`: verified above
        _require_checksum(name, find_idx(folder, file) or folder, idx_sha256(array), expected)
    return raw_from_arrays(arrays, spec.classes, folder), folder


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
    names = (*spec.md5, *(file.removesuffix(".gz") for file in spec.md5), *spec.markers)
    return next((folder for folder in folders if any(os.path.lexists(folder / file) for file in names)), None)


def _verify_file(name: str, folder: Path, file: str) -> None:
    path = folder / file
    if not path.is_file():
        unverified = find_idx(folder, IDX_FILES[0]) or find_cifar(folder)
        alternative = f", or use what is there, unverified, with --data {folder}" if unverified else ""
        raise DataError(
            f"{path} is missing; put it there as it is published, or remove {folder} and load again{alternative}"
        )
    try:
        with path.open("rb") as content:
            checksum = hashlib.file_digest(content, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    _require_checksum(name, path, checksum, REGISTRY[name].md5[file])


def _require_checksum(name: str, path: Path, checksum: str, expected: str) -> None:
    """Raise a DataError if a checksum differs; it names the dataset a file belongs to, as several use the same names."""
    if checksum == expected:
        return
    other = next((key for key, spec in REGISTRY.items() if checksum in (*spec.sha256, *spec.md5.values())), None)
    reason = (
        f"it is of {other}, whose files have the same names" if other else "it was altered or is of another release"
    )
    raise DataError(
        f"{path} is not {name}: its checksum begins {checksum[:12]}, not {expected[:12]} ({reason}); remove it and load "
        f"again, or use it as it is with --data {path.parent}"
    )


def _download(name: str) -> Path:
    """Download a dataset into the user's cache and return its folder."""
    spec = REGISTRY[name]
    folder = cache_folder() / spec.folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            print(f"downloading {name}, {spec.megabytes} MB, once", file=sys.stderr)
            staging = Path(temporary) / spec.folder
            staging.mkdir()
            for file in spec.md5:
                _download_file(name, staging, file)
            if folder.is_dir():
                folder.rmdir()  # it has none of the files, or there would be no download
            staging.rename(folder)  # all files at once, or none
        return folder
    except (OSError, http.client.HTTPException, DataError) as error:
        package = f"on Debian or Ubuntu: apt-get install {spec.debian_package}; " if spec.debian_package else ""
        raise DataError(
            f"{name} is not on this machine and its download failed ({one_line(error)}); with a network, try again; "
            f"{package}or put {', '.join(spec.md5)} into a folder and set GINGHAM_DATA to it"
        ) from error


def _download_file(name: str, folder: Path, file: str) -> None:
    mirrors = REGISTRY[name].mirrors
    for mirror in mirrors:
        try:
            with (
                urllib.request.urlopen(mirror + file, timeout=20) as response,  # noqa: S310  # the mirrors in REGISTRY
                tqdm.wrapattr(response, "read", response.length, desc=file, disable=not sys.stderr.isatty()) as content,
                (folder / file).open("wb") as target,
            ):
                shutil.copyfileobj(content, target)
            _verify_file(name, folder, file)
            return
        except (OSError, http.client.HTTPException, DataError):
            if mirror == mirrors[-1]:
                raise
