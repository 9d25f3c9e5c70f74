import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gingham import DataError, load_data


def random_images(count, *shape, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, *shape)).astype(np.uint8)


def save_npz(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return str(tmp_path / "data.npz")


def test_arrays_named_as_in_keras_are_read(tmp_path):
    train, test = random_images(40, 28, 28), random_images(10, 28, 28, seed=1)
    path = save_npz(tmp_path, x_train=train, y_train=np.arange(40) % 5, x_test=test, y_test=np.arange(10) % 5)
    data = load_data(path, validation=5)
    assert data.classes == tuple("01234")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [35, 5, 10]
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(test))
    assert data.train.labels.dtype == torch.int64


def test_colour_arrays_named_as_in_medmnist_are_read(tmp_path):
    arrays = {}
    for seed, (split, count) in enumerate((("train", 30), ("val", 6), ("test", 9))):
        arrays[f"{split}_images"] = random_images(count, 28, 28, 3, seed=seed)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    path = save_npz(tmp_path, **arrays)
    data, merged = load_data(path), load_data(path, validation=0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 6, 9]
    assert torch.equal(data.validation.images, torch.from_numpy(arrays["val_images"].transpose(0, 3, 1, 2)))
    assert (len(merged.train), merged.validation, merged.fingerprint) == (36, None, data.fingerprint)


def test_plain_names_channels_first_and_class_names_are_read(tmp_path):
    images = random_images(40, 3, 20, 20)
    path = save_npz(tmp_path, images=images, labels=np.arange(40) % 2, class_names=np.array(["zebra", "ant"]))
    data = load_data(path, validation=0)
    assert data.classes == ("zebra", "ant"), "the file's own order"
    assert data.test.counts() == {"zebra": 3, "ant": 3}
    again = load_data(path, validation=0)
    assert torch.equal(again.test.images, data.test.images)


def test_text_labels_are_sorted_unless_classes_are_named(tmp_path):
    labels = np.array(["b10", "b9", "a"])[np.arange(30) % 3]
    for array in (labels, labels.astype("S")):
        data = load_data(save_npz(tmp_path, images=random_images(30, 8, 8), labels=array), validation=0)
        assert data.classes == ("a", "b9", "b10")
    named = load_data(
        save_npz(tmp_path, images=random_images(30, 8, 8), labels=labels, classes=np.array(["b10", "a", "b9"])), 0
    )
    assert named.classes == ("b10", "a", "b9")
    class_by_image = {
        image.numpy().tobytes(): named.classes[label]
        for image, label in zip(named.train.images, named.train.labels, strict=True)
    }
    assert all(
        data.classes[label] == class_by_image.get(image.numpy().tobytes(), data.classes[label])
        for image, label in zip(data.train.images, data.train.labels, strict=True)
    )


def test_labels_may_start_at_1_and_exceed_255(tmp_path):
    labels = np.repeat(np.arange(1, 401), 3)
    data = load_data(save_npz(tmp_path, images=random_images(1200, 4, 4), labels=labels), validation=0)
    assert (data.classes[0], data.classes[-1], int(data.train.labels.max())) == ("1", "400", 399)


def test_arrays_are_resized(tmp_path):
    path = save_npz(tmp_path, images=random_images(12, 9, 5), labels=np.arange(12) % 2)
    assert load_data(path, validation=0).train.images.shape[1:] == (1, 9, 5)
    assert load_data(path, validation=0, size=16).train.images.shape[1:] == (1, 16, 16)


