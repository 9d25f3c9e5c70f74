import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

import gingham
from dataset_files import make_image_folder
from gingham.evaluation.run_data import load_run_data
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


# --- images of other things


@pytest.fixture
def other_things(tmp_path):
    """A folder of images that are unlike the quadrants: ramps and blank images."""
    folder = tmp_path / "other"
    (folder / "more").mkdir(parents=True)
    for k in range(6):
        Image.new("L", (28, 28), 50 * k).save(folder / f"blank-{k}.png")
        ramp = np.tile(np.linspace(0, 255 - 20 * k, 40), (40, 1)).astype(np.uint8)
        Image.fromarray(ramp).convert("RGB").save(folder / f"more/ramp-{k}.jpg")
    return folder


def test_evaluate_counts_images_of_other_things(command, run_json, trained, other_things):
    result = run_json("evaluate", "runs/article-0", "--novel", other_things)
    assert set(result) == {"split", "total", "auroc", "rejected", "unsure", "confident", "kept"}
    assert (result["split"], result["total"]) == ("validation", 12)
    assert result["rejected"] + result["unsure"] + result["confident"] == pytest.approx(1)
    run = gingham.load(command.folder / "runs/article-0")
    predictions = gingham.predict(run, sorted(other_things.rglob("*.*g")))
    assert result["rejected"] == pytest.approx(np.mean([prediction.novel for prediction in predictions]))
    inside = run.model.predict(load_run_data(run).validation.images)
    assert result["kept"] == pytest.approx(1 - float(inside.novel.double().mean()))
    labels = [0] * len(inside) + [1] * 12
    scores = [*inside.novelty.tolist(), *(prediction.novelty for prediction in predictions)]
    assert result["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert run.test_openings == []

    first, second = command("evaluate", "runs/article-0", "--novel", other_things).stdout.splitlines()
    assert first == (
        f"{result['rejected']:.2%} of 12 other images rejected as unlike the training images, {result['unsure']:.2%} "
        f"not sure, {result['confident']:.2%} answered with a class"
    )
    assert second == f"AUROC {result['auroc']:.4f}; {result['kept']:.2%} of the validation images are kept"


def test_unreadable_images_of_other_things_are_left_out(command, trained, other_things):
    (other_things / "broken.png").write_text("not an image")
    done = command("evaluate", "runs/article-0", "--novel", other_things, "--json")
    assert json.loads(done.stdout)["total"] == 12
    assert done.stderr.startswith("left out: cannot read ")
    assert "broken.png" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_without_images_of_other_things_is_an_error(command, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    stderr = command("evaluate", "runs/article-0", "--novel", tmp_path / "empty", code=2).stderr
    assert "empty is a folder; give images in it" in stderr
    stderr = command("evaluate", "runs/article-0", "--novel", "missing", code=2).stderr
    assert "there is no folder missing" in stderr
    (tmp_path / "empty/text.png").write_text("not an image")
    stderr = command("evaluate", "runs/article-0", "--novel", tmp_path / "empty", code=2).stderr
    assert stderr.startswith("gingham: cannot read ")
    assert "text.png" in stderr
    (tmp_path / "empty/more.png").write_text("not an image")
    stderr = command("evaluate", "runs/article-0", "--novel", tmp_path / "empty", code=2).stderr
    assert "none of 2 images can be read (cannot read " in stderr
    stderr = command("evaluate", "runs/article-0", "--novel", "runs/article-0", code=2).stderr
    assert "is a run folder, not a folder of images" in stderr


@pytest.mark.parametrize("option", [("--data", "photos"), ("--split", "test")])
def test_images_of_other_things_with_a_split_or_other_data_are_an_error(command, trained, other_things, option):
    stderr = command("evaluate", "runs/article-0", "--novel", other_things, *option, code=2).stderr
    assert f"--novel compares with the run's own images; leave {option[0]} out" in stderr


def test_a_run_without_validation_images_compares_other_things_with_its_training_images(
    command, train, run_json, other_things
):
    train("--epochs", 1)
    result = run_json("evaluate", "runs/article-0", "--novel", other_things)
    assert result["split"] == "train"
    assert 0.94 < result["kept"] <= 1
    output = command("evaluate", "runs/article-0", "--novel", other_things).stdout
    assert "of the training images are kept" in output
