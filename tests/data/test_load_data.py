import dataclasses
import gzip
import http.server
import shutil
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gingham
from gingham import DataError, load_data
from gingham.data.idx import IDX_FILES
from gingham.data.registry import REGISTRY, find_dataset_dir
from gingham.data.splits import _stratify
from gingham.data.statistics import count_duplicates, describe
from helpers import make_dataset, write_idx


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A machine where no copy of a dataset lies anywhere: returns the folder GINGHAM_DATA points at."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("GINGHAM_DATA", str(own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("gingham.data.registry.SYSTEM_FOLDER", tmp_path / "system")
    return own


# --- the real data


def test_fashion_mnist_is_the_clean_release(fashion_mnist):
    assert fashion_mnist.classes == (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    assert [len(part) for part in (fashion_mnist.train, fashion_mnist.validation, fashion_mnist.test)] == [55000, 5000, 10000]
    assert fashion_mnist.train.images.shape == (55000, 1, 28, 28)
    assert (fashion_mnist.train.images.dtype, fashion_mnist.train.labels.dtype) == (torch.uint8, torch.int64)
    assert set(fashion_mnist.validation.counts().values()) == {500}
    assert set(fashion_mnist.test.counts().values()) == {1000}
    assert count_duplicates(fashion_mnist) == {"train": 0, "test": 0, "across": 0}


def test_fashion_mnist_facts(fashion_mnist):
    metadata = describe(fashion_mnist)
    whole = torch.cat([fashion_mnist.train.images, fashion_mnist.validation.images]).double() / 255
    assert metadata["mean"] == pytest.approx(float(whole.mean()), abs=1e-9) == pytest.approx(0.2860, abs=1e-4)
    assert metadata["std"] == pytest.approx(float(whole.std()), abs=1e-6) == pytest.approx(0.3530, abs=1e-4)
    assert metadata["per_class_train"] == dict.fromkeys(fashion_mnist.classes, 6000)


def test_the_validation_split_never_moves(fashion_mnist):
    # A change here makes every earlier run's validation figure incomparable: it must stay these very pictures.
    assert fashion_mnist.validation.labels[:12].tolist() == GOLDEN_VALIDATION_LABELS
    assert int(fashion_mnist.validation.images.long().sum()) == GOLDEN_VALIDATION_SUM


GOLDEN_VALIDATION_LABELS = [0, 5, 8, 6, 3, 4, 9, 3, 4, 8, 0, 7]
GOLDEN_VALIDATION_SUM = 285893558


def test_held_out_and_kept_make_the_whole(fashion_mnist):
    whole = load_data("fashion-mnist", validation=0)
    assert whole.validation is None
    assert whole.fingerprint == fashion_mnist.fingerprint
    parts = [fashion_mnist.train, fashion_mnist.validation]
    assert sum(int(part.images.long().sum()) for part in parts) == int(whole.train.images.long().sum())


@pytest.fixture
def altered(fashion_mnist_folder, alone):
    """The real files in a folder of one's own, to be spoilt one way or another."""
    for file in IDX_FILES:
        shutil.copy(fashion_mnist_folder / f"{file}.gz", alone)
    return alone


def rewrite(folder, file, change):
    content = bytearray(gzip.decompress((folder / f"{file}.gz").read_bytes()))
    (folder / f"{file}.gz").unlink()
    (folder / file).write_bytes(change(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / f"{IDX_FILES[1]}.gz").unlink(), r"train-labels-idx1-ubyte is missing"),
        (lambda folder: rewrite(folder, IDX_FILES[3], lambda content: content[:-1]), r"t10k-labels-idx1-ubyte is truncated"),
        (lambda folder: (folder / f"{IDX_FILES[3]}.gz").write_bytes(b""), r"t10k-labels-idx1-ubyte.gz is not an IDX file"),
        (lambda folder: rewrite(folder, IDX_FILES[3], lambda content: content[:-1] + b"\x07"), r"t10k-labels.* is not fashion-mnist: its SHA"),
        (lambda folder: shutil.copy(folder / f"{IDX_FILES[3]}.gz", folder / f"{IDX_FILES[1]}.gz"), r"holds 10000 labels for the 60000 pictures"),
        (lambda folder: shutil.copy(folder / f"{IDX_FILES[0]}.gz", folder / f"{IDX_FILES[1]}.gz"), r"in 3 dimensions, where"),
    ],
)  # fmt: skip
def test_a_spoilt_source_is_one_sentence(altered, spoil, message):
    spoil(altered)
    with pytest.raises(DataError, match=message) as caught:
        load_data("fashion-mnist")
    assert str(altered) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_intact_folder_of_ones_own_is_taken_first(altered, fashion_mnist):
    data = load_data("fashion-mnist")
    assert data.source == str(altered)
    assert data.fingerprint == fashion_mnist.fingerprint


# --- a dataset in another's place


