import subprocess
import sys
from pathlib import Path

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


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a process from /proc")
def test_describing_images_on_disk_does_not_copy_them(tmp_path):
    megabytes = 64
    script = f"""
import re, sys
from pathlib import Path
import numpy as np, torch
from gingham.data.splits import DataSplits, Split
from gingham.data.statistics import describe

def peak():
    return int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1]) >> 10

images = np.memmap("images", np.uint8, "w+", shape=({megabytes << 4}, 1, 256, 256))
images[:] = (np.arange(len(images)) % 256)[:, None, None, None]
labels = torch.arange(len(images)) % 2
train = Split("train", torch.from_numpy(images), labels, ("a", "b"), "made", "")
test = Split("test", torch.from_numpy(images[:0]), labels[:0], ("a", "b"), "made", "")
before = peak()
mean = describe(DataSplits("made", train, None, test, ("a", "b"), "", ""))["mean"]
assert abs(mean - 0.5) < 1e-6
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < megabytes
