"""ONNX Runtime and OpenCV for browsers: downloaded from npm, verified by checksum, kept in the cache."""

import hashlib
import io
import os
import sys
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from gingham.errors import DataError, one_line
from gingham.io import atomic_write, cache_folder

NPM_REGISTRY = "https://registry.npmjs.org"
MAX_BYTES = 100 << 20  # of an archive, and of each file in it


@dataclass(frozen=True)
class Library:
    """An npm package: its name, version, licence, size in MB, and the SHA-256 of each file that is used, by path."""

    package: str
    version: str
    licence: str
    megabytes: int
    files: dict[str, str]


LIBRARIES = (
    Library(
        "onnxruntime-web",
        "1.30.0",
        "MIT, Copyright (c) Microsoft Corporation",
        33,
        {
            "dist/ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
            "dist/ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
        },
    ),
    Library(
        "@techstark/opencv-js",
        "5.0.0-release.1",
        "Apache 2.0, Copyright (c) the OpenCV team",
        4,
        {"dist/opencv.js": "b873c8211421da7b9bf41ae157a923f05a46a0b8d3e5904c44c6f3ad6d39a1bd"},
    ),
)


def library_files() -> dict[str, bytes]:
    """Return the files of all libraries by name, such as `opencv.js`, from the user's cache; download them once.

    Raises
        DataError: they are not in the cache and cannot be downloaded, or a download has the wrong checksum.
    """
    files: dict[str, bytes] = {}
    for library in LIBRARIES:
        folder = cache_folder() / "browser" / f"{library.package.rpartition('/')[2]}-{library.version}"
        contents = {name: _read_cached(folder / Path(name).name, sha256) for name, sha256 in library.files.items()}
        if None in contents.values():
            contents |= _download(library, folder)
        files |= {Path(name).name: content for name, content in contents.items() if content is not None}
    return files


def _read_cached(file: Path, sha256: str) -> bytes | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _download(library: Library, folder: Path) -> dict[str, bytes]:
    registry = os.environ.get("npm_config_registry", NPM_REGISTRY).rstrip("/")  # noqa: SIM112  # as npm calls it
    url = f"{registry}/{library.package}/-/{library.package.rpartition('/')[2]}-{library.version}.tgz"
    print(f"downloading {library.package} {library.version}, {library.megabytes} MB, once", file=sys.stderr)
    remedy = (
        f"put {', '.join(Path(name).name for name in library.files)} of that package into {folder}, or try again online"
    )
    try:
        if not url.startswith(("https://", "http://")):
            raise ValueError(f"{registry} is no address of a registry")
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  # only http and https, and checked by SHA-256
            archive = response.read(MAX_BYTES)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            members = {name: tar.extractfile(f"package/{name}") for name in library.files}
            contents = {name: member.read(MAX_BYTES) for name, member in members.items() if member is not None}
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError, urllib.error.URLError) as error:
        raise DataError(
            f"cannot download {library.package} {library.version} from {url} ({one_line(error)}); {remedy}"
        ) from error
    for name, sha256 in library.files.items():
        if hashlib.sha256(contents.get(name, b"")).hexdigest() != sha256:
            raise DataError(
                f"{name} of {library.package} {library.version} from {url} has the wrong SHA-256; nothing was kept; "
                f"{remedy}"
            )
    for name, content in contents.items():
        with atomic_write(folder / Path(name).name) as temporary:
            temporary.write_bytes(content)
    return contents
