"""Checkpoints and patience: a resumed run ends with the same bytes as an uninterrupted one."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import GinghamError, RunError
from gingham.runs.checkpoint import load_checkpoint, save_checkpoint
from gingham.training.trainer import Trainer
from helpers import fit, locked_by_another, make_dataset
from own_networks import Norms

ARTICLE = gingham.RECIPES["article"].replace(network="tiny")  # which trains in a tenth of the time
FAST = gingham.RECIPES["fast"]
EVERYTHING = FAST.replace(network="tiny", flip="random", shift_pixels=2, ema_decay=0.9)  # all that has state or draws
MIXED = EVERYTHING.replace(hard_share=1.0, cutmix=0.5, class_balance=0.5)  # CutMix cannot be combined with hard images


def weights(run):
    return {name: tensor for name, tensor in run.model.state_dict().items() if name.startswith("network.")}


# --- resume


@pytest.fixture
def short_epochs(monkeypatch):
    """Save a checkpoint also at the end of epochs of milliseconds."""
    monkeypatch.setattr("gingham.training.trainer.MIN_CHECKPOINT_AGE", 0.0)


class Stop(Exception):  # noqa: N818  # not an error
    pass


@pytest.mark.parametrize("checkpoint_seconds", [0, 1e9])
@pytest.mark.parametrize("base", [ARTICLE, EVERYTHING, MIXED], ids=["article", "everything", "mixed"])
@pytest.mark.usefixtures("short_epochs")
def test_resumed_training_ends_with_the_same_bytes(quadrants, tmp_path, base, checkpoint_seconds):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = base.replace(epochs=3, batch_size=32, checkpoint_seconds=checkpoint_seconds)
    whole = gingham.save(fit(recipe, data), tmp_path / "whole")

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, data, folder=tmp_path / "halves", on_epoch=stop)
    run = fit(recipe, data, folder=tmp_path / "halves", resume=True)
    # It stopped in the last step of the second epoch, before its checkpoint. Epochs of hard images have 3 steps, not 9.
    second = 9 if base.hard_share == 1 else 3
    assert run.metrics["resumed_from_step"] == (9 + second - 1 if checkpoint_seconds == 0 else 9)
    halves = gingham.save(run, tmp_path / "halves")
    assert (halves / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (halves / "history.jsonl").read_bytes() == (whole / "history.jsonl").read_bytes()
    assert not (halves / "checkpoint").exists()


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_bytes(command, quadrants, tmp_path):
    settings = ["--data", quadrants, "--epochs", 12, "--set", "batch_size=16", "--set", "checkpoint_seconds=0"]
    settings += ["--set", "validation_images=40", "--set", "network=tiny"]
    out = tmp_path / "killed"
    line = [sys.executable, "-m", "gingham", "train", *map(str, settings), "--out", str(out)]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoint/step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoint/step-*.json"))
    assert not (out / "model.json").exists()
    refused = command("train", *settings, "--out", out, code=2)
    assert "contains an interrupted run; continue with --resume" in refused.stderr
    resumed = command("train", *settings, "--out", out, "--resume", "--json")
    assert json.loads(resumed.stdout)["resumed_from_step"] > 0
    whole = command("train", *settings, "--out", tmp_path / "whole", "--json")
    assert json.loads(whole.stdout)["resumed_from_step"] is None
    for file in ("model.safetensors", "history.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.fixture(scope="module")
def shared_interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    data = gingham.load_data(str(make_dataset(folder / "quadrants")), validation=40)

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    recipe = ARTICLE.replace(epochs=3, batch_size=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gingham.training.trainer.MIN_CHECKPOINT_AGE", 0.0)
        with pytest.raises(Stop):
            fit(recipe, data, folder=folder / "run", on_epoch=stop)
    return recipe, data, folder / "run"


@pytest.fixture
def interrupted(shared_interrupted, tmp_path):
    """A recipe and data whose training was stopped in the second epoch of three, with its checkpoint in tmp_path."""
    recipe, data, folder = shared_interrupted
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return recipe, data


def test_another_training_in_a_folder_is_kept(interrupted, tmp_path):
    recipe, data = interrupted
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()}
    with pytest.raises(RunError, match="contains an unfinished run; resume it"):
        fit(recipe.replace(seed=1), data, folder=tmp_path)
    with locked_by_another(tmp_path), pytest.raises(GinghamError, match="another gingham is writing to"):
        fit(recipe, data, folder=tmp_path, resume=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoint").iterdir()} == before
    run = fit(recipe, data, folder=tmp_path, resume=True)
    gingham.save(run, tmp_path)
    for resume in (False, True):
        with pytest.raises(RunError, match=r"contains a finished run; give another folder, or use gingham\.load"):
            fit(recipe, data, folder=tmp_path, resume=resume)


def test_the_suggested_command_resumes_a_training_of_another_size(command, quadrants, monkeypatch):
    settings = ("--data", quadrants, "--recipe", "article", "--epochs", 2, "--set", "size=28", "--set", "batch_size=32")
    settings += ("--set", "validation_images=40", "--set", "network=tiny")

    def stop(self):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "raise_if_interrupted", stop)  # after the last step and its checkpoint
        with pytest.raises(Stop):
            command.call("train", *settings, "--out", "run")
    message = command("evaluate", "run", code=2).stderr
    suggested = message.partition(" gingham train ")[2]
    assert "--set size=28" in suggested
    command("train", *shlex.split(suggested))


def test_checkpoint_of_other_settings_is_an_error(interrupted, tmp_path):
    recipe, data = interrupted
    with pytest.raises(RunError, match=r"made with learning_rate 0.01, not 0.1; resume with the same settings"):
        fit(recipe.replace(learning_rate=0.1), data, folder=tmp_path, resume=True)
    with pytest.raises(RunError, match="train_images 260, not 300"):
        gingham.fit(
            recipe, gingham.load_data(data.name, validation=0).train, folder=tmp_path, resume=True, progress=False
        )


INCONSISTENT = {
    "recipe is a number": lambda tensors, metadata: metadata.update(recipe=3),
    "no step": lambda tensors, metadata: metadata.update(step=None),
    "step too large": lambda tensors, metadata: metadata.update(step=10**9),
    "incomplete epochs": lambda tensors, metadata: metadata.update(epochs=[{"epoch": 1}]),
    "text as a loss": lambda tensors, metadata: metadata["epochs"][0].update(train_loss="low"),
    "epoch ends too late": lambda tensors, metadata: metadata["epochs"][0].update(step=10**6),
    "images that do not exist": lambda tensors, metadata: tensors["sampler.order"].fill_(300),
    "a short order": lambda tensors, metadata: tensors.update({"sampler.order": tensors["sampler.order"][:9]}),
    "losses of one step": lambda tensors, metadata: tensors.update({"history.losses": tensors["history.losses"][:1]}),
    "momentum of wrong shape": lambda tensors, metadata: tensors.update(
        {"optimizer.0.momentum_buffer": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("name", INCONSISTENT)
def test_inconsistent_checkpoint_is_an_error(interrupted, tmp_path, name):
    recipe, data = interrupted
    kept = load_checkpoint(tmp_path)
    INCONSISTENT[name](kept.tensors, kept.metadata)
    save_checkpoint(tmp_path, 99, kept.tensors, kept.metadata)
    with pytest.raises(RunError, match=r"does not fit this run \(|was made with"):
        fit(recipe, data, folder=tmp_path, resume=True)


def test_patience_stops_and_keeps_the_best_weights(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=40, batch_size=16, learning_rate=0.05, patience=3)
    run = fit(recipe, data)
    evaluations = [entry for entry in run.history if "epoch" in entry]
    accuracies = [entry["validation_accuracy"] for entry in evaluations]
    best = accuracies.index(max(accuracies))
    assert len(evaluations) == best + 4 < 40
    assert (
        run.metrics["steps"]
        == evaluations[-1]["step"]
        == len([entry for entry in run.history if "learning_rate" in entry])
    )
    assert run.metrics["chosen_epoch"] == evaluations[best]["epoch"]
    assert run.metrics["validation_accuracy"] == accuracies[best]
    assert gingham.evaluate(run, data.validation).accuracy == accuracies[best]


@pytest.mark.slow
def test_patience_resumes_to_the_same_weights(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=40, batch_size=16, learning_rate=0.05, patience=3, checkpoint_seconds=0)
    whole = fit(recipe, data)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(model, epoch):
        if epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe, data, folder=tmp_path, on_epoch=stop)
    resumed = fit(recipe, data, folder=tmp_path, resume=True)
    assert resumed.metrics["resumed_from_step"]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    again = fit(
        recipe, data, folder=tmp_path, resume=True
    )  # killed after the last checkpoint, before the run was saved
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))
    assert again.metrics["steps"] == whole.metrics["steps"]


class Drawing(Norms):
    """Draws random numbers in every forward pass, also in evaluation mode."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x, 0.2, training=True))


def test_evaluations_do_not_change_the_training(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=2, batch_size=26, precision="float32")
    evaluated = fit(recipe, data, network=Drawing)
    rarely = fit(recipe.replace(validate_every=2), data, network=Drawing)
    never = gingham.fit(recipe, data.train, progress=False, options=gingham.FitOptions(network=Drawing))
    for run in (rarely, never):
        for name, tensor in evaluated.model.network.state_dict().items():
            assert tensor.equal(run.model.network.state_dict()[name]), name
