"""The published datasets: where to search for them, how to verify them, and where to download them from."""

import contextlib
import hashlib
import http.client
import os
import shutil
import sys
import tempfile
import tomllib
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from gzip import GzipFile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gingham.data.cifar import find_cifar, read_cifar
from gingham.data.idx import IDX_FILES, INT, find_idx, idx_sha256, read_idx, read_idx_folder
from gingham.data.pack_cache import cache_path, remove_earlier
from gingham.data.raw import Pixels, RawDataset, raw_from_arrays
from gingham.errors import DataError, GinghamError, one_line
from gingham.io import cache_folder, explain_read_errors, read_tensors, write_tensors

TRAINING_SHAPE = (60_000, 1, 28, 28)  # of Fashion-MNIST
SYSTEM_FOLDER = Path("/usr/share/datasets")


@dataclass(frozen=True)
class DatasetSpec:
    """A published dataset.

    `folder` and `torchvision_folder` are the folders in which it is searched for. `md5` maps each file to download to
    its published checksum; the first of `mirrors` that has the file is used. `sha256`, if known, are the checksums of
    the decompressed IDX files, in the order of IDX_FILES, and are verified instead. `markers` are names of files
    without a published checksum that also show that the dataset is in a folder. `sorted_sha256` is the checksum of the
    training data as sorted rows of a label and its image, by which `registered_classes` recognises it.
    """

    classes: tuple[str, ...]
    folder: str
    mirrors: Sequence[str]
    md5: dict[str, str]
    megabytes: int
    torchvision_folder: str = ""
    sha256: Sequence[str] = ()
    sorted_sha256: str = ""
    markers: Sequence[str] = ()
    debian_package: str = ""


def _load_registry() -> dict[str, DatasetSpec]:
    registry: dict[str, DatasetSpec] = {}
    text = Path(__file__).with_name("datasets.toml").read_text(encoding="utf-8")
    for folder, fields in tomllib.loads(text).items():
        classes = fields.pop("classes")
        datasets = classes if isinstance(classes, dict) else {folder: classes}
        registry |= {name: DatasetSpec(tuple(names), folder, **fields) for name, names in datasets.items()}
    return registry


REGISTRY = _load_registry()


def _read_arrays(name: str, folder: Path) -> list[Pixels]:
    """Return the arrays of a published dataset, in the order that `raw_from_arrays` needs."""
    match REGISTRY[name].folder:
        case "qmnist":
            return _read_qmnist(folder)
        case "emnist":
            return _read_emnist(folder / "gzip.zip", name)
        case "cifar-10":
            return read_cifar(folder / "cifar-10-binary.tar.gz")
    return read_idx_folder(folder)


def _read_qmnist(folder: Path) -> list[Pixels]:
    arrays = []
    for part in ("train", "test"):
        labels = read_idx(folder / f"qmnist-{part}-labels-idx2-int.gz", 2, INT)
        # The first of the eight numbers of an image is its class.
        arrays += [read_idx(folder / f"qmnist-{part}-images-idx3-ubyte.gz", 3), labels[:, 0, 3]]
    return arrays


def _read_emnist(path: Path, name: str) -> list[Pixels]:
    arrays = []
    with zipfile.ZipFile(path) as archive:
        for file in ("train-images-idx3", "train-labels-idx1", "test-images-idx3", "test-labels-idx1"):
            images = "images" in file
            with archive.open(f"gzip/{name}-{file}-ubyte.gz") as member:
                array = read_idx(path / member.name, 3 if images else 1, file=GzipFile(fileobj=member))
            # Images are stored by columns; the labels of letters start at 1.
            arrays.append(array.transpose(0, 2, 1).copy() if images else array - (name == "emnist-letters"))
    return arrays


def read_registered(name: str) -> tuple[RawDataset, Path]:
    """Return a published dataset and the folder it was read from. It is verified, and downloaded if necessary.

    Decompressed IDX files are kept in the user's cache, because decompressing them takes much longer than verifying.

    Raises
        DataError: a file is missing, damaged, without a checksum, or of another dataset; the download failed.
    """
    folder = find_dataset_dir(name) or _download(name)
    spec = REGISTRY[name]
    if not spec.sha256:
        for file in spec.md5:
            _verify_file(name, folder, file)
        return raw_from_arrays(_read_arrays(name, folder), spec.classes, folder), folder
    files = [find_idx(folder, file) or folder / file for file in IDX_FILES]
    cache = cache_path("idx", folder, files).with_suffix(".safetensors")
    arrays = _read_cached(cache, spec.sha256)
    if arrays is None:
        arrays = read_idx_folder(folder)
        for path, array, expected in zip(files, arrays, spec.sha256, strict=True):
            _require_checksum(name, path, idx_sha256(array), expected)
        with contextlib.suppress(GinghamError, OSError):  # without a cache the result is the same, only slower
            write_tensors(cache, {file: torch.from_numpy(array) for file, array in zip(IDX_FILES, arrays, strict=True)})
            remove_earlier(cache)
    return raw_from_arrays(arrays, spec.classes, folder), folder


