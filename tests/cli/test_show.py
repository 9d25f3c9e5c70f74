import json

import numpy as np
import pytest
from PIL import Image

import gingham
from gingham.data.augment_photos import num_outliers


def test_show_describes_a_dataset_and_draws_its_images(command, run_json, quadrants):
    statistics = run_json("show", quadrants)
    assert {"images", "classes", "shape", "per_class", "mean", "std", "fingerprint", "file"} <= set(statistics)
    assert (statistics["images"], statistics["shape"], statistics["classes"]) == (
        380,
        [1, 28, 28],
        ["0", "1", "2", "3"],
    )
    assert statistics["per_class"] == dict.fromkeys("0123", 95)
    assert statistics["duplicates"] == {"train": 0, "test": 0, "across": 0}
    assert statistics["file"] == "quadrants.png"
    with Image.open(command.folder / statistics["file"]) as sheet:
        assert sheet.format == "PNG"
    stdout = command("show", quadrants, "--out", "sheets/one.png").stdout
    assert "300 train, 80 test, in 4 classes" in stdout
    assert (command.folder / "sheets/one.png").exists()


def test_show_describes_one_training_batch(command, run_json, fashion_mnist_folder):
    batch = run_json("show", "--batch", 64)["batch"]
    assert batch["shape"] == [64, 1, 28, 28]
    assert (batch["dtype"], batch["range"]) == ("uint8", [0, 255])
    assert batch["normalised_dtype"] == "float32"
    assert batch["normalised_range"] == pytest.approx([(0 - 0.286) / 0.353, (1 - 0.286) / 0.353], abs=1e-4)
    assert len(batch["labels"]) == 64
    stdout = command("show", "--batch", 64).stdout
    assert "float32 (64, 1, 28, 28), from -0.810 to 2.023" in stdout
    assert (command.folder / "fashion-mnist-batch.png").exists()


def test_the_default_dataset_is_fashion_mnist(run_json, fashion_mnist_folder):
    statistics = run_json("show")
    assert (statistics["images"], statistics["splits"]) == (70000, {"train": 60000, "test": 10000})
    assert statistics["mean"] == pytest.approx(0.2860, abs=1e-4)
    assert "T-shirt/top" in statistics["classes"]


def test_show_draws_a_batch_as_the_recipe_photo_augments_it(command, fashion_mnist_folder):
    plain, augmented = (
        json.loads(command("show", "--batch", 64, "--recipe", recipe, "--out", f"{recipe}.png", "--json").stdout)[
            "batch"
        ]
        for recipe in ("fast-94", "photo")
    )
    outliers = num_outliers(64, gingham.RECIPES["photo"])
    assert augmented["labels"] == ["no class"] * outliers + plain["labels"][outliers:]
    assert outliers == 10
    assert (command.folder / "fast-94.png").read_bytes() != (command.folder / "photo.png").read_bytes()


def test_show_rejects_the_recipe_photo_for_colour_images(command, tmp_path):
    np.savez(tmp_path / "colours.npz", images=np.zeros((40, 8, 8, 3), np.uint8), labels=np.arange(40) % 2)
    assert "3 channels" in command("show", tmp_path / "colours.npz", "--batch", 8, "--recipe", "photo", code=2).stderr


def test_a_recipe_without_a_batch_is_an_error(command, quadrants):
    stderr = command("show", quadrants, "--recipe", "fast", code=2).stderr
    assert stderr == "gingham: --recipe is for the figure of --batch; give both, or neither\n"
    assert not list(command.folder.iterdir())


def test_photos_are_shown_at_the_size_that_they_are_trained_at(command, tmp_path):
    random = np.random.default_rng(0)
    for name in ("red", "green"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(6):
            pixels = random.integers(0, 256, (90, 120, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.png")
    done = command("show", tmp_path / "photos", "--json")
    assert json.loads(done.stdout)["shape"] == [3, 224, 224]
    batch = command("show", tmp_path / "photos", "--batch", 4, "--json")
    assert json.loads(batch.stdout)["batch"]["shape"] == [4, 3, 144, 144]  # crops, as for the recipe finetune
