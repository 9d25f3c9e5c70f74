import dataclasses
import gzip
import hashlib
import http.server
import shutil
import struct
import threading
import zipfile

import numpy as np
import pytest
import torch
from torchvision.datasets import EMNIST, KMNIST, MNIST, QMNIST, FashionMNIST

import gingham
from dataset_files import make_cifar_archive
from gingham import DataError, load_data
from gingham.data.idx import IDX_FILES, idx_sha256, read_idx
from gingham.data.registry import REGISTRY, find_dataset_dir
from helpers import make_dataset


def encode_idx(array, type_code=8):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, type_code, array.ndim, *array.shape) + array.tobytes()


def random_digits(count, classes, seed, first_label=0):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 28, 28)).astype(np.uint8), (np.arange(count) % classes + first_label).astype(
        np.uint8
    )


def make_kmnist(folder):
    arrays = [*random_digits(60, 10, 0), *random_digits(20, 10, 1)]
    for file, array in zip(IDX_FILES, arrays, strict=True):
        (folder / f"{file}.gz").write_bytes(gzip.compress(encode_idx(array)))
    return arrays


def make_qmnist(folder):
    arrays = []
    for part, count in (("train", 60), ("test", 30)):
        images, labels = random_digits(count, 10, count)
        columns = np.random.RandomState(0).randint(0, 99999, (count, 8)).astype(">i4")
        columns[:, 0] = labels
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(encode_idx(images)))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(encode_idx(columns, 0x0C)))
        arrays += [images, labels]
    return arrays


def make_emnist(folder, split="letters", classes=26, first_label=1):
    arrays = []
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for part, count in (("train", 3 * classes), ("test", 2 * classes)):
            images, labels = random_digits(count, classes, count, first_label)
            stored = np.ascontiguousarray(images.transpose(0, 2, 1))
            archive.writestr(f"gzip/emnist-{split}-{part}-images-idx3-ubyte.gz", gzip.compress(encode_idx(stored)))
            archive.writestr(f"gzip/emnist-{split}-{part}-labels-idx1-ubyte.gz", gzip.compress(encode_idx(labels)))
            arrays += [images, labels - first_label]
    return arrays


MAKERS = {"kmnist": make_kmnist, "qmnist": make_qmnist, "emnist-letters": make_emnist, "cifar-10": make_cifar_archive}


@pytest.fixture
def data_dir(monkeypatch, tmp_path):
    """The folder that GINGHAM_DATA names, on a machine without datasets."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("GINGHAM_DATA", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("gingham.data.registry.SYSTEM_FOLDER", tmp_path / "system")
    return folder


def publish(monkeypatch, name, folder, mirrors=()):
    """Register the checksums of the files in a folder as the published ones."""
    checksums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in REGISTRY[name].md5}
    monkeypatch.setitem(REGISTRY, name, dataclasses.replace(REGISTRY[name], md5=checksums, mirrors=mirrors))


@pytest.mark.parametrize("name", MAKERS)
def test_each_format_gives_its_images_and_labels(data_dir, monkeypatch, name):
    folder = data_dir / REGISTRY[name].folder
    folder.mkdir()
    arrays = MAKERS[name](folder)
    publish(monkeypatch, name, folder)
    data = load_data(name, validation=0)
    for split, images, labels in ((data.train, *arrays[:2]), (data.test, *arrays[2:])):
        assert torch.equal(split.images, torch.from_numpy(images if images.ndim == 4 else images[:, None]))
        assert split.labels.tolist() == labels.tolist()
    assert (data.name, data.source, data.classes) == (name, str(folder), REGISTRY[name].classes)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """The folder and the URL of a web server on this machine."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: QuietHandler(*args, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", MAKERS)
def test_a_download_is_verified_cached_and_reused(data_dir, tmp_path, monkeypatch, name, capsys, mirror):
    web, url = mirror
    MAKERS[name](web)
    publish(monkeypatch, name, web, (url + "nowhere/", url))
    first = load_data(name, validation=0)
    assert capsys.readouterr().out == ""
    cached = tmp_path / "cache" / "gingham" / REGISTRY[name].folder
    assert find_dataset_dir(name) == cached
    assert sorted(path.name for path in cached.iterdir()) == sorted(REGISTRY[name].md5)
    shutil.rmtree(web)  # as if the network were gone
    assert load_data(name, validation=0).fingerprint == first.fingerprint
    (cached / next(iter(REGISTRY[name].md5))).write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"is not {name}: its checksum begins with"):
        load_data(name)
    shutil.rmtree(cached)
    with pytest.raises(
        DataError, match=f"{name} is not on this machine and its download failed .*set GINGHAM_DATA to it"
    ):
        load_data(name)
    assert list((tmp_path / "cache" / "gingham").iterdir()) == []