def test_mnist_in_fashion_mnists_place(alone, monkeypatch):
    make_dataset(alone / "fashion-mnist")
    with pytest.raises(DataError, match=r"is not fashion-mnist: its SHA-256 begins .* or use it as it is with --data"):
        load_data("fashion-mnist")
    from gingham.data.idx import idx_sha256, read_idx

    found = idx_sha256(read_idx(alone / "fashion-mnist" / IDX_FILES[0], 3))
    mnist = dataclasses.replace(REGISTRY["mnist"], sha256=(found, *REGISTRY["mnist"].sha256[1:]))
    monkeypatch.setitem(REGISTRY, "mnist", mnist)
    with pytest.raises(DataError, match="is mnist, not fashion-mnist"):
        load_data("fashion-mnist")


def test_places_are_tried_in_order(alone, tmp_path):
    assert find_dataset_dir() is None
    places = [tmp_path / "system" / "fashion-mnist", tmp_path / "gingham" / "fashion-mnist", alone, alone / "FashionMNIST" / "raw",
              alone / "fashion-mnist"]  # fmt: skip
    for place in places:
        make_dataset(place, train=8, test=8)
        assert find_dataset_dir() == place


# --- downloading


class Mirror(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on this machine in the place of those that datasets are published on."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Mirror(*args, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, known in REGISTRY.items():
        here = (f"http://127.0.0.1:{server.server_port}/",)
        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(known, mirrors=here))
    yield folder
    server.shutdown()


def test_a_download_is_verified_and_kept(fashion_mnist_folder, alone, mirror, tmp_path, capsys):
    for file in IDX_FILES:
        shutil.copy(fashion_mnist_folder / f"{file}.gz", mirror)
    data = load_data("fashion-mnist")
    assert len(data.train) == 55000
    assert data.source == str(tmp_path / "gingham" / "fashion-mnist")
    assert find_dataset_dir() == tmp_path / "gingham" / "fashion-mnist"
    assert sorted(path.name for path in (tmp_path / "gingham").rglob("*")) == sorted(
        ["fashion-mnist", *(f"{file}.gz" for file in IDX_FILES)]
    )
    assert capsys.readouterr().out == ""


def test_no_network_is_one_sentence_with_the_ways_out(alone, mirror, tmp_path):
    with pytest.raises(DataError, match=r"its download failed .*apt-get install dataset-fashion-mnist; or put") as caught:
        load_data("fashion-mnist")
    assert "\n" not in str(caught.value)
    assert find_dataset_dir() is None


# --- folders


def test_a_folder_of_idx_files(quadrants):
    data = load_data(str(quadrants), validation=40)
    assert data.classes == ("0", "1", "2", "3")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [260, 40, 80]
    assert data.validation.counts() == dict.fromkeys("0123", 10)


def test_a_folders_labels_can_be_named(quadrants):
    data = load_data(str(quadrants), validation=0, classes=("a", "b", "c", "d", "e"))
    assert data.test.counts() == {"a": 20, "b": 20, "c": 20, "d": 20, "e": 0}
    with pytest.raises(DataError, match="has labels up to 3, where 3 classes are known; allowed: 0 to 2"):
        load_data(str(quadrants), validation=0, classes=("a", "b", "c"))


def test_a_folder_that_is_not_there_is_not_passed_over(monkeypatch):
    monkeypatch.setenv("GINGHAM_DATA", "/nowhere")
    with pytest.raises(DataError, match="GINGHAM_DATA is /nowhere, which is no folder"):
        load_data("fashion-mnist")


def test_labels_of_another_length_than_the_pictures(quadrants):
    write_idx(quadrants / IDX_FILES[3], np.zeros(79, np.uint8))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte holds 79 labels for the 80 pictures of t10k-images"):
        load_data(str(quadrants), validation=0)


def test_pictures_of_two_sizes(quadrants):
    write_idx(quadrants / IDX_FILES[2], np.zeros((80, 20, 28), np.uint8))
    with pytest.raises(DataError, match="holds pictures of 20x28, the training ones are 28x28"):
        load_data(str(quadrants), validation=0)


@pytest.mark.parametrize("name", ["fasion-mnist", "/nowhere", ""])
def test_unknown_data(name):
    with pytest.raises(DataError, match="unknown dataset"):
        load_data(name)


def test_a_close_name_is_offered():
    with pytest.raises(DataError, match=r"unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'\?"):
        load_data("fasion-mnist")


def test_a_negative_validation_split(quadrants):
    with pytest.raises(DataError, match=r"-1 validation pictures were asked of the 300 training pictures.*allowed: 0 to 299"):
        load_data(str(quadrants), validation=-1)


def test_too_large_a_validation_split_of_a_published_set(fashion_mnist_folder):
    with pytest.raises(
        DataError, match=r"60000 validation pictures were asked of the 60000 training pictures.*allowed: 0 to 59999"
    ):
        load_data("fashion-mnist", validation=60000)


def test_of_data_of_ones_own_a_fifth_at_most_is_held_out(quadrants):
    data = load_data(str(quadrants))
    assert (len(data.train), len(data.validation)) == (240, 60)
    assert data.notes == ("60 of the 300 training pictures are held out for validation, a fifth, not 5000",)
    assert load_data(str(quadrants), validation=60).notes == ()


