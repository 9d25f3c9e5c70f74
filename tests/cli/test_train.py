import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gingham
from helpers import locked_by_another, make_dataset


def test_train_writes_a_run_and_prints_its_results(command, trained):
    keys = {
        "run",
        "recipe",
        "seed",
        "device",
        "precision",
        "parameters",
        "train_images",
        "epochs",
        "steps",
        "train_seconds",
        "wall_seconds",
        "validation_accuracy",
        "resumed_from_step",
    }
    assert keys <= set(trained)
    assert trained["run"] == "runs/article-0"
    assert (trained["recipe"], trained["seed"], trained["train_images"], trained["steps"]) == ("article", 0, 260, 18)
    assert 0 < trained["train_seconds"] < trained["wall_seconds"]
    folder = command.folder / "runs" / "article-0"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "model.safetensors",
        "model.json",
        "history.jsonl",
        "curves.png",
        "images.safetensors",
    }


def test_a_finished_run_is_not_overwritten(command, train, trained, quadrants):
    before = (command.folder / "runs/article-0/model.safetensors").read_bytes()
    assert "already contains a finished run; give another --out or --seed" in train(code=2).stderr
    other = make_dataset(quadrants.parent / "other")
    stderr = train("--data", other, code=2).stderr
    assert (
        stderr
        == f"gingham: runs/article-0 already contains a finished run, trained on {quadrants}; give another --out "
        "or --seed, or evaluate it\n"
    )
    resumed = train("--resume", "--json")
    assert json.loads(resumed.stdout) == trained
    assert "nothing to resume" in resumed.stderr
    assert (command.folder / "runs/article-0/model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "fashoin-mnist"), "unknown dataset 'fashoin-mnist'; did you mean 'fashion-mnist'?"),
        (("--set", "momentum=7"), "recipe field momentum got 7.0"),
        (("--device", "tpu"), "no device 'tpu' on this machine"),
        (("--teacher", "runs/nothing"), "--teacher: there is no folder runs/nothing"),
    ],
)
def test_errors_of_data_and_options_come_before_that_of_an_existing_run(train, trained, options, message):
    assert message in train(*options, code=2).stderr


def test_resuming_a_finished_run_with_other_options_is_an_error(command, train, trained, quadrants):
    before = (command.folder / "runs/article-0/model.json").read_bytes()
    resume = ("train", "--resume", "--out", "runs/article-0")
    for same in ((), ("--recipe", "article"), ("--epochs", 2, "--set", "batch_size=32"), ("--data", quadrants),
                 ("--seed", 0), ("--set", "validation_images=5000"), ("--set", "size=0")):  # fmt: skip
        done = command(*resume, *same)
        assert done.stderr == "runs/article-0 is already finished; nothing to resume\n", same
    for other, text in ((("--epochs", 3), "epochs 2.0, not 3.0"), (("--recipe", "fast"), "name article, not fast"),
                        (("--seed", 1), "seed 0, not 1"), (("--set", "momentum=0.5"), "momentum 0.9, not 0.5"),
                        (("--set", "validation_images=0"), "validation_images 40, not 0"),
                        (("--data", "mnist"), f"data {quadrants}, not mnist")):  # fmt: skip
        stderr = command(*resume, *other, code=2).stderr
        assert f"runs/article-0 has a finished run with {text}" in stderr
        assert "give another --out, or the same options" in stderr
    assert (command.folder / "runs/article-0/model.json").read_bytes() == before


def test_resume_without_a_checkpoint_starts_a_training(command, train):
    done = train("--epochs", 0.1, "--resume", "--out", "deep/run", "--json")
    assert json.loads(done.stdout)["resumed_from_step"] is None
    assert (command.folder / "deep/run/model.json").exists()


def test_train_prints_a_table(train):
    done = train("--epochs", 1, "--seed", 7)
    for text in ("runs/article-7", "45,944 parameters", "300 images", "train_seconds", "no images held out"):
        assert text in done.stdout
    assert "300 images of" in done.stdout
    assert ", 1 epoch (300 images seen)" in done.stdout
    assert "gingham evaluate runs/article-7 --split test  (each use of test is recorded)\n" in done.stdout
    assert "epoch 1/1" in done.stderr


def test_a_folder_that_cannot_be_written_is_an_error_before_training(command, train):
    (command.folder / "runs").write_text("a file in the way")
    assert "cannot write" in train("--epochs", 0.1, code=2).stderr


