"""Ctrl-C and SIGTERM between steps, and what they leave behind."""

import os
import signal
import threading

import pytest

import gingham
from gingham.errors import Terminated
from gingham.runs.checkpoint import load_checkpoint
from gingham.training.stop_request import deferred_signals
from gingham.training.trainer import Trainer


@pytest.fixture(autouse=True)
def in_the_foreground():
    """A shell's background jobs start with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signal_is_recorded_and_raised_later(number, ending):
    with deferred_signals() as asked:
        assert not asked
        os.kill(os.getpid(), number)
        assert asked
        with pytest.raises(ending):
            asked.stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_second_signal_ends_at_once_unless_repeats_are_ignored():
    with deferred_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with deferred_signals(ignore_repeats=True) as asked:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert asked


def test_signals_with_another_handler_are_left_alone():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert not asked
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_nothing_is_handled_outside_the_main_thread():
    seen = []

    def work():
        with deferred_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.parametrize(
    ("number", "ending", "code"), [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_interrupted_training_saves_a_checkpoint_first(quadrants, tmp_path, command, monkeypatch, number, ending, code):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=3, batch_size=32, checkpoint_seconds=1e9, validation_images=40)
    asking = {"folder": tmp_path / "run", "progress": False}

    def ask(model, epoch):
        if epoch == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(ending):
        gingham.fit(recipe, data.train, data.validation, options=gingham.FitOptions(on_epoch=ask), **asking)
    assert load_checkpoint(tmp_path / "run").metadata["step"] == 19  # asked after the 18th, heard after the next
    resumed = gingham.fit(recipe, data.train, data.validation, resume=True, **asking)
    whole = gingham.fit(recipe, data.train, data.validation, progress=False)
    assert resumed.metrics["resumed_from_step"] == 19
    assert all(tensor.equal(resumed.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items())

    record = Trainer.record

    def asked_after_a_step(*arguments):
        os.kill(os.getpid(), number)
        record(*arguments)

    monkeypatch.setattr("gingham.training.trainer.Trainer.record", asked_after_a_step)
    done = command.call("train", "--data", quadrants, "--recipe", "article", "--out", "run")
    assert done.code == code
    assert "interrupted; go on with the same command and --resume" in done.stderr
    assert load_checkpoint(command.folder / "run").metadata["step"] == 1
    monkeypatch.undo()

    # What is said of such a run is a command that goes on with it, also where its recipe was changed.
    begun = ("--recipe", "article", "--epochs", 2, "--set", "batch_size=50", "--data", quadrants, "--out", "changed")
    monkeypatch.setattr("gingham.training.trainer.Trainer.record", asked_after_a_step)
    command("train", *begun, code=code)
    monkeypatch.undo()
    said = command("evaluate", "changed", code=2).stderr
    again = said.strip().partition("such as gingham ")[2].split()
    assert "--epochs 2" in said
    assert "going on from step" in command(*again).stderr
    other = command("train", *begun[:-1], "other", code=0)
    assert "nothing to resume" not in other.stderr