def test_a_download_of_other_content_is_an_error(data_dir, monkeypatch, mirror):
    web, url = mirror
    make_kmnist(web)
    monkeypatch.setitem(REGISTRY, "kmnist", dataclasses.replace(REGISTRY["kmnist"], mirrors=(url,)))
    with pytest.raises(
        DataError, match=r"its download failed \(.*train-images-idx3-ubyte.gz is not the published file"
    ):
        load_data("kmnist")
    assert find_dataset_dir("kmnist") is None


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "kmnist",
            IDX_FILES[0],
            r"train-images-idx3-ubyte.gz is missing; put the published file there.* by their path",
        ),
        (
            "qmnist",
            "qmnist-train-images-idx3-ubyte",
            r"qmnist-train-images-idx3-ubyte.gz is missing; put the published file there",
        ),
        (
            "emnist-digits",
            "emnist-digits-train-images-idx3-ubyte.gz",
            r"gzip.zip is missing; put the published file there",
        ),
        (
            "cifar-10",
            "data_batch_1.bin",
            r"cifar-10-binary.tar.gz is missing; put the published file there, .* or load the unverified files",
        ),
    ],
)
def test_files_without_a_published_checksum_are_an_error(data_dir, name, file, message):
    (data_dir / REGISTRY[name].folder).mkdir()
    (data_dir / REGISTRY[name].folder / file).write_bytes(b"whatever")
    with pytest.raises(DataError, match=message):
        load_data(name)


def test_the_error_names_the_dataset_a_file_belongs_to(data_dir, monkeypatch):
    make_kmnist(data_dir)
    publish(monkeypatch, "kmnist", data_dir)
    monkeypatch.setitem(
        REGISTRY, "other", dataclasses.replace(REGISTRY["kmnist"], md5=dict.fromkeys(REGISTRY["kmnist"].md5, "0" * 32))
    )
    with pytest.raises(DataError, match=r"is not other: .*a file of kmnist, whose files have the same names"):
        load_data("other")
    (data_dir / f"{IDX_FILES[2]}.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz is missing"):
        load_data("kmnist")


def test_checksums_equal_those_in_torchvision():
    for name, dataset in (("mnist", MNIST), ("fashion-mnist", FashionMNIST), ("kmnist", KMNIST)):
        assert REGISTRY[name].md5 == dict(dataset.resources)
    resources = [*QMNIST.resources["train"], *QMNIST.resources["test"]]
    assert REGISTRY["qmnist"].md5 == {url.rpartition("/")[2]: md5 for url, md5 in resources}
    for name in ("balanced", "letters", "digits", "byclass", "bymerge", "mnist"):
        assert REGISTRY[f"emnist-{name}"].md5 == {"gzip.zip": EMNIST.md5}


def test_class_names_equal_those_in_torchvision():
    assert REGISTRY["kmnist"].classes == tuple(KMNIST.classes)
    for name in ("balanced", "bymerge", "byclass", "digits", "mnist"):
        assert REGISTRY[f"emnist-{name}"].classes == tuple(EMNIST.classes_split_dict[name])
    assert REGISTRY["emnist-letters"].classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert len(REGISTRY["emnist-balanced"].classes) == 47


@pytest.fixture
def fashion_mnist_copy(fashion_mnist_folder, data_dir):
    """A folder with a copy of the real files, to be damaged."""
    for file in IDX_FILES:
        shutil.copy(fashion_mnist_folder / f"{file}.gz", data_dir)
    return data_dir


