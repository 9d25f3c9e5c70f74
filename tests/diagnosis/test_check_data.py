"""Problems that are planted in a dataset are found, and the dataset without them has no issue."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham import DataError
from gingham.data.load_data import load_unchecked
from gingham.diagnosis.check_data import find_leaks
from gingham.training.checks import check_labels
from helpers import make_dataset


@pytest.fixture
def data(tmp_path):
    return gingham.load_data(str(make_dataset(tmp_path / "quadrants", train=400)), validation=0)


@pytest.fixture
def few(tmp_path):
    """Too few images for the check of their labels, which takes most of the time of all checks."""
    return gingham.load_data(str(make_dataset(tmp_path / "quadrants", train=76)), validation=0)


def with_train(data, **changes):
    """Return the data with fields of the training split changed, such as its images or labels."""
    return dataclasses.replace(data, train=dataclasses.replace(data.train, **changes))


def codes(issues):
    return [issue.code for issue in issues]


def test_valid_data_has_no_issue(data):
    assert gingham.check_data(data) == []


def test_exact_duplicates_within_and_across_splits(few):
    images = few.train.images.clone()
    images[10], images[20] = images[2], few.test.images[3]
    issues = {issue.code: issue for issue in gingham.check_data(with_train(few, images=images))}
    across = issues["exact-duplicates-across-splits"]
    assert across.title == "1 test image is also in the training data (exact duplicates)"
    assert across.images == ((("train", 20), ("test", 3)),)
    within = issues["exact-duplicates-within-split"]
    assert within.title == "1 image is repeated within a split (exact duplicates)"
    assert within.images == ((("train", 2), ("train", 10)),)
    assert not any(code.startswith("near") for code in issues), (
        "exact duplicates are not reported as near duplicates too"
    )


def test_duplicates_with_different_labels(few):
    images = few.train.images.clone()
    images[11] = images[2]  # of classes 3 and 2
    issues = gingham.check_data(with_train(few, images=images))
    (issue,) = [issue for issue in issues if issue.code == "exact-duplicates-with-different-labels"]
    assert issue.images == ((("train", 2), ("train", 11)),)
    assert "labelled 2 and 3" in issue.evidence


def test_near_duplicates_across_splits(few):
    images = few.train.images.clone()
    images[20] = (few.test.images[4].float() * 0.9 + 5).round().to(torch.uint8)
    changed = with_train(few, images=images)
    (issue,) = gingham.check_data(changed)
    assert issue.code == "near-duplicates-across-splits"
    assert set(issue.images[0]) == {("train", 20), ("test", 4)}
    assert find_leaks([changed.train], changed.test).nonzero().flatten().tolist() == [4]


def test_a_class_missing_from_a_split(few):
    mask = few.test.labels != 2
    test = dataclasses.replace(few.test, images=few.test.images[mask], labels=few.test.labels[mask])
    issues = gingham.check_data(dataclasses.replace(few, test=test))
    assert "the test split lacks 1 of 4 classes" in [issue.title for issue in issues]


def test_imbalanced_classes(few):
    mask = (few.train.labels != 1) | (torch.arange(76) < 2)
    issues = gingham.check_data(with_train(few, images=few.train.images[mask], labels=few.train.labels[mask]))
    (issue,) = (issue for issue in issues if issue.code == "imbalanced-classes")
    assert issue.evidence == "19 training images of 0, 1 of 1"
    assert "--set class_balance=1" in issue.fix


def test_constant_images(few):
    images = few.train.images.clone()
    images[5] = 77
    (issue,) = gingham.check_data(with_train(few, images=images))
    assert issue.code == "constant-images"
    assert issue.images == ((("train", 5),),)
    assert "train image 5" in issue.evidence


def test_shuffled_labels(data):
    labels = data.train.labels[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert codes(gingham.check_data(with_train(data, labels=labels))) == ["shuffled-labels"]


@pytest.mark.parametrize("statistic", ["brightness", "contrast"])
def test_labels_of_noise_with_its_own_brightness_or_contrast(statistic):
    """Such images have no meaningful neighbours by correlation."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    level = 60 * labels[:, None, None, None]
    noise = 10 * torch.randn(300, 1, 28, 28, generator=generator)
    values = 60 + level + noise if statistic == "brightness" else 127 + noise * (1 + level / 60)
    images = values.clamp(0, 255).to(torch.uint8)
    train, validation = (
        gingham.Split(name, images[part], labels[part], tuple("abc"), "noise", "1")
        for name, part in (("train", slice(240)), ("validation", slice(240, 300)))
    )
    assert list(check_labels(train, validation)) == []
    shuffled = train.labels[torch.randperm(240, generator=generator)]
    assert codes(check_labels(dataclasses.replace(train, labels=shuffled), None)) == ["shuffled-labels"]


def test_wrong_labels(data):
    labels = data.train.labels.clone()
    wrong = [7, 50, 51, 133, 300]
    labels[wrong] = (labels[wrong] + 1) % 4
    (issue,) = gingham.check_data(with_train(data, labels=labels))
    assert issue.code == "likely-wrong-labels"
    assert {group[0][1] for group in issue.images} == set(wrong)
    for _, index in [group[0] for group in issue.images[:4]]:
        label, other = (data.classes[int(of[index])] for of in (labels, data.train.labels))
        assert f"train image {index} (labelled {label}, predicted {other})" in issue.evidence
    assert issue.evidence.endswith("and 1 more")


