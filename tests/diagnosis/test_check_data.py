"""Every fault of a dataset is planted, and has to be found; good data has none."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham import DataError
from gingham.data.load_data import load_unchecked
from gingham.diagnosis.check_data import find_leaks
from helpers import make_dataset


@pytest.fixture
def data(tmp_path):
    return gingham.load_data(str(make_dataset(tmp_path / "quadrants", train=400)), validation=0)


def changed(split, images=None, labels=None):
    return dataclasses.replace(
        split, images=split.images if images is None else images, labels=split.labels if labels is None else labels
    )


def names(issues):
    return [issue.title for issue in issues]


def test_good_data_has_no_finding(data):
    assert gingham.check_data(data) == []


def test_exact_duplicates_within_and_across(data):
    images = data.train.images.clone()
    images[10], images[20] = images[2], data.test.images[3]
    found = gingham.check_data(dataclasses.replace(data, train=changed(data.train, images)))
    assert "1 test picture is in the training data too (exact duplicates)" in names(found)
    assert "1 picture is there more than once within a split (exact duplicates)" in names(found)
    across = next(one for one in found if "test picture is" in one.title)
    assert across.images == ((("train", 20), ("test", 3)),)
    assert not any("near" in name for name in names(found)), "each is told once"


def test_duplicates_with_different_labels(data):
    images = data.train.images.clone()
    images[11] = images[2]  # of classes 3 and 2
    (torn,) = [
        one for one in gingham.check_data(dataclasses.replace(data, train=changed(data.train, images))) if "labels" in one.title
    ]
    assert torn.title == "1 group of exact duplicates with different labels"
    assert "labelled 2 and 3" in torn.evidence


def test_near_duplicates(data):
    images = data.train.images.clone()
    images[20] = (data.test.images[4].float() * 0.9 + 5).round().to(torch.uint8)
    planted = dataclasses.replace(data, train=changed(data.train, images))
    (found,) = gingham.check_data(planted)
    assert found.title == "1 test picture is in the training data too (near duplicates)"
    assert set(found.images[0]) == {("train", 20), ("test", 4)}
    assert find_leaks([planted.train], planted.test).nonzero().flatten().tolist() == [4]


def test_a_class_missing_from_a_split(data):
    keep = data.test.labels != 2
    test = changed(data.test, data.test.images[keep], data.test.labels[keep])
    assert "the test split lacks 1 of 4 classes" in names(gingham.check_data(dataclasses.replace(data, test=test)))


def test_imbalance(data):
    keep = (data.train.labels != 1) | (torch.arange(400) < 30)
    found = gingham.check_data(
        dataclasses.replace(data, train=changed(data.train, data.train.images[keep], data.train.labels[keep]))
    )
    assert "the classes are out of balance" in names(found)


def test_constant_pictures(data):
    images = data.train.images.clone()
    images[5] = 77
    (found,) = gingham.check_data(dataclasses.replace(data, train=changed(data.train, images)))
    assert found.title == "1 picture of one value all over"
    assert "train picture 5" in found.evidence


def test_shuffled_labels(data):
    labels = data.train.labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    found = gingham.check_data(dataclasses.replace(data, train=changed(data.train, labels=labels)))
    assert names(found) == ["the labels of the train pictures do not belong to them"]


def test_wrong_labels(data):
    labels = data.train.labels.clone()
    wrong = [7, 50, 51, 133, 300]
    labels[wrong] = (labels[wrong] + 1) % 4
    (found,) = gingham.check_data(dataclasses.replace(data, train=changed(data.train, labels=labels)))
    assert "likely wrong" in found.title
    assert {group[0][1] for group in found.images} == set(wrong)


@pytest.mark.slow
def test_wrong_labels_among_the_real_ones(fashion_mnist):
    """Of 600 planted wrong labels most are found, and most of what is found is planted."""
    train = fashion_mnist.train
    labels = train.labels.clone()
    wrong = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:600]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (600,), generator=torch.Generator().manual_seed(1))) % 10
    (found,) = [one for one in gingham.check_data(dataclasses.replace(fashion_mnist, train=changed(train, labels=labels)))
                if "likely wrong" in one.title]  # fmt: skip
    count = int(found.title.split()[0].replace(",", ""))
    assert 300 < count < 1200
    planted = set(wrong.tolist())
    shown = [index for ((_, index),) in found.images]
    assert sum(index in planted for index in shown) >= 0.8 * len(shown)


@pytest.fixture
def folder(tmp_path):
    random = np.random.RandomState(0)
    for split, each in (("train", 12), ("test", 4)):
        for place, name in enumerate(("Boots", "bags")):
            for k in range(each):
                pixels = random.randint(0, 80, (32, 32)).astype(np.uint8)
                pixels[16 * place : 16 * place + 16] += 120
                file = tmp_path / "pictures" / split / name / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return tmp_path / "pictures"


def test_a_folder_of_pictures(folder):
    data, odd = load_unchecked(folder)
    assert data.classes == ("Boots", "bags")
    assert (len(data.train), len(data.test), odd) == (24, 8, [])
    assert data.train.images.shape == (24, 1, 32, 32)
    assert data.train.files[0] == "train/Boots/0.png"


def test_odd_files_are_named(folder, command):
    train = folder / "train"
    (train / "Boots" / "empty.png").write_bytes(b"")
    (train / "Boots" / "notes.txt").write_text("remember the boots")
    whole = (train / "bags" / "1.png").read_bytes()
    (train / "bags" / "torn.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (300, 20)).save(train / "bags" / "wide.png")
    Image.new("L", (40, 40), 9).save(train / "bags" / "really.gif", "PNG")
    (train / "bags" / "0.png").write_bytes((folder / "test" / "bags" / "2.png").read_bytes())
    _, odd = load_unchecked(folder)
    reasons = dict(odd)
    assert reasons["train/Boots/empty.png"] == "cannot be read: it is empty"
    assert set(reasons) == {"train/Boots/empty.png", "train/Boots/notes.txt", "train/bags/torn.png", "train/bags/wide.png",
                            "train/bags/really.gif"}  # fmt: skip
    assert "is a PNG file, whatever its name says" in reasons["train/bags/really.gif"]
    assert "far from square" in reasons["train/bags/wide.png"]
    shown = command("diagnose", folder).stdout
    assert "3 files are not to be read as pictures" in shown
    assert "2 files are odd" in shown
    assert "train/bags/torn.png" in shown
    assert "1 test picture is in the training data too (exact duplicates)" in shown
    assert "test/bags/2.png" in shown


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match="no class folders with pictures"):
        load_unchecked(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_text("no")
    with pytest.raises(DataError, match="has 1 classes; allowed: 2"):
        load_unchecked(tmp_path)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "a.png").write_text("no")
    with pytest.raises(DataError, match="holds no file that can be read"):
        load_unchecked(tmp_path)
    (tmp_path / "train").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / name).rename(tmp_path / "train" / name)
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "test" / name / "b.png")
    with pytest.raises(DataError, match="holds no training picture that can be read"):
        load_unchecked(tmp_path)
