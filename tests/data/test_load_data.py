import numpy as np
import pytest
import torch
from PIL import Image

from gingham import DataError, load_data
from gingham.data.statistics import count_duplicates


def test_fashion_mnist_is_the_clean_release(fashion_mnist):
    assert fashion_mnist.classes == (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip
    assert [len(part) for part in (fashion_mnist.train, fashion_mnist.validation, fashion_mnist.test)] == [
        55000,
        5000,
        10000,
    ]
    assert fashion_mnist.train.images.shape == (55000, 1, 28, 28)
    assert (fashion_mnist.train.images.dtype, fashion_mnist.train.labels.dtype) == (torch.uint8, torch.int64)
    assert set(fashion_mnist.validation.counts().values()) == {500}
    assert set(fashion_mnist.test.counts().values()) == {1000}
    assert count_duplicates(fashion_mnist) == {"train": 0, "test": 0, "across": 0}


def test_a_folder_of_idx_files_is_loaded(quadrants):
    data = load_data(str(quadrants), validation=40)
    assert data.classes == ("0", "1", "2", "3")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [260, 40, 80]
    assert data.validation.counts() == dict.fromkeys("0123", 10)


def test_numbered_labels_can_be_named(quadrants):
    data = load_data(str(quadrants), validation=0, classes=("a", "b", "c", "d", "e"))
    assert data.test.counts() == {"a": 20, "b": 20, "c": 20, "d": 20, "e": 0}
    with pytest.raises(DataError, match="has labels up to 3; allowed: 0 to 2, for the given classes"):
        load_data(str(quadrants), validation=0, classes=("a", "b", "c"))


def test_a_folder_of_class_folders_is_loaded(shoes):
    data = load_data(str(shoes))
    assert data.classes == ("boot", "sandal")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [28, 6, 6]
    assert data.test.counts() == {"boot": 3, "sandal": 3}
    assert (data.train.images.shape, data.train.images.dtype) == ((28, 1, 28, 28), torch.uint8)
    assert (data.train.labels.dtype, data.train.block) == (torch.int64, 1)
    images = {image.numpy().tobytes() for part in (data.train, data.validation, data.test) for image in part.images}
    assert len(images) == 40, "every image is in one split"
    for part in (data.train, data.validation, data.test):
        for image, label, file in zip(part.images, part.labels, part.files, strict=True):
            assert file.startswith(part.classes[label])
            with Image.open(shoes / file) as stored:
                assert (np.asarray(stored) == image[0].numpy()).all()


@pytest.mark.parametrize("name", ["fasion-mnist", ""])
def test_an_unknown_name_is_an_error(name):
    with pytest.raises(DataError, match="unknown dataset"):
        load_data(name)


@pytest.mark.parametrize("name", ["/nowhere", "photos/cats"])
def test_a_path_that_does_not_exist_is_an_error(name):
    with pytest.raises(
        DataError, match=f"there is no file or folder {name}; give one that exists, or a dataset's name"
    ):
        load_data(name)


def test_a_similar_name_is_suggested():
    with pytest.raises(DataError, match=r"unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'\?"):
        load_data("fasion-mnist")


def test_a_file_of_another_format_is_an_error(tmp_path):
    (tmp_path / "data.bin").write_text("hello")
    with pytest.raises(DataError, match=r"data.bin is not a dataset; give a folder of class folders, a .csv"):
        load_data(str(tmp_path / "data.bin"))


@pytest.mark.parametrize("size", [-1, 5000])
def test_a_size_out_of_range_is_an_error(shoes, size):
    with pytest.raises(DataError, match=f"size is {size}; allowed: 1 to 4096"):
        load_data(str(shoes), size=size)


def test_a_misspelt_folder_suggests_the_one_beside_it(tmp_path, monkeypatch):
    (tmp_path / "clothes").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"unknown dataset 'clothess'; did you mean 'clothes'\? \(known: fash"):
        load_data("clothess")