@pytest.mark.parametrize(
    ("convert", "note"),
    [
        (lambda images: images / 255, "from 0 to 1 (float64)"),
        (lambda images: (images / 127.5 - 1).astype(np.float32), "from -1 to 1 (float32)"),
        (lambda images: images.astype(np.float32), "from 0 to 255 (float32)"),
        (lambda images: images.astype(np.int64), None),
    ],
)
def test_images_of_other_numbers_are_converted(tmp_path, convert, note):
    images, test, labels = random_images(40, 8, 8, 3), random_images(10, 8, 8, 3, seed=1), np.arange(40) % 2
    arrays = {"x_train": images, "y_train": labels, "x_test": test, "y_test": labels[:10]}
    expected = load_data(save_npz(tmp_path, **arrays))
    data = load_data(save_npz(tmp_path, **{k: convert(v) if k[0] == "x" else v for k, v in arrays.items()}))
    assert data.fingerprint == expected.fingerprint
    message = f"the pixels of {tmp_path / 'data.npz'}, {note}, became 0 to 255 (uint8)"
    assert data.notes == (*([message] if note else []), *expected.notes)


@pytest.mark.parametrize(
    "convert",
    [lambda y: np.eye(3)[y], lambda y: np.eye(3, dtype=bool)[y], lambda y: y.astype(float), lambda y: y[:, None] * 1.0],
)
def test_labels_may_be_one_hot_or_whole_numbers_in_floats(tmp_path, convert):
    images, labels = random_images(30, 8, 8), np.arange(30) % 3
    expected = load_data(save_npz(tmp_path, images=images, labels=labels))
    data = load_data(save_npz(tmp_path, images=images, labels=convert(labels)))
    assert data.fingerprint == expected.fingerprint
    assert ("labels of" in data.notes[0]) == (convert(labels).shape == (30, 3))


