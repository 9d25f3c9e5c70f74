import pytest
import torch

from gingham import load_data
from gingham.data.idx import IDX_FILES, read_idx
from gingham.data.statistics import count_duplicates, describe
from helpers import write_idx


def test_statistics_of_fashion_mnist_are_those_published(fashion_mnist):
    statistics = describe(fashion_mnist)
    pixels = torch.cat([fashion_mnist.train.images, fashion_mnist.validation.images]).double() / 255
    assert statistics["mean"] == pytest.approx(float(pixels.mean()), abs=1e-9) == pytest.approx(0.2860, abs=1e-4)
    assert statistics["std"] == pytest.approx(float(pixels.std()), abs=1e-6) == pytest.approx(0.3530, abs=1e-4)
    assert statistics["per_class_train"] == dict.fromkeys(fashion_mnist.classes, 6000)


def test_duplicates_are_counted(quadrants):
    train, test = read_idx(quadrants / IDX_FILES[0], 3), read_idx(quadrants / IDX_FILES[2], 3)
    train[5] = train[4] = train[3]
    test[1] = test[0]
    test[7] = train[10]
    write_idx(quadrants / IDX_FILES[0], train)
    write_idx(quadrants / IDX_FILES[2], test)
    for validation in (0, 40):
        assert count_duplicates(load_data(str(quadrants), validation)) == {"train": 2, "test": 1, "across": 1}
