"""Published datasets by name: the real formats in small made-up files, on a server of this machine."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import shutil
import struct
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST

from gingham import DataError, load_data
from gingham.data.idx import IDX_FILES
from gingham.data.registry import REGISTRY, find_dataset_dir


def idx(array, kind=8):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def digits(count, classes, seed, first=0):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 28, 28)).astype(np.uint8), (np.arange(count) % classes + first).astype(np.uint8)


def make_kmnist(folder):
    arrays = [*digits(60, 10, 0), *digits(20, 10, 1)]
    for file, array in zip(IDX_FILES, arrays, strict=True):
        (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
    return arrays


def make_qmnist(folder):
    arrays = []
    for part, count in (("train", 60), ("test", 30)):
        images, labels = digits(count, 10, count)
        metadata = np.random.RandomState(0).randint(0, 99999, (count, 8)).astype(">i4")
        metadata[:, 0] = labels
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(idx(metadata, 0x0C)))
        arrays += [images, labels]
    return arrays


def make_emnist(folder, split="letters", classes=26, first=1):
    arrays = []
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for part, count in (("train", 3 * classes), ("test", 2 * classes)):
            images, labels = digits(count, classes, count, first)
            stored = np.ascontiguousarray(images.transpose(0, 2, 1))
            archive.writestr(f"gzip/emnist-{split}-{part}-images-idx3-ubyte.gz", gzip.compress(idx(stored)))
            archive.writestr(f"gzip/emnist-{split}-{part}-labels-idx1-ubyte.gz", gzip.compress(idx(labels)))
            arrays += [images, labels - first]
    return arrays


def cifar_rows(seed):
    random = np.random.RandomState(seed)
    labels = (np.arange(10_000) % 10).astype(np.uint8)
    return labels, np.tile(random.randint(0, 256, (4, 3, 32, 32)).astype(np.uint8), (2500, 1, 1, 1))


def make_cifar(folder):
    arrays = []
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for seed, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            labels, images = cifar_rows(seed)
            content = np.concatenate([labels[:, None], images.reshape(10_000, -1)], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
            arrays.append((images, labels))
    train = [np.concatenate([part[k] for part in arrays[:5]]) for k in (0, 1)]
    return [*train, *arrays[5]]


MAKERS = {"kmnist": make_kmnist, "qmnist": make_qmnist, "emnist-letters": make_emnist, "cifar-10": make_cifar}


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A machine without any dataset or network; returns the folder GINGHAM_DATA points at."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("GINGHAM_DATA", str(own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("gingham.data.registry.SYSTEM_FOLDER", tmp_path / "system")
    return own


def publish(monkeypatch, name, folder, mirrors=()):
    """Make the files in a folder the published ones."""
    sums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in REGISTRY[name].md5}
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], md5=sums, mirrors=mirrors))


@pytest.mark.parametrize("name", MAKERS)
def test_each_format_gives_its_pictures_and_labels(alone, monkeypatch, name):
    place = alone / REGISTRY[name].folder
    place.mkdir()
    arrays = MAKERS[name](place)
    publish(monkeypatch, name, place)
    data = load_data(name, validation=0)
    for split, images, labels in ((data.train, *arrays[:2]), (data.test, *arrays[2:])):
        assert torch.equal(split.images, torch.from_numpy(images if images.ndim == 4 else images[:, None]))
        assert split.labels.tolist() == labels.tolist()
    assert (data.name, data.source, data.classes) == (name, str(place), REGISTRY[name].classes)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize("name", MAKERS)
def test_a_download_is_verified_kept_and_found_again(alone, tmp_path, monkeypatch, name, capsys):
    web = tmp_path / "web"
    web.mkdir()
    MAKERS[name](web)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/"
    try:
        publish(monkeypatch, name, web, (here + "nowhere/", here))
        first = load_data(name, validation=0)
        assert capsys.readouterr().out == ""
        kept = tmp_path / "cache" / "gingham" / REGISTRY[name].folder
        assert find_dataset_dir(name) == kept
        assert sorted(path.name for path in kept.iterdir()) == sorted(REGISTRY[name].md5)
        shutil.rmtree(web)  # from here on there is no network
        assert load_data(name, validation=0).fingerprint == first.fingerprint
        (kept / next(iter(REGISTRY[name].md5))).write_bytes(b"damaged")
        with pytest.raises(DataError, match=f"is not {name}: its MD5 begins"):
            load_data(name)
        shutil.rmtree(kept)
        with pytest.raises(DataError, match=f"{name} is not on this machine and its download failed .*set GINGHAM_DATA to it"):
            load_data(name)
    finally:
        server.shutdown()
    assert list((tmp_path / "cache" / "gingham").iterdir()) == []


def test_a_download_of_other_content_is_refused(alone, tmp_path, monkeypatch):
    web = tmp_path / "web"
    web.mkdir()
    make_kmnist(web)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(web)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = (f"http://127.0.0.1:{server.server_port}/",)
    monkeypatch.setitem(REGISTRY, "kmnist", dataclasses.replace(REGISTRY["kmnist"], mirrors=here))
    with pytest.raises(DataError, match=r"its download failed \(File not found or corrupted"):
        load_data("kmnist")
    server.shutdown()
    assert find_dataset_dir("kmnist") is None


@pytest.mark.parametrize(
    ("name", "loose", "message"),
    [
        ("kmnist", IDX_FILES[0], r"for which no checksum is published.* put train-images-idx3-ubyte.gz there .* with --data"),
        ("qmnist", "qmnist-train-images-idx3-ubyte", "put qmnist-train-images-idx3-ubyte.gz there as it is published"),
        ("emnist-digits", "emnist-digits-train-images-idx3-ubyte.gz", "put gzip.zip there as it is published"),
        ("cifar-10", "cifar-10-batches-bin", "put cifar-10-binary.tar.gz there as it is published, or use what is there with --data"),
    ],
)  # fmt: skip
def test_files_without_a_published_checksum_are_refused(alone, name, loose, message):
    (alone / REGISTRY[name].folder).mkdir()
    (alone / REGISTRY[name].folder / loose).write_bytes(b"whatever")
    with pytest.raises(DataError, match=message):
        load_data(name)


def test_a_file_of_another_set_is_called_by_its_name(alone, monkeypatch):
    make_kmnist(alone)
    publish(monkeypatch, "kmnist", alone)
    monkeypatch.setitem(
        REGISTRY, "other", dataclasses.replace(REGISTRY["kmnist"], md5=dict.fromkeys(REGISTRY["kmnist"].md5, "0" * 32))
    )
    with pytest.raises(DataError, match="is kmnist, not other"):
        load_data("other")
    (alone / f"{IDX_FILES[2]}.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is missing"):
        load_data("kmnist")


def test_an_archive_without_the_split(alone, monkeypatch):
    make_emnist(alone, "digits", 10, 0)
    publish(monkeypatch, "emnist-letters", alone)
    with pytest.raises(DataError, match=r"cannot read gzip/emnist-letters-train-images-idx3-ubyte.gz in"):
        load_data("emnist-letters")


def test_cifar_from_its_folder_and_archive(alone, tmp_path):
    arrays = make_cifar(tmp_path)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "cifar-10-batches-bin"
    for place in (folder, tmp_path / "cifar-10-binary.tar.gz"):
        data = load_data(str(place), validation=100)
        assert data.classes == REGISTRY["cifar-10"].classes
        assert data.train.images.shape == (49_900, 3, 32, 32)
        assert torch.equal(data.test.images, torch.from_numpy(arrays[2]))
    assert load_data(str(folder), validation=0, size=8).test.images.shape == (10_000, 3, 8, 8)
    (folder / "data_batch_3.bin").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match=r"data_batch_3.bin of .* is 100 bytes long, not 30730000"):
        load_data(str(folder))
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3.bin of .* is missing"):
        load_data(str(folder))
    whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cannot read .*cifar-10-binary.tar.gz"):
        load_data(str(tmp_path / "cifar-10-binary.tar.gz"))
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    with pytest.raises(DataError, match=r"data_batch_1.bin of .* is missing"):
        load_data(str(tmp_path / "cifar-10-python.tar.gz"))


def test_the_checksums_are_those_that_torchvision_publishes():
    for name, theirs in (("mnist", MNIST), ("fashion-mnist", FashionMNIST), ("kmnist", KMNIST)):
        assert REGISTRY[name].md5 == dict(theirs.resources)
    theirs = [*QMNIST.resources["train"], *QMNIST.resources["test"]]
    assert REGISTRY["qmnist"].md5 == {url.rpartition("/")[2]: md5 for url, md5 in theirs}
    for name in ("balanced", "letters", "digits", "byclass", "bymerge", "mnist"):
        assert REGISTRY[f"emnist-{name}"].md5 == {"gzip.zip": EMNIST.md5}


def test_the_class_names():
    assert REGISTRY["kmnist"].classes == tuple(KMNIST.classes)
    for name in ("balanced", "bymerge", "byclass", "digits", "mnist"):
        assert REGISTRY[f"emnist-{name}"].classes == tuple(EMNIST.classes_split_dict[name])
    assert REGISTRY["emnist-letters"].classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert len(REGISTRY["emnist-balanced"].classes) == 47