VALID = {"images": random_images(12, 8, 8), "labels": np.arange(12) % 2}
INVALID = {
    "names": ({"data": random_images(9, 8, 8)}, "contains data; it needs x_train and y_train"),
    "half": ({"images": random_images(9, 8, 8)}, "contains images but no labels"),
    "text": (VALID | {"images": np.full((12, 8, 8), "a")}, "images of .* is <U1 of shape .12, 8, 8.; allowed: "),
    "NaN": (VALID | {"images": np.full((12, 8, 8), np.nan)}, "pixels from nan to nan .float64.; allowed: whole"),
    "infinite": (VALID | {"images": np.full((12, 8, 8), np.inf)}, "pixels from inf to inf"),
    "too large": (VALID | {"images": random_images(12, 8, 8).astype(int) * 2}, "pixels from 0 to 510 .int64.; allowed"),
    "not whole": (VALID | {"images": random_images(12, 8, 8) * 0.99}, "pixels from 0 to .* .float64.; allowed"),
    "standardized": (VALID | {"images": random_images(12, 8, 8) / 64 - 1}, "pixels from -1 to 2.9.* allowed"),
    "shape": (VALID | {"images": random_images(12, 8, 8, 4)}, r"of shape \(12, 8, 8, 4\); allowed"),
    "flat": (VALID | {"images": random_images(12, 64)}, r"of shape \(12, 64\); allowed"),
    "count": (
        VALID | {"labels": np.arange(11) % 2},
        r"train images of shape \(12, 1, 8, 8\) and 11 labels; allowed: one label for each image",
    ),
    "two classes": (VALID | {"labels": np.ones((12, 2), int)}, r"for example with labels.argmax\(axis=1\)"),
    "probabilities": (
        VALID | {"labels": np.full((12, 2), 0.5)},
        r"is float64 of shape .12, 2.; allowed: whole numbers",
    ),
    "float labels": (VALID | {"labels": np.arange(12) / 2}, "is float64 of shape"),
    "negative": (VALID | {"labels": np.arange(12) % 2 - 1}, "has labels down to -1"),
    "few names": (VALID | {"labels": np.arange(12) % 3, "classes": np.array(["a", "b"])}, "0 to 1"),
    "other names": (
        VALID | {"labels": np.array(["a", "c"] * 6), "classes": np.array(["a", "b"])},
        "has the label 'c', which is none of its 2 classes; allowed: their names",
    ),
    "one name twice": (VALID | {"classes": np.array(["a", "a"])}, "has two classes of the same name"),
    "objects": (VALID | {"labels": np.array([{}] * 12, object)}, "Object arrays cannot be loaded"),
    "nothing": (
        VALID | {"images": random_images(0, 8, 8), "labels": np.arange(0)},
        r"of shape \(0, 8, 8\); allowed: one or more images",
    ),
    "test lacks": (
        VALID | {"x_test": random_images(3, 8, 8), "y_test": np.zeros(3, int)},
        "the test split of .* no image of 1",
    ),
    "other size": (
        VALID | {"x_test": random_images(2, 9, 9), "y_test": np.arange(2)},
        r"test images of shape \(2, 1, 9, 9\) .* in all splits, here \(1, 8, 8\)",
    ),
    "class lacks": (VALID | {"classes": np.array(["a", "b", "c"])}, "the train split of .* has no image of c"),
    "one class": (VALID | {"labels": np.zeros(12, int)}, "has 1 class; allowed: 2 to 10,000"),
    "no letters": (
        VALID | {"labels": np.frombuffer(b"\xff" * 96, "U2")},
        "cannot read .*utf-8.* save it again with np.savez",
    ),
    "half a letter": (
        VALID | {"classes": np.array(["a", "\ud800"])},
        "cannot read .*surrogates not allowed.* save it again",
    ),
    "names of another encoding": (
        VALID | {"classes": np.array([b"a", b"\xff"])},
        "cannot read .* save it again with np.savez",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_invalid_arrays_are_an_error_of_one_line(tmp_path, name):
    arrays, message = INVALID[name]
    with pytest.raises(DataError, match=message) as caught:
        load_data(save_npz(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no archive", "damaged"])
def test_a_damaged_file_is_an_error(tmp_path, content):
    path = tmp_path / "data.npz"
    if content == "damaged":
        np.savez_compressed(path, **VALID)
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        load_data(str(path))


HEADER = b"\x93NUMPY\x01\x00"
INVALID_MEMBERS = {
    "no array": (b"plain text", "cannot read .*labels is not an array.; save it again"),
    "truncated header": (HEADER + b"\x0a\x00{'shape': ( \n", "cannot read"),
    "a huge shape": (
        HEADER + b"\x50\x00{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999999,), }     \n",
        "cannot read",
    ),
}


@pytest.mark.parametrize("name", [*INVALID_MEMBERS, "encrypted"])
def test_a_damaged_member_is_an_error(tmp_path, name):
    path = Path(save_npz(tmp_path, **VALID))
    content, message = INVALID_MEMBERS.get(name, (b"", "cannot read .*encrypted"))
    with zipfile.ZipFile(path) as archive:
        images, labels = archive.read("images.npy"), archive.read("labels.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", content or labels)
    if name == "encrypted":
        path.write_bytes(path.read_bytes().replace(b"PK\x01\x02\x14\x03\x14\0\0", b"PK\x01\x02\x14\x03\x14\0\x01"))
    with pytest.raises(DataError, match=message):
        load_data(str(path))


def test_arrays_larger_than_memory_are_an_error(tmp_path, monkeypatch):
    path = save_npz(tmp_path, **VALID)
    monkeypatch.setattr("gingham.data.memory.free_memory", lambda: 1000)
    with pytest.raises(DataError, match="more than half of the free memory; save it as four IDX files"):
        load_data(path)


def test_every_command_accepts_an_npz_file_and_a_run_on_it(command, tmp_path):
    images = random_images(60, 12, 12) // 3
    labels = np.arange(60) % 2
    images[labels == 1, :6] += 120
    path = save_npz(tmp_path, images=images, labels=labels, classes=np.array(["low", "high"]))
    command("train", "--recipe", "fast-90", "--data", path, "--epochs", 4, "--set", "batch_size=16")
    for options in ((), ("--split", "test")):
        assert "high" in command("evaluate", "runs/fast-90-0", *options).stdout
    command("report", "runs/fast-90-0")
    command("show", path)
    command("diagnose", path)
