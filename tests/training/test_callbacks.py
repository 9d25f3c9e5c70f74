"""The progress bar and the TensorBoard logger."""

import sys

import pytest
import torch

import gingham
from gingham import GinghamError
from gingham.training.trainer import Trainer
from helpers import fit

ARTICLE = gingham.RECIPES["article"].replace(network="tiny")  # which trains in a tenth of the time


def test_progress_is_plain_lines_without_a_terminal(quadrants, capsys):
    data = gingham.load_data(str(quadrants), validation=40)
    gingham.fit(ARTICLE.replace(epochs=2, batch_size=32), data.train, data.validation)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert all("loss" in line and "accuracy" in line and "validation" in line for line in lines)


def test_progress_is_a_bar_on_a_terminal(quadrants, monkeypatch, capsys):
    data = gingham.load_data(str(quadrants), validation=0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gingham.fit(ARTICLE.replace(epochs=1, batch_size=32), data.train)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "loss " in shown
    assert "accuracy " in shown


def test_tensorboard_gets_the_whole_history(quadrants, tmp_path):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=2, batch_size=32), data, folder=tmp_path, track="tensorboard")
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    steps = [entry for entry in run.history if "learning_rate" in entry]
    for name, key in (("train/loss", "loss"), ("train/accuracy", "accuracy"), ("learning_rate", "learning_rate")):
        assert [event.step for event in events.Scalars(name)] == [entry["step"] for entry in steps]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([entry[key] for entry in steps])
    evaluations = [entry["validation_accuracy"] for entry in run.history if "epoch" in entry]
    assert [event.value for event in events.Scalars("validation/accuracy")] == pytest.approx(evaluations)
    with pytest.raises(GinghamError, match="track is 'wandb'; allowed: tensorboard"):
        fit(ARTICLE.replace(epochs=0.1), data, folder=tmp_path, track="wandb")
    with pytest.raises(GinghamError, match="track is tensorboard, but there is no folder to write to; give folder="):
        fit(ARTICLE.replace(epochs=0.1), data, track="tensorboard")


def test_tensorboard_has_every_step_after_a_resume_within_an_epoch(quadrants, tmp_path, monkeypatch):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=2, batch_size=32, checkpoint_seconds=0)
    record = Trainer.record

    def interrupt_in_the_second_epoch(trainer, batch, output):
        if trainer.step == 12:
            raise KeyboardInterrupt
        record(trainer, batch, output)

    monkeypatch.setattr(Trainer, "record", interrupt_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, data, tmp_path, track="tensorboard")
    monkeypatch.undo()
    run = fit(recipe, data, tmp_path, resume=True, track="tensorboard")
    assert run.metrics["resumed_from_step"] == 12
    events = loading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 19))


def test_training_mode_is_restored_after_on_epoch(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(network="small", epochs=2, batch_size=32)  # has BatchNorm
    usual = fit(recipe, data, on_epoch=lambda model, epoch: None)
    evaluated = fit(recipe, data, on_epoch=lambda model, epoch: model.eval())
    for name, tensor in usual.model.state_dict().items():
        assert torch.equal(tensor, evaluated.model.state_dict()[name]), name