def rewrite(folder, file, change):
    content = bytearray(gzip.decompress((folder / f"{file}.gz").read_bytes()))
    (folder / f"{file}.gz").unlink()
    (folder / file).write_bytes(change(content))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / f"{IDX_FILES[1]}.gz").unlink(), r"train-labels-idx1-ubyte is missing"),
        (
            lambda folder: rewrite(folder, IDX_FILES[3], lambda content: content[:-1]),
            r"t10k-labels-idx1-ubyte .its header declares 10000 bytes; 9999 follow",
        ),
        (
            lambda folder: (folder / f"{IDX_FILES[3]}.gz").write_bytes(b""),
            r"t10k-labels-idx1-ubyte.gz .it is not an IDX file",
        ),
        (
            lambda folder: rewrite(folder, IDX_FILES[3], lambda content: content[:-1] + b"\x07"),
            r"t10k-labels.* is not fashion-mnist: its checksum begins with",
        ),
        (
            lambda folder: shutil.copy(folder / f"{IDX_FILES[3]}.gz", folder / f"{IDX_FILES[1]}.gz"),
            r"train-labels.* is not fashion-mnist: its checksum begins with",
        ),
        (
            lambda folder: shutil.copy(folder / f"{IDX_FILES[0]}.gz", folder / f"{IDX_FILES[1]}.gz"),
            r"in 3 dimensions, not 0x08 in 1",
        ),
    ],
)
def test_damaged_files_are_an_error_of_one_line(fashion_mnist_copy, damage, message):
    damage(fashion_mnist_copy)
    with pytest.raises(DataError, match=message) as caught:
        load_data("fashion-mnist")
    assert str(fashion_mnist_copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_folder_in_gingham_data_is_used_first(fashion_mnist_copy, fashion_mnist):
    data = load_data("fashion-mnist")
    assert data.source == str(fashion_mnist_copy)
    assert data.fingerprint == fashion_mnist.fingerprint


@pytest.fixture
def decompressed(fashion_mnist_copy, tmp_path):
    """The file in the cache with the decompressed images."""
    load_data("fashion-mnist")
    (file,) = (tmp_path / "cache" / "gingham" / "idx").iterdir()
    return file


def test_decompressed_files_are_cached_and_give_the_same_data(decompressed, fashion_mnist, monkeypatch):
    monkeypatch.setattr("gingham.data.registry.read_idx_folder", None)  # decompressing again would raise an error
    data = load_data("fashion-mnist")
    assert data.fingerprint == fashion_mnist.fingerprint
    content = decompressed.read_bytes()
    data.train.images.zero_()
    assert decompressed.read_bytes() == content


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: content[:-9] + bytes(9), lambda content: b""]
)
def test_a_damaged_cache_is_rewritten(decompressed, fashion_mnist, damage):
    content = decompressed.read_bytes()
    decompressed.write_bytes(damage(content))
    assert load_data("fashion-mnist").fingerprint == fashion_mnist.fingerprint
    assert decompressed.read_bytes() == content


def test_a_changed_file_is_read_again_and_replaces_the_cache(fashion_mnist_copy, decompressed):
    file = fashion_mnist_copy / f"{IDX_FILES[1]}.gz"
    content = file.read_bytes()
    file.write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match="is not an IDX file"):
        load_data("fashion-mnist")
    file.write_bytes(content)
    load_data("fashion-mnist")
    assert len(list(decompressed.parent.iterdir())) == 1
    assert not decompressed.exists(), "the file has another time"


