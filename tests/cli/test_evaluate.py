import json
import shutil

from PIL import Image

import gingham
from dataset_files import make_image_folder
from helpers import make_dataset


def test_evaluate_measures_a_split_and_records_uses_of_test(command, run_json, trained):
    result = run_json("evaluate", "runs/article-0")
    assert {
        "split",
        "accuracy",
        "loss",
        "correct",
        "total",
        "per_class",
        "confusion",
        "calibration_error",
        "test_openings",
    } <= set(result)
    assert (result["split"], result["total"], result["test_openings"]) == ("validation", 40, [])
    assert result["accuracy"] == trained["validation_accuracy"]
    for openings in (1, 2):
        result = run_json("evaluate", "runs/article-0", "--split", "test")
        assert len(result["test_openings"]) == openings
    stdout = command("evaluate", "runs/article-0", "--split", "test").stdout
    assert "of 80 test images right (95 % interval" in stdout
    assert "used 3 times by this run" in stdout
    assert (command.folder / "runs/article-0/confusion-test.png").exists()


def test_a_run_can_be_evaluated_on_other_data(run_json, trained, tmp_path):
    other = make_dataset(tmp_path / "other", seed=5, train=20, test=40)  # too few to hold 40 out, but test needs none
    result = run_json("evaluate", "runs/article-0", "--data", other, "--split", "test")
    assert result["total"] == 40


def test_data_that_changed_after_training_is_an_error(command, trained, quadrants):
    make_dataset(quadrants, seed=1)
    stderr = command("evaluate", "runs/article-0", code=2).stderr
    assert "has changed since runs/article-0 was trained on it" in stderr


def test_validation_of_a_run_without_held_out_images_is_an_error(command, train):
    train("--epochs", 0.1)
    stderr = command("evaluate", "runs/article-0", code=2).stderr
    assert "has no validation images of" in stderr
    assert "use --split test" in stderr


def test_the_result_is_printed_if_the_figure_cannot_be_written(command, trained):
    Image.new("RGB", (5, 5), "red").save(command.folder / "runs/article-0/confusion-test.png")
    done = command("evaluate", "runs/article-0", "--split", "test", "--json")
    result = json.loads(done.stdout)
    assert result["total"] == 80
    assert result["file"] is None
    assert "no figure: " in done.stderr


def test_a_use_of_the_test_split_in_a_copy_of_the_data_is_recorded(command, run_json, tmp_path):
    for split in ("train", "test"):
        make_image_folder(tmp_path / "shoes" / split, {"boot": 20, "sandal": 20})
    command("train", "--recipe", "article", "--data", tmp_path / "shoes", "--epochs", 1, "--out", "run")
    copy = shutil.copytree(tmp_path / "shoes", tmp_path / "copy")
    options = ("evaluate", "run", "--split", "test", "--data")
    own, copied = (run_json(*options, folder) for folder in (tmp_path / "shoes", copy))
    assert (copied["accuracy"], copied["total"], copied["split"]) == (own["accuracy"], 40, "test")
    assert len(copied["test_openings"]) == 2
    (copy / "train" / "boot" / "0.png").unlink()  # no longer the same data, so these are photos
    assert run_json(*options, copy)["split"] == "photographs"
    assert len(gingham.load(command.folder / "run").test_openings) == 2


def test_an_empty_name_of_data_does_not_skip_the_check_of_its_fingerprint(command, trained, quadrants):
    make_dataset(quadrants, seed=1)
    assert "has changed since" in command("evaluate", "runs/article-0", "--data", "", code=2).stderr


def test_a_recipe_in_place_of_a_run_suggests_the_run_that_it_trained(command, trained):
    stderr = command("evaluate", "article", code=2).stderr
    assert "there is no folder article; did you mean 'runs/article-0'? (known: runs/article-0), or train one" in stderr