def test_planted_duplicates_are_counted(quadrants):
    from gingham.data.idx import read_idx

    train, test = read_idx(quadrants / IDX_FILES[0], 3), read_idx(quadrants / IDX_FILES[2], 3)
    train[5] = train[4] = train[3]
    test[1] = test[0]
    test[7] = train[10]
    write_idx(quadrants / IDX_FILES[0], train)
    write_idx(quadrants / IDX_FILES[2], test)
    for validation in (0, 40):
        assert count_duplicates(load_data(str(quadrants), validation)) == {"train": 2, "test": 1, "across": 1}


def test_the_fingerprint_moves_with_one_pixel(quadrants):
    before = load_data(str(quadrants), validation=0).fingerprint
    assert load_data(str(quadrants), validation=40).fingerprint == before
    with (quadrants / IDX_FILES[0]).open("r+b") as file:
        file.seek(500)
        old = file.read(1)
        file.seek(500)
        file.write(bytes([old[0] ^ 1]))
    assert load_data(str(quadrants), validation=0).fingerprint != before


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=200), st.data())
def test_stratified_splits_are_fair(labels, draw):
    labels = np.array(labels, np.uint8)
    wanted = draw.draw(st.integers(0, len(labels) - 1))
    kept, held_out = _stratify(labels, wanted, "set")
    assert len(held_out) == wanted
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label in set(labels.tolist()):
        exact = (labels == label).sum() * wanted / len(labels)
        assert abs((labels[held_out] == label).sum() - exact) < 1
    again = _stratify(labels, wanted, "set")
    assert (again[0] == kept).all()


def test_known_datasets_have_a_checksum_for_every_file():
    for known in REGISTRY.values():
        assert all(len(value) == 32 for value in known.md5.values())
        assert len({*known.sha256}) in (0, len(IDX_FILES))
    assert gingham.load_data is load_data


# --- larger than memory


@pytest.fixture
def little_memory(monkeypatch, tmp_path):
    monkeypatch.setattr("gingham.data.idx.free_memory", lambda: 100_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gingham" / "packs"


def test_pictures_larger_than_memory_are_mapped_and_the_same(quadrants, little_memory, monkeypatch):
    mapped = load_data(str(quadrants), validation=40)
    monkeypatch.undo()
    resident = load_data(str(quadrants), validation=40)
    assert mapped.train.block == (1 << 16) // (28 * 28)
    assert resident.train.block == mapped.validation.block == 1
    for ours, theirs in (
        (mapped.train, resident.train),
        (mapped.validation, resident.validation),
        (mapped.test, resident.test),
    ):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    assert mapped.fingerprint == resident.fingerprint


def test_a_pack_is_written_once_and_reused(quadrants, little_memory):
    load_data(str(quadrants), validation=40)
    (pack,) = little_memory.iterdir()
    assert pack.stat().st_size == 260 * 28 * 28
    before = pack.stat().st_mtime_ns
    load_data(str(quadrants), validation=40)
    assert [path.stat().st_mtime_ns for path in little_memory.iterdir()] == [before]
    pack.write_bytes(b"torn")  # another size than it must have: written anew
    assert load_data(str(quadrants), validation=40).train.images.shape == (260, 1, 28, 28)
    assert pack.stat().st_size == 260 * 28 * 28


def test_nothing_held_out_needs_no_pack(quadrants, little_memory):
    data = load_data(str(quadrants), validation=0)
    assert data.train.block > 1
    assert not little_memory.exists()


def test_a_mapped_set_is_never_written_to(quadrants, little_memory):
    before = (quadrants / "train-images-idx3-ubyte").read_bytes()
    load_data(str(quadrants), validation=0).train.images.fill_(7)
    assert (quadrants / "train-images-idx3-ubyte").read_bytes() == before


def test_a_mapped_set_trains(quadrants, little_memory):
    data = load_data(str(quadrants), validation=40)
    run = gingham.fit(gingham.RECIPES["article"].replace(epochs=6, batch_size=16, learning_rate=0.05), data.train, data.validation,
                      progress=False)  # fmt: skip
    assert run.metrics["validation_accuracy"] > 0.9


def test_a_gzipped_set_larger_than_memory_is_told_the_way_out(quadrants, little_memory):
    plain = quadrants / "train-images-idx3-ubyte"
    (quadrants / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    with pytest.raises(DataError, match=r"235200 bytes, more than half of the memory free here; decompress it \(gunzip\)"):
        load_data(str(quadrants), validation=0)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
def test_a_mapped_file_of_the_wrong_length_is_refused(quadrants, little_memory, change):
    path = quadrants / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=r"truncated|longer"):
        load_data(str(quadrants), validation=0)


def test_a_pack_that_cannot_be_written_is_one_sentence(quadrants, little_memory):
    little_memory.parent.mkdir()
    little_memory.write_text("a file where the folder should be")
    with pytest.raises(DataError, match="which a dataset larger than half of the free memory needs"):
        load_data(str(quadrants), validation=40)
