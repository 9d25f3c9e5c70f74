import json

import numpy as np
import pytest

import gingham
from gingham.inference.packaged_model import PACKAGED
from helpers import draw_garment_photo, make_dataset


def make_photo_folders(folder, counts, *, split=""):
    """Write photos of drawn garments into a folder for each class name, `counts` of each."""
    for class_number, (name, count) in enumerate(counts.items()):
        class_folder = folder / split / name
        class_folder.mkdir(parents=True)
        for k in range(count):
            draw_garment_photo((40 + 30 * class_number, 60, 20 * k), (255, 255, 255))[0].save(class_folder / f"{k}.png")
    return folder


def test_the_result_on_photos_counts_the_predictions_of_each_class(command, tmp_path):
    counts = {"T-SHIRT_top": 3, "dress": 1, "ankle boot": 2}
    folder = make_photo_folders(tmp_path / "photos", counts)
    command("train", "--recipe", "fast-85", "--epochs", 0.02, "--out", "run")
    run = gingham.load(command.folder / "run")
    result = json.loads(command("evaluate", "run", "--data", folder, "--json").stdout)
    assert (result["split"], result["total"]) == ("photographs", 6)
    recalls = []
    for name, label in (("T-SHIRT_top", "T-shirt/top"), ("dress", "Dress"), ("ankle boot", "Ankle boot")):
        predictions = gingham.predict(run, sorted((folder / name).iterdir()))
        correct = sum(prediction.label == label for prediction in predictions)
        assert result["per_class"][label]["correct"] == correct
        assert result["per_class"][label]["total"] == counts[name]
        recalls.append(correct / counts[name])
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result["per_class"]["Bag"]["accuracy"] is None
    assert result["test_openings"] == [], "photos are not the dataset's test split"
    output = command("evaluate", "run", "--data", folder).stdout
    assert "of 6 photographs right" in output
    assert "balanced accuracy" in output


def test_the_packaged_model_is_evaluated_only_on_photos_and_its_folder_is_not_changed(command, tmp_path):
    folder = make_photo_folders(tmp_path / "photos", {"bag": 2, "coat": 1})
    result = json.loads(command("evaluate", "packaged", "--data", folder, "--json").stdout)
    assert (result["total"], result["file"]) == (3, "confusion-photographs.png")
    assert "give --data FOLDER" in command("evaluate", "packaged", "--split", "test", code=2).stderr
    assert {file.name for file in PACKAGED.iterdir()} == {"model.json", "model.safetensors"}


def test_a_single_split_of_photos_can_be_evaluated(tmp_path, packaged):
    folder = make_photo_folders(tmp_path / "photos", {"bag": 2}, split="test")
    assert gingham.evaluate_photographs(packaged, folder)[0].total == 2
    assert gingham.evaluate_photographs(packaged, folder, "test")[0].total == 2
    with pytest.raises(gingham.DataError, match="has no photos in the split validation"):
        gingham.evaluate_photographs(packaged, folder, "validation")


def test_a_split_of_photos_without_splits_is_an_error(command, tmp_path):
    folder = make_photo_folders(tmp_path / "photos", {"bag": 1})
    stderr = command("evaluate", "packaged", "--data", folder, "--split", "test", code=2).stderr
    assert stderr == (f"gingham: {folder} has no splits to choose test from; leave split out to use all its photos\n")


def test_an_unknown_class_is_an_error_and_unreadable_photos_are_returned(tmp_path, packaged):
    folder = make_photo_folders(tmp_path / "photos", {"bag": 1, "hat": 1})
    with pytest.raises(
        gingham.DataError, match=r"has the class hat, which is not a class of the model \(T-shirt/top, "
    ):
        gingham.evaluate_photographs(packaged, folder)
    (folder / "hat").rename(folder / "coat")
    (folder / "coat" / "text.jpg").write_text("not an image")
    result, unreadable = gingham.evaluate_photographs(packaged, folder)
    assert result.total == 2
    assert [prediction.image for prediction in unreadable] == [str(folder / "coat" / "text.jpg")]


def test_a_run_on_idx_files_is_not_evaluated_as_photos(tmp_path, command):
    make_dataset(tmp_path / "quadrants")
    command("train", "--recipe", "article", "--data", tmp_path / "quadrants", "--epochs", 0.2, "--out", "run")
    result = json.loads(
        command("evaluate", "run", "--data", tmp_path / "quadrants", "--split", "test", "--json").stdout
    )
    assert result["split"] == "test"


def test_data_that_is_not_a_folder_of_photos_is_an_error(command):
    assert "nowhere is not a folder of photos" in command("evaluate", "packaged", "--data", "nowhere", code=2).stderr


@pytest.mark.parametrize("name", ["nope", "nope.csv"])
def test_a_folder_that_does_not_exist_is_an_error_that_says_so(tmp_path, packaged, name):
    with pytest.raises(gingham.DataError, match=f"there is no folder .*{name}; give") as caught:
        gingham.evaluate_photographs(packaged, tmp_path / name)
    assert "permission" not in str(caught.value)