def test_an_unwritable_cache_is_not_an_error(fashion_mnist_copy, fashion_mnist, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    assert load_data("fashion-mnist").fingerprint == fashion_mnist.fingerprint


def test_mnist_in_the_folder_of_fashion_mnist_is_an_error(data_dir, monkeypatch):
    make_dataset(data_dir / "fashion-mnist")
    with pytest.raises(
        DataError, match=r"is not fashion-mnist: its checksum begins with .* or load it unverified by its path"
    ):
        load_data("fashion-mnist")
    checksum = idx_sha256(read_idx(data_dir / "fashion-mnist" / IDX_FILES[0], 3))
    mnist = dataclasses.replace(REGISTRY["mnist"], sha256=(checksum, *REGISTRY["mnist"].sha256[1:]))
    monkeypatch.setitem(REGISTRY, "mnist", mnist)
    with pytest.raises(DataError, match=r"is not fashion-mnist: .*a file of mnist, whose files have the same names"):
        load_data("fashion-mnist")


def test_folders_are_searched_in_order(data_dir, tmp_path):
    assert find_dataset_dir() is None
    folders = [tmp_path / "system" / "fashion-mnist", tmp_path / "cache" / "gingham" / "fashion-mnist"]
    folders += [data_dir, data_dir / "FashionMNIST" / "raw", data_dir / "fashion-mnist"]
    for folder in folders:
        make_dataset(folder, train=8, test=8)
        assert find_dataset_dir() == folder


def test_fashion_mnist_is_downloaded_to_the_cache(
    fashion_mnist_folder, data_dir, mirror, monkeypatch, tmp_path, capsys
):
    web, url = mirror
    for file in IDX_FILES:
        shutil.copy(fashion_mnist_folder / f"{file}.gz", web)
    publish(monkeypatch, "fashion-mnist", web, (url,))  # Debian compresses the files anew
    data = load_data("fashion-mnist")
    assert len(data.train) == 55000
    assert data.source == str(tmp_path / "cache" / "gingham" / "fashion-mnist")
    assert find_dataset_dir() == tmp_path / "cache" / "gingham" / "fashion-mnist"
    assert sorted(path.name for path in (tmp_path / "cache" / "gingham" / "fashion-mnist").iterdir()) == sorted(
        f"{file}.gz" for file in IDX_FILES
    )
    assert capsys.readouterr().out == ""


def test_a_failed_download_is_an_error_with_remedies(data_dir, mirror, monkeypatch):
    monkeypatch.setitem(REGISTRY, "fashion-mnist", dataclasses.replace(REGISTRY["fashion-mnist"], mirrors=(mirror[1],)))
    with pytest.raises(
        DataError, match=r"its download failed .*apt-get install dataset-fashion-mnist; or put"
    ) as caught:
        load_data("fashion-mnist")
    assert "\n" not in str(caught.value)
    assert find_dataset_dir() is None


def test_a_missing_gingham_data_folder_is_an_error(monkeypatch):
    monkeypatch.setenv("GINGHAM_DATA", "/nowhere")
    with pytest.raises(DataError, match="GINGHAM_DATA is /nowhere, which is not a folder"):
        load_data("fashion-mnist")


def test_each_dataset_has_a_checksum_for_every_file():
    for spec in REGISTRY.values():
        assert all(len(value) == 32 for value in spec.md5.values())
        assert len({*spec.sha256}) in (0, len(IDX_FILES))
    assert gingham.load_data is load_data


def write_dataset(folder):
    """Write the four IDX files of a small dataset, and return its images and labels."""
    images, labels = random_digits(40, 10, 0)
    folder.mkdir(parents=True)
    for name, array in zip(IDX_FILES, (images, labels, images[::-1], labels[::-1]), strict=True):
        (folder / name).write_bytes(encode_idx(array))
    return images, labels


@pytest.mark.parametrize("given", ["", "FashionMNIST", "FashionMNIST/raw"])
def test_the_root_folder_of_torchvision_is_found(tmp_path, given):
    write_dataset(tmp_path / "data" / "FashionMNIST" / "raw")
    data = load_data(str(tmp_path / "data" / given), validation=0)
    assert (len(data.train), len(data.test), data.classes) == (40, 40, tuple("0123456789"))


def test_a_root_folder_with_two_datasets_is_an_error(tmp_path):
    for name in ("FashionMNIST", "MNIST"):
        write_dataset(tmp_path / "data" / name / "raw")
    with pytest.raises(DataError, match=r"data has several datasets; give one of: .*FashionMNIST/raw, .*/MNIST/raw"):
        load_data(str(tmp_path / "data"))
    assert len(load_data(str(tmp_path / "data" / "MNIST"), validation=0).train) == 40


def test_the_images_of_a_published_dataset_get_its_class_names(tmp_path, monkeypatch):
    images, labels = write_dataset(tmp_path / "idx")
    np.savez(tmp_path / "d.npz", x_train=images / 255, y_train=np.eye(10)[labels])
    rows = np.concatenate([labels[:, None], images.reshape(40, -1)], axis=1)
    np.savetxt(tmp_path / "d.csv", rows, "%d", ",")
    forms = [str(tmp_path / name) for name in ("idx", "d.npz", "d.csv")]
    assert all(load_data(form).classes == tuple("0123456789") for form in forms)
    before = [load_data(form).fingerprint for form in forms]
    checksum = hashlib.sha256(b"".join(sorted(row.astype(np.uint8).tobytes() for row in rows))).hexdigest()
    spec = dataclasses.replace(REGISTRY["fashion-mnist"], sorted_sha256=checksum)
    monkeypatch.setattr("gingham.data.registry.TRAINING_SHAPE", (40, 1, 28, 28))
    monkeypatch.setitem(REGISTRY, "fashion-mnist", spec)
    for form, fingerprint in zip(forms, before, strict=True):
        data = load_data(form)
        assert data.classes == spec.classes
        assert data.fingerprint != fingerprint
        assert load_data(form, classes=tuple("0123456789")).fingerprint == fingerprint, "an earlier run finds its data"
    np.savetxt(tmp_path / "d.csv", rows[::-1], "%d", ",")
    assert load_data(forms[2]).classes == spec.classes, "in another order"
    images[0, 0, 0] += 1
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels)
    assert load_data(forms[1]).classes == tuple("0123456789")


def test_the_files_of_fashion_mnist_get_its_class_names(fashion_mnist_folder, fashion_mnist):
    data = load_data(str(fashion_mnist_folder))
    assert (data.classes, data.fingerprint) == (fashion_mnist.classes, fashion_mnist.fingerprint)
