import re

import numpy as np
import pytest
import torch

from gingham import DataError, load_data
from gingham.data.npz import to_uint8


def smooth_images(count, channels=1, side=8):
    """Return images uint8 (N, C, H, W) with a gradient in each channel, and labels 0 to 3."""
    random = np.random.RandomState(0)
    labels = np.arange(count) % 4
    ramp = np.arange(side)[:, None] * 3 + np.arange(side)
    images = ramp + 40 * labels[:, None, None, None] + random.randint(0, 3, (count, channels, side, side))
    return (images + 25 * np.arange(channels)[:, None, None]).astype(np.uint8), labels


def write_pixels(path, labels, pixels, names=None, form="{:g}"):
    """Write a table with a column of labels and the columns of pixels, and return its path."""
    lines = [
        [str(label), *map(form.format, row)] for label, row in zip(labels, pixels.reshape(len(labels), -1), strict=True)
    ]
    path.write_text("".join(",".join(line) + "\n" for line in ([names] if names else []) + lines))
    return str(path)


def header(count, label="label"):
    return [label, *(f"pixel{k}" for k in range(count))]


def images_of(data):
    return torch.cat([data.train.images, data.test.images])


@pytest.mark.parametrize("names", [None, header(64), header(64, "Class")])
def test_a_table_of_a_label_and_pixels_is_read(tmp_path, names):
    images, labels = smooth_images(40)
    data = load_data(write_pixels(tmp_path / "digits.csv", labels, images, names), validation=0)
    assert data.classes == ("0", "1", "2", "3")
    assert data.train.images.shape == (32, 1, 8, 8)
    expected = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    for part in (data.train, data.test):
        for image, label in zip(part.images.numpy(), part.labels.tolist(), strict=True):
            assert expected[image.tobytes()] == label


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_label_may_be_last_or_have_a_name_and_be_anywhere(tmp_path, suffix, delimiter):
    images, labels = smooth_images(40)
    images[:, :, 0, 0] = 0  # as in most images of digits
    rows = np.concatenate([images.reshape(40, -1), labels[:, None]], axis=1)
    path = tmp_path / f"t.{suffix}"
    np.savetxt(path, rows, "%d", delimiter)
    data = load_data(str(path), validation=0)
    assert data.notes == (f"the label is in column 65 of the 65 columns of {path}",)
    rows = np.concatenate([rows[:, :9], labels[:, None], rows[:, 9:-1]], axis=1)
    names = [f"p{k}" for k in range(65)]
    names[9] = "Target"
    np.savetxt(path, rows, "%d", delimiter, header="\ufeff" + delimiter.join(names), comments="", encoding="utf-8")
    again = load_data(str(path), validation=0)
    assert again.notes == ()
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("names", [None, header(64)])
def test_labels_of_text_are_an_error(tmp_path, names):
    images, labels = smooth_images(40)
    path = write_pixels(tmp_path / "t.csv", [f"class {label}" for label in labels], images, names)
    with pytest.raises(
        DataError, match=r"cannot read .*'class 0'.*; it needs a whole number as the label and the same"
    ):
        load_data(path)


def test_the_columns_of_pixels_may_have_numbers_for_names(tmp_path):
    images, labels = smooth_images(40)
    data = load_data(write_pixels(tmp_path / "t.csv", labels, images, ["label", *map(str, range(64))]), validation=0)
    assert len(data.train) + len(data.test) == 40
    assert len(data.classes) == 4


def test_a_table_without_labels_beside_another_is_an_error(tmp_path):
    images, labels = smooth_images(40)
    write_pixels(tmp_path / "train.csv", labels, images, header(64))
    np.savetxt(tmp_path / "test.csv", images.reshape(40, -1), "%d", ",", header=",".join(header(64)[1:]), comments="")
    with pytest.raises(
        DataError, match=r"cannot read .*test.csv .it has 64 columns, not 65, after 40 images.; it needs a whole number"
    ):
        load_data(str(tmp_path))


