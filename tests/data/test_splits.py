import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_files import make_image_folder, save_image
from gingham import DataError, load_data
from gingham.data.idx import IDX_FILES
from gingham.data.splits import _choose_validation


def image_bytes(split):
    return {image.numpy().tobytes() for image in split.images}


GOLDEN_VALIDATION_LABELS = [0, 5, 8, 6, 3, 4, 9, 3, 4, 8, 0, 7]
GOLDEN_VALIDATION_SUM = 285893558


def test_the_validation_split_of_fashion_mnist_never_changes(fashion_mnist):
    # A change here makes every earlier run's validation figure incomparable: it must keep these images.
    assert fashion_mnist.validation.labels[:12].tolist() == GOLDEN_VALIDATION_LABELS
    assert int(fashion_mnist.validation.images.long().sum()) == GOLDEN_VALIDATION_SUM


def test_training_and_validation_images_make_the_whole_set(fashion_mnist):
    whole = load_data("fashion-mnist", validation=0)
    assert whole.validation is None
    assert whole.fingerprint == fashion_mnist.fingerprint
    parts = [fashion_mnist.train, fashion_mnist.validation]
    assert sum(int(part.images.long().sum()) for part in parts) == int(whole.train.images.long().sum())


def test_a_negative_validation_split_is_an_error(quadrants):
    with pytest.raises(
        DataError, match=r"cannot hold -1 validation images out of the 300 training images.*allowed: 0 to 299"
    ):
        load_data(str(quadrants), validation=-1)


def test_a_validation_split_of_all_images_is_an_error(fashion_mnist_folder):
    with pytest.raises(
        DataError, match=r"cannot hold 60000 validation images out of the 60000 training images.*allowed: 0 to 59999"
    ):
        load_data("fashion-mnist", validation=60000)


def test_at_most_a_fifth_of_a_users_data_is_held_out(quadrants):
    data = load_data(str(quadrants))
    assert (len(data.train), len(data.validation)) == (240, 60)
    assert data.notes == (
        "60 of the 300 training images are held out for validation (at most a fifth; validation_images is 5000)",
    )
    assert load_data(str(quadrants), validation=60).notes == ()


def test_the_fingerprint_changes_with_one_pixel(quadrants):
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
def test_stratified_splits_keep_the_class_shares(labels, data):
    labels = np.array(labels, np.uint8)
    validation = data.draw(st.integers(0, len(labels) - 1))
    held_out = _choose_validation(labels, validation, "set", np.ones(len(labels), bool))
    assert len({*held_out.tolist()}) == len(held_out) == validation
    for label in set(labels.tolist()):
        exact = (labels == label).sum() * validation / len(labels)
        assert abs((labels[held_out] == label).sum() - exact) < 1
    assert (_choose_validation(labels, validation, "set", np.ones(len(labels), bool)) == held_out).all()


def test_split_folders_are_used_as_they_are(tmp_path, pack_folder):
    for split, each in (("Train", 6), ("val", 2), ("TEST", 3)):
        make_image_folder(tmp_path / "d" / split, {"a": each, "b": each}, shape=(20 + each, 30))
    data = load_data(str(tmp_path / "d"), validation=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 6]
    merged = load_data(str(tmp_path / "d"), validation=0)
    assert (len(merged.train), merged.validation) == (16, None)
    assert merged.fingerprint == data.fingerprint
    assert image_bytes(merged.train) == image_bytes(data.train) | image_bytes(data.validation)
    assert merged.train.files[:12] == data.train.files
    with pytest.raises(DataError, match="cannot hold -1 validation images out of"):
        load_data(str(tmp_path / "d"), validation=-1)


def test_a_test_split_is_cut_beside_a_validation_folder(tmp_path, pack_folder):
    for split, each in (("train", 20), ("valid", 5)):
        make_image_folder(tmp_path / "d" / split, {"a": each, "b": each}, shape=(20 + each, 30))
    data, merged = (load_data(str(tmp_path / "d"), validation) for validation in (5000, 0))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [34, 10, 6]
    assert len(merged.train) == 44
    assert image_bytes(data.test) == image_bytes(merged.test)
    assert not image_bytes(merged.train) & image_bytes(merged.test)
    assert image_bytes(data.train) | image_bytes(data.validation) == image_bytes(merged.train)


def test_the_test_split_of_a_folder_never_changes(tmp_path, pack_folder):
    # A change here makes every earlier run's figures incomparable.
    data = load_data(str(make_image_folder(tmp_path / "d", {"boot": 20, "sandal": 20})))
    assert data.test.files == (
        "boot/1.png",
        "boot/2.png",
        "boot/5.png",
        "sandal/4.png",
        "sandal/13.png",
        "sandal/17.png",
    )


def test_splits_depend_neither_on_the_path_nor_on_the_file_order(tmp_path, shoes):
    other = tmp_path / "another" / "path"
    for file in sorted(shoes.rglob("*.png"), reverse=True):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, other / file.parent.name / file.name)
    first, second = load_data(str(shoes)), load_data(str(other))
    assert first.fingerprint == second.fingerprint == load_data(str(shoes), validation=0).fingerprint
    for split, expected in (
        (first.train, second.train),
        (first.validation, second.validation),
        (first.test, second.test),
    ):
        assert split.files == expected.files
        assert torch.equal(split.images, expected.images)
    for k in range(20, 24):
        save_image(other / "boot" / f"{k}.png", seed=k)
    assert set(load_data(str(other)).test.files) >= set(first.test.files), "new images move none out of the test split"


@pytest.mark.parametrize(("count", "held_out"), [(3, 0), (4, 1), (7, 1), (10, 2), (20, 3), (23, 3), (24, 4)])
def test_fifteen_percent_of_each_class_are_held_out_for_the_test(tmp_path, pack_folder, count, held_out):
    data = load_data(str(make_image_folder(tmp_path / "d", {"a": count, "b": 20})), validation=0)
    assert data.test.counts() == {"a": held_out, "b": 3}


def test_the_fingerprint_changes_with_images_names_and_splits(tmp_path, shoes):
    fingerprints = {load_data(str(shoes)).fingerprint}
    (shoes / "boot").rename(shoes / "shoe")
    fingerprints.add(load_data(str(shoes)).fingerprint)
    save_image(shoes / "shoe" / "0.png", seed=99)
    fingerprints.add(load_data(str(shoes)).fingerprint)
    for file in [*(shoes / "sandal").iterdir()]:  # in the same order, but other images are chosen for the test
        file.rename(file.with_name(f"photo-{file.name}"))
    fingerprints.add(load_data(str(shoes)).fingerprint)
    for file in [*(shoes / "sandal").iterdir()]:
        file.rename(file.with_name(file.name.removeprefix("photo-")))
    for name in ("shoe", "sandal"):
        for split in ("train", "val"):
            (shoes / split / name).mkdir(parents=True)
        for k in range(20):
            (shoes / name / f"{k}.png").rename(shoes / ("val" if k < 5 else "train") / name / f"{k}.png")
        (shoes / name).rmdir()
    fingerprints.add(load_data(str(shoes)).fingerprint)
    assert len(fingerprints) == 5
