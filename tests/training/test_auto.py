"""The recipe that is chosen for the user's own images."""

import numpy as np
import pytest
from PIL import Image

import gingham
from gingham.errors import ModelError
from gingham.training import auto
from gingham.training.auto import auto_recipe
from pretrained_files import write_photos

FAST, FROZEN = gingham.RECIPES["fast"], gingham.RECIPES["frozen"]


@pytest.fixture
def with_weights(monkeypatch, tiny_weights):
    """Pretrained weights are at hand."""
    asked = []
    monkeypatch.setattr(auto, "find_weights", lambda name, file, say: asked.append((name, file)) or ({}, ""))
    return asked


@pytest.fixture
def without_weights(monkeypatch):
    def fail(*_args):
        raise ModelError("cannot download the pretrained weights (no network); connect to the internet")

    monkeypatch.setattr(auto, "find_weights", fail)


def write_images(folder, count, shape, suffix="png", tint=0):
    """Write random images in two class folders; `tint` is what the first channel has more than the others."""
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = random.integers(0, 200, shape[:2]).astype(np.uint8)
            if len(shape) == 3:
                pixels = np.stack([pixels + np.uint8(tint), pixels, pixels], axis=2)
            Image.fromarray(pixels).save(folder / name / f"{k}.{suffix}")
    return folder


def test_photos_get_a_pretrained_network(with_weights, photo_folder, tmp_path):
    recipe, reason = auto_recipe(str(photo_folder), weights=tmp_path / "weights")
    assert recipe == FROZEN
    assert reason == (
        "80 colour images of about 96x72 pixels are photos: recipe frozen, a classifier on the features of "
        "tf_efficientnet_lite0, which was trained on ImageNet (--finetune: slower and more accurate)"
    )
    assert with_weights == [("tf_efficientnet_lite0", tmp_path / "weights")]


@pytest.mark.usefixtures("without_weights")
def test_photos_without_pretrained_weights_are_trained_from_scratch_at_64_pixels(photo_folder):
    recipe, reason = auto_recipe(str(photo_folder))
    assert recipe == FAST.replace(size=64)
    assert reason == (
        "80 colour images of about 96x72 pixels, but cannot download the pretrained weights (no network): recipe fast, "
        "a small network from scratch, at 64x64 pixels; to start from the pretrained weights, connect to the internet"
    )


@pytest.mark.parametrize(
    ("shape", "suffix", "tint", "described"),
    [
        ((64, 64, 3), "png", 50, "12 colour images of about 64x64 pixels"),  # icons
        ((32, 20, 3), "png", 50, "12 colour images of about 20x32 pixels"),
        ((28, 28), "png", 0, "12 grey images of about 28x28 pixels"),  # digits
        ((100, 120), "png", 0, "12 grey images of about 120x100 pixels"),
        ((100, 120, 3), "png", 0, "12 grey images of about 120x100 pixels"),  # grey, stored as RGB
        ((100, 120, 3), "jpg", 0, "12 grey images of about 120x100 pixels"),
    ],
)
def test_small_and_grey_images_get_a_small_network(shape, suffix, tint, described, with_weights, tmp_path):
    recipe, reason = auto_recipe(str(write_images(tmp_path / "data", 6, shape, suffix, tint)))
    assert recipe == FAST
    assert reason == f"{described}: recipe fast, a small network from scratch"
    assert with_weights == []


@pytest.mark.parametrize(
    ("mode", "suffix", "colour"),
    [
        ("RGB", "png", True),
        ("RGBA", "png", True),
        ("P", "png", True),
        ("CMYK", "jpg", True),
        ("RGB", "webp", True),
        ("L", "png", False),
        ("LA", "png", False),
        ("1", "png", False),
        ("I;16", "png", False),
    ],
)
def test_colours_are_found_in_every_kind_of_file(mode, suffix, colour, with_weights, photo_folder, tmp_path):
    for name in ("china", "flower"):
        (tmp_path / name).mkdir()
        for k in range(5):
            with Image.open(photo_folder / name / f"{k}.jpg") as photo:
                if mode == "I;16":
                    pixels = np.asarray(photo.convert("L")).astype(np.uint16) * 200
                    converted = Image.fromarray(pixels)
                else:
                    converted = photo.convert(mode)
                converted.save(tmp_path / name / f"{k}.{suffix}")
    assert auto_recipe(str(tmp_path))[0] == (FROZEN if colour else FAST)


def test_the_majority_of_the_images_decides(with_weights, tmp_path):
    write_images(tmp_path, 10, (100, 100))
    write_photos(tmp_path, count=4)
    assert auto_recipe(str(tmp_path))[0] == FAST
    write_photos(tmp_path, count=30)
    assert auto_recipe(str(tmp_path))[0] == FROZEN


def test_a_table_of_photos(with_weights, photo_folder, tmp_path):
    rows = [f"{path},{path.parent.name}" for path in sorted(photo_folder.rglob("*.jpg"))]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    assert auto_recipe(str(tmp_path / "table.csv"))[0] == FROZEN


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 28, 28), FAST), ((40, 64, 64, 3), FAST), ((40, 80, 80), FAST), ((40, 80, 80, 3), FROZEN)],
)
def test_arrays(shape, expected, with_weights, tmp_path):
    images = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(40) % 2)
    assert auto_recipe(str(tmp_path / "data.npz"))[0] == expected


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar-10"])
def test_published_datasets_get_the_default_recipe_without_being_read(name, with_weights):
    recipe, reason = auto_recipe(name)
    assert recipe == FAST
    assert reason == f"{name} is a dataset of small images: recipe fast, a small network from scratch"


def test_unreadable_images_are_not_looked_at(with_weights, tmp_path):
    write_photos(tmp_path, count=10)
    for k in range(5):
        (tmp_path / f"china/broken-{k}.jpg").write_bytes(b"no image")
    assert auto_recipe(str(tmp_path))[0] == FROZEN


def test_only_unreadable_images(with_weights, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"no image")
    assert auto_recipe(str(tmp_path))[0] == FAST


def test_data_that_does_not_exist_is_refused(with_weights):
    with pytest.raises(gingham.DataError, match="unknown dataset 'nowhere'"):
        auto_recipe("nowhere")