@pytest.mark.slow
def test_most_wrong_labels_in_fashion_mnist_are_found(fashion_mnist):
    """Most of 600 planted wrong labels are found, and most of the listed labels were planted."""
    labels = fashion_mnist.train.labels.clone()
    wrong = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:600]
    labels[wrong] = (labels[wrong] + torch.randint(1, 10, (600,), generator=torch.Generator().manual_seed(1))) % 10
    issues = gingham.check_data(with_train(fashion_mnist, labels=labels))
    (issue,) = [issue for issue in issues if issue.code == "likely-wrong-labels"]
    count = int(issue.title.split()[0].replace(",", ""))
    assert 300 < count < 1200
    planted = set(wrong.tolist())
    listed = [index for ((_, index),) in issue.images]
    assert sum(index in planted for index in listed) >= 0.8 * len(listed)


@pytest.fixture
def folder(tmp_path):
    """A folder of images of two classes, with a train and a test split."""
    random = np.random.RandomState(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("Boots", "bags")):
            for k in range(count):
                pixels = random.randint(0, 80, (32, 32)).astype(np.uint8)
                pixels[16 * label : 16 * label + 16] += 120
                file = tmp_path / "images" / split / name / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return tmp_path / "images"


def test_a_valid_image_folder_has_no_odd_files(folder):
    data, odd_files = load_unchecked(folder)
    assert data.classes == ("Boots", "bags")
    assert (len(data.train), len(data.test), odd_files) == (24, 8, [])
    assert data.train.images.shape == (24, 1, 32, 32)
    assert data.train.files[0] == "train/Boots/0.png"


def test_odd_files_are_listed_with_their_reasons(folder, command):
    train = folder / "train"
    (train / "Boots" / "empty.png").write_bytes(b"")
    (train / "Boots" / "notes.txt").write_text("remember the boots")
    content = (train / "bags" / "1.png").read_bytes()
    (train / "bags" / "truncated.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (300, 20)).save(train / "bags" / "wide.png")
    Image.new("L", (40, 40), 9).save(train / "bags" / "really.gif", "PNG")
    (train / "bags" / "0.png").write_bytes((folder / "test" / "bags" / "2.png").read_bytes())
    _, odd_files = load_unchecked(folder)
    reasons = dict(odd_files)
    assert reasons["train/Boots/empty.png"] == "cannot be read: it is empty"
    assert set(reasons) == {
        "train/Boots/empty.png",
        "train/Boots/notes.txt",
        "train/bags/truncated.png",
        "train/bags/wide.png",
        "train/bags/really.gif",
    }
    assert "is a PNG file, which does not match its name" in reasons["train/bags/really.gif"]
    assert "far from square" in reasons["train/bags/wide.png"]
    output = command("diagnose", folder).stdout
    assert "3 files are not readable as images" in output
    assert "2 files are odd" in output
    assert "train/bags/truncated.png" in output
    assert "1 test image is also in the training data (exact duplicates)" in output
    assert "test/bags/2.png" in output


def test_a_folder_without_readable_images_is_an_error(tmp_path):
    with pytest.raises(DataError, match="found no training images in"):
        load_unchecked(tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "a.png").write_text("no")
    with pytest.raises(DataError, match="has 1 class; allowed: 2"):
        load_unchecked(tmp_path)
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "a.png").write_text("no")
    with pytest.raises(DataError, match="has no readable file"):
        load_unchecked(tmp_path)
    (tmp_path / "train").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / name).rename(tmp_path / "train" / name)
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "test" / name / "b.png")
    with pytest.raises(DataError, match="has no readable training image"):
        load_unchecked(tmp_path)


def test_a_narrow_range_of_values(few):
    """12-bit values in the lowest bits of 16-bit files, of which the upper 8 bits are kept."""
    dark = {
        name: dataclasses.replace(split, images=split.images >> 4)
        for name, split in (("train", few.train), ("test", few.test))
    }
    dark["train"].images[3] = 255
    issues = gingham.check_data(dataclasses.replace(few, **dark))
    (issue,) = [issue for issue in issues if issue.code == "narrow-range"]
    assert issue.title == "the images use 5% of the range of values"


@pytest.mark.parametrize("count", [8, 60])
def test_a_hot_pixel_does_not_hide_that_12_bit_images_are_dark(tmp_path, monkeypatch, count):
    """With one value of 65535, all images are scaled as 16-bit numbers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.RandomState(0)
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for k in range(count // 2):
            values = random.randint(0, 4096, (20, 20)).astype(np.uint16)
            if (name, k) == ("a", 0):
                values[3, 3] = 65535
            Image.fromarray(values).save(tmp_path / "d" / name / f"{k}.png")
    data, issues = load_unchecked(str(tmp_path / "d"))
    assert "narrow-range" in [issue.code for issue in gingham.check_data(data, issues)]