def _read_cached(cache: Path, checksums: Sequence[str]) -> list[Pixels] | None:
    """Return the arrays of the IDX files in the cache, memory-mapped, or None if they are missing or damaged."""
    with contextlib.suppress(GinghamError, KeyError, TypeError):
        tensors, _ = read_tensors(cache)
        arrays = [tensors[file].numpy() for file in IDX_FILES]
        return arrays if [idx_sha256(array) for array in arrays] == list(checksums) else None
    return None


def registered_classes(raw: RawDataset) -> tuple[str, ...] | None:
    """Return the class names of the published dataset whose training images and labels `raw` has, or None.

    The images may be in another order, as in the tables of Fashion-MNIST on competition sites.
    """
    images, labels, *_ = raw.parts["training"]
    if images.shape != TRAINING_SHAPE or not all(name.isdecimal() for name in raw.classes):
        return None
    rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)], axis=1)
    checksum = hashlib.sha256(np.sort(rows.view(f"S{rows.shape[1]}"), axis=0).tobytes()).hexdigest()
    return next((spec.classes for spec in REGISTRY.values() if spec.sorted_sha256 == checksum), None)


def find_idx_folder(path: Path) -> Path | None:
    """Return a folder with IDX files: `path`, or one in it if it is torchvision's root folder; None if there is none.

    Raises
        DataError: the root folder has several datasets.
    """
    inner = {path / name for spec in REGISTRY.values() for name in (spec.torchvision_folder, "raw")}
    found = [folder for folder in (path, *sorted(inner - {path})) if any(find_idx(folder, file) for file in IDX_FILES)]
    if len(found) > 1 and found[0] != path:
        raise DataError(f"{path} has several datasets; give one of: {', '.join(map(str, found))}")
    return found[0] if found else None


def find_dataset_dir(name: str = "fashion-mnist") -> Path | None:
    """Return the first folder with any of a published dataset's files, in the order `load_data` searches, or None."""
    spec = REGISTRY[name]
    folders = []
    if data_dir := os.environ.get("GINGHAM_DATA"):
        if not Path(data_dir).is_dir():
            raise DataError(f"GINGHAM_DATA is {data_dir}, which is not a folder; give one with {name}, or unset it")
        folders += [Path(data_dir) / spec.folder, Path(data_dir) / spec.torchvision_folder, Path(data_dir)]
    folders += [cache_folder() / spec.folder, SYSTEM_FOLDER / spec.folder]
    names = [*spec.md5, *(file.removesuffix(".gz") for file in spec.md5)]
    names += [marker.format(name=name) for marker in spec.markers]
    return next((folder for folder in folders if any(os.path.lexists(folder / file) for file in names)), None)


def _verify_file(name: str, folder: Path, file: str) -> None:
    path = folder / file
    if not path.is_file():
        advice = f"put the published file there, or remove {folder} and load again"
        if find_idx(folder, IDX_FILES[0]) or find_cifar(folder):
            advice += f", or load the unverified files that are there by their path: {folder}"
        raise DataError(f"{path} is missing; {advice}")
    with explain_read_errors(path, "check its permissions"):
        _require_checksum(name, path, _md5(path), REGISTRY[name].md5[file])


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _require_checksum(name: str, path: Path, checksum: str, expected: str) -> None:
    """Raise a DataError if a checksum differs; it names the dataset that the file belongs to, if it is known."""
    if checksum != expected:
        other = next((key for key, spec in REGISTRY.items() if checksum in (*spec.sha256, *spec.md5.values())), None)
        reason = f"a file of {other}, whose files have the same names" if other else "changed, or of another release"
        raise DataError(
            f"{path} is not {name}: its checksum begins with {checksum[:12]}, not {expected[:12]} ({reason}); remove "
            f"it and load again, or load it unverified by its path: {path.parent}"
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
                _download_file(spec, staging / file)
            if folder.is_dir():
                folder.rmdir()  # it has none of the files, or there would be no download
            staging.rename(folder)  # all files at once, or none
        return folder
    except (OSError, http.client.HTTPException) as error:
        package = f"on Debian or Ubuntu: apt-get install {spec.debian_package}; " if spec.debian_package else ""
        raise DataError(
            f"{name} is not on this machine and its download failed ({one_line(error)}); try again with a network; "
            f"{package}or put {', '.join(spec.md5)} into a folder and set GINGHAM_DATA to it"
        ) from error


def _download_file(spec: DatasetSpec, path: Path) -> None:
    """Download a file from the first mirror that has it."""
    for mirror in spec.mirrors:
        try:
            with (
                urllib.request.urlopen(mirror + path.name, timeout=20) as response,  # noqa: S310  # in the registry
                tqdm.wrapattr(response, "read", response.length, desc=path.name, disable=None) as content,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(content, file)
            if _md5(path) == spec.md5[path.name]:
                return
            raise OSError(f"{mirror}{path.name} is not the published file")
        except (OSError, http.client.HTTPException):
            if mirror == spec.mirrors[-1]:
                raise
