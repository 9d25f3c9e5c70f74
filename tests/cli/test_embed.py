"""`gingham embed` writes features that other programs can use."""

import json

import numpy as np
import pytest
from PIL import Image

import gingham
from gingham.inference.neighbours import features


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for k in range(5):
        pixels = np.pad(random.integers(0, 256, (20, 20), np.uint8), 4)  # on black, like the training images
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def test_the_features_of_a_folder_are_those_of_the_network(command, images):
    done = command("embed", images, "--out", "features.npz", "--json")
    result = json.loads(done.stdout)
    assert (result["images"], result["errors"]) == (5, [])
    with np.load(command.folder / "features.npz", allow_pickle=False) as file:
        assert file["features"].dtype == np.float32
        assert file["features"].shape == (5, result["features"])
        assert [name.rpartition("/")[2] for name in file["files"]] == [f"{k}.png" for k in range(5)]
        stored = file["features"]
    run = gingham.load_packaged()
    pixels = np.stack([np.asarray(Image.open(images / f"{k}.png")) for k in range(5)])[:, None]
    import torch

    assert np.allclose(stored, features(run.model, torch.from_numpy(pixels)).numpy(), atol=1e-5)


def test_unreadable_files_are_named_and_the_others_written(command, images):
    (images / "broken.png").write_bytes(b"not an image")
    done = command.call("embed", images, "--out", "features.npz")
    assert done.code == 2
    assert "no features for 1 of 6 images" in done.stderr
    assert "broken.png" in done.stderr
    with np.load(command.folder / "features.npz") as file:
        assert len(file["features"]) == 5


def test_a_file_that_exists_is_not_overwritten(command, images):
    (command.folder / "mine.npz").write_bytes(b"precious")
    done = command("embed", images, "--out", "mine.npz", code=2)
    assert "mine.npz already exists; give another file, or remove it first" in done.stderr
    assert (command.folder / "mine.npz").read_bytes() == b"precious"
    assert "does not end in .npz" in command("embed", images, "--out", "mine.csv", code=2).stderr
    assert "there is no file" in command("embed", "nothing.png", "--out", "new.npz", code=2).stderr
    assert not (command.folder / "new.npz").exists()
