"""Download ONNX Runtime and OpenCV for browsers from npm, verify their checksums, and keep them in the cache."""

import hashlib
import io
import os
import sys
import tarfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from gingham.errors import DataError, one_line
from gingham.io import atomic_write, cache_folder

NPM_REGISTRY = "https://registry.npmjs.org"
MAX_BYTES = 100 << 20  # of an archive, and of each file in it


class Library(NamedTuple):
    """An npm package: its name, version, licence, size in MB, and the SHA-256 of each file used from its `dist`."""

    package: str
    version: str
    licence: str
    megabytes: int
    files: dict[str, str]


_ONNX_RUNTIME_FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
_OPENCV_FILES = {"opencv.js": "b873c8211421da7b9bf41ae157a923f05a46a0b8d3e5904c44c6f3ad6d39a1bd"}
LIBRARIES = (
    Library("onnxruntime-web", "1.30.0", "MIT, Copyright (c) Microsoft Corporation", 33, _ONNX_RUNTIME_FILES),
    Library("@techstark/opencv-js", "5.0.0-release.1", "Apache 2.0, Copyright (c) the OpenCV team", 4, _OPENCV_FILES),
)


def library_files() -> dict[str, bytes]:
    """Return the files of all libraries by name, such as `opencv.js`, from the user's cache. They are downloaded once.

    Raises
        DataError: they are not in the cache and cannot be downloaded, or a download has the wrong checksum.
    """
    files: dict[str, bytes] = {}
    for library in LIBRARIES:
        folder = cache_folder() / "browser" / f"{library.package.rpartition('/')[2]}-{library.version}"
        try:
            files |= _verify(library, {name: (folder / name).read_bytes() for name in library.files})
        except (OSError, ValueError):
            files |= _download(library, folder)
    return files


def _verify(library: Library, contents: dict[str, bytes]) -> dict[str, bytes]:
    for name, sha256 in library.files.items():
        if hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise ValueError(f"{name} has the wrong SHA-256")
    return contents


def _download(library: Library, folder: Path) -> dict[str, bytes]:
    registry = os.environ.get("npm_config_registry", NPM_REGISTRY).rstrip("/")  # noqa: SIM112  # npm's name of it
    url = f"{registry}/{library.package}/-/{folder.name}.tgz"
    title = f"{library.package} {library.version}"
    print(f"downloading {title}, {library.megabytes} MB, once", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  # the files are verified
            archive = response.read(MAX_BYTES)
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            members = {name: tar.extractfile(f"package/dist/{name}") for name in library.files}
            contents = {name: member.read(MAX_BYTES) for name, member in members.items() if member}
        _verify(library, contents)
    except (OSError, ValueError, KeyError, EOFError, tarfile.TarError) as error:
        remedy = f"put {', '.join(library.files)} of that package into {folder}, or try again with a network"
        raise DataError(f"cannot download {title} from {url} ({one_line(error)}); {remedy}") from error
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    return contents