def test_a_training_that_fails_leaves_no_new_folder(command, quadrants):
    options = ("train", "--recipe", "article", "--data", quadrants, "--out")
    diverging, no_split = ("--set", "learning_rate=9999"), ("--set", "patience=2", "--set", "validation_images=0")
    for failing in (diverging, no_split, (*diverging, "--resume")):
        assert command.call(*options, "new/run", *failing).code == 2
        assert not list(command.folder.iterdir()), failing
    (command.folder / "mine").mkdir()
    assert command.call(*options, "mine", *diverging).code == 2
    assert (command.folder / "mine").exists()


def test_a_locked_folder_is_an_error_before_training(command, train):
    (command.folder / "busy").mkdir()
    with locked_by_another(command.folder / "busy"):
        stderr = train("--out", "busy", "--epochs", 0.1, code=2).stderr
    assert "another gingham is writing to busy" in stderr
    train("--out", "busy", "--epochs", 0.1)


def test_a_run_that_another_process_finishes_during_loading_is_not_overwritten(command, train, trained, monkeypatch):
    load_data = gingham.load_data

    def load_while_another_finishes(*arguments, **options):
        splits = load_data(*arguments, **options)
        shutil.copytree(command.folder / "runs/article-0", command.folder / "shared")
        return splits

    monkeypatch.setattr(gingham, "load_data", load_while_another_finishes)
    stderr = train("--out", "shared", "--epochs", 0.1, code=2).stderr
    assert "shared already contains a finished run; give another folder" in stderr
    assert not (command.folder / "shared/checkpoint").exists()


def test_changes_of_the_system_clock_do_not_affect_measured_times(train, monkeypatch):
    jumps = itertools.cycle([3e8, -9e8, 5e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    metrics = json.loads(train("--epochs", 0.1, "--json").stdout)
    assert 0 < metrics["train_seconds"] < metrics["wall_seconds"] < 3600


def test_a_full_stderr_does_not_stop_a_training(command, quadrants):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        line = [
            sys.executable,
            "-m",
            "gingham",
            "train",
            "--recipe",
            "article",
            "--data",
            quadrants,
            "--epochs",
            "0.2",
            "--json",
        ]
        done = subprocess.run(line, cwd=command.folder, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["epochs"] == 0.2


def test_a_run_saved_from_python_can_be_printed(command, small_run, run_json):
    run, _ = small_run
    gingham.save(run, command.folder / "runs/article-0")
    assert run_json("train", "--recipe", "article", "--resume")["wall_seconds"] is None
    assert "train_seconds, - wall_seconds" in command("train", "--recipe", "article", "--resume").stdout


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_says_how_to_resume(command, quadrants):
    options = ["--epochs", "500", "--set", "checkpoint_seconds=0", "--out", "run"]
    line = [sys.executable, "-m", "gingham", "train", "--recipe", "article", "--data", str(quadrants), *options]

    def restore_ctrl_c():  # background jobs of a shell, such as in CI, start with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"cwd": command.folder, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, **pipes, preexec_fn=restore_ctrl_c)  # noqa: PLW1509
    deadline = time.monotonic() + 60
    while not list(command.folder.glob("run/checkpoint/step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; continue with the same command and --resume" in stderr
    assert "Traceback" not in stderr


def test_track_writes_tensorboard_events(command, train):
    train("--epochs", 1, "--track", "tensorboard")
    assert any((command.folder / "runs/article-0/tensorboard").glob("events*"))
    assert "Invalid value for '--track'" in train("--track", "x", "--out", "y", code=2).stderr


@pytest.mark.parametrize(("name", "command_name"), [("seed", "train"), ("epochs", "train"), ("epochs", "trials")])
def test_two_values_for_a_field_of_the_recipe_are_an_error(command, name, command_name):
    """One of them would be ignored."""
    stderr = command(command_name, f"--{name}", 1, "--set", f"{name}=2", code=2).stderr
    assert stderr == f"gingham: {name} got two values, by --{name} and by --set; give one of them\n"
    assert not list(command.folder.iterdir())


@pytest.mark.parametrize(("counts", "warns"), [((60, 60, 20), False), ((60, 60, 8), True)])
def test_imbalanced_classes_are_named_with_the_setting_that_helps(command, tmp_path, counts, warns):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 28, 28)).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    line = ("train", "--data", tmp_path / "few.npz", "--recipe", "article", "--epochs", 0.1)
    line += ("--set", "validation_images=0", "--set", "network=tiny")
    lines = [text for text in command(*line, "--out", "plain").stderr.splitlines() if "imbalanced" in text]
    assert len(lines) == warns
    if warns:
        assert "training images of 0, " in lines[0]
        assert " of 2; " in lines[0]
        assert "--set class_balance=1" in lines[0]
        assert "imbalanced" not in command(*line, "--set", "class_balance=0.5", "--out", "balanced").stderr