def test_another_column_is_an_error(tmp_path):
    images, labels = smooth_images(40)
    rows = np.concatenate([np.full((40, 1), 7), images.reshape(40, -1)], axis=1)
    path = write_pixels(tmp_path / "t.csv", labels, rows, ["label", "usage", *header(64)[1:]])
    (tmp_path / "t.csv").write_text(re.sub(r"(?m)^(\d),7", r"\1,Training", (tmp_path / "t.csv").read_text()))
    with pytest.raises(DataError, match=r"has 65 columns beside the label; allowed: .*; remove other columns"):
        load_data(path)


@pytest.mark.parametrize("interleaved", [False, True])
def test_colour_images_are_read_in_the_order_of_their_channels(tmp_path, interleaved):
    images, labels = smooth_images(40, channels=3)
    rows = images.transpose(0, 2, 3, 1) if interleaved else images
    data = load_data(write_pixels(tmp_path / "t.csv", labels, np.ascontiguousarray(rows), header(192)), validation=0)
    assert {image.tobytes() for image in images_of(data).numpy()} == {image.tobytes() for image in images}


def test_a_folder_of_two_tables_has_two_splits(tmp_path):
    images, labels = smooth_images(60)
    write_pixels(tmp_path / "signs_train.csv", labels[:40], images[:40], header(64))
    write_pixels(tmp_path / "signs_test.csv", labels[40:], images[40:], header(64))
    data = load_data(str(tmp_path), validation=8)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [32, 8, 20]
    assert torch.equal(data.test.images, torch.from_numpy(images[40:]))


def test_numbers_from_0_to_1_are_scaled(tmp_path):
    images, labels = smooth_images(40)
    path = write_pixels(tmp_path / "t.csv", labels, images / 255, header(64), "{:.6f}")
    data = load_data(path, validation=0)
    assert {image.tobytes() for image in images_of(data).numpy()} == {image.tobytes() for image in images}
    assert "(float32), became 0 to 255" in data.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:, :-1], "has 63 columns beside the label; allowed: the N.N pixels of grey"),
        (lambda rows: rows * 4, "has pixels from 0 to .* .int16.; allowed: whole numbers from 0 to 255"),
        (lambda rows: rows - 9, "has pixels from -9 to .*; allowed: whole numbers from 0 to 255"),
        (lambda rows: rows / 1.5, "has pixels from 0 to .* .float32.; allowed: whole numbers from 0 to 255"),
    ],
)
def test_other_numbers_are_an_error(tmp_path, change, message):
    images, labels = smooth_images(40)
    path = write_pixels(tmp_path / "t.csv", labels, change(images.reshape(40, -1).astype(int)))
    with pytest.raises(DataError, match=message) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["1,2,3", "1" + ",x" * 64, "1" + "," * 64, "1" + ",nan" * 64, "1" + ",99999999" * 64])
def test_a_line_of_another_form_is_an_error(tmp_path, line):
    images, labels = smooth_images(40)
    path = write_pixels(tmp_path / "t.csv", labels, images, header(64))
    with (tmp_path / "t.csv").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(
        DataError, match=r"cannot read .*t.csv .*, after 0 images.; it needs a whole number as the label"
    ):
        load_data(path)


def test_a_table_larger_than_memory_is_an_error(tmp_path, monkeypatch):
    images, labels = smooth_images(40)
    path = write_pixels(tmp_path / "t.csv", labels, images)
    monkeypatch.setattr("gingham.data.memory.free_memory", lambda: 1000)
    with pytest.raises(DataError, match="more than half of the free memory; save it as four IDX files"):
        load_data(path)


@pytest.mark.parametrize(
    ("values", "dtypes"),
    [
        ((0, 1), (np.float16, np.float32, np.float64, np.int8, np.uint16, np.int64, bool)),
        ((-1, 1), (np.float16, np.float32, np.float64, np.int8, np.int64)),
        ((0, 255), (np.float16, np.float32, np.float64, np.uint16, np.int64)),
    ],
)
def test_numbers_become_uint8_by_the_range_of_all_arrays(values, dtypes):
    for dtype in dtypes:
        array = np.array(values, dtype)
        converted, _ = to_uint8({"a": array, "b": array[:1]}, "it")
        assert [converted[name].tolist() for name in "ab"] == [[0, 255], [0]]
        assert converted["a"].dtype == np.uint8
