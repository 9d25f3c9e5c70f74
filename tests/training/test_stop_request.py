"""Ctrl-C and SIGTERM take effect between steps, after a checkpoint was saved."""

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
    """Restore the default handler, because background jobs of a shell start with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signal_is_recorded_and_raised_later(number, ending):
    with deferred_signals() as stop_request:
        assert not stop_request
        os.kill(os.getpid(), number)
        assert stop_request
        with pytest.raises(ending):
            stop_request.stop()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_second_signal_ends_at_once_unless_repeats_are_ignored():
    with deferred_signals() as stop_request:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_request
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with deferred_signals(ignore_repeats=True) as stop_request:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop_request


def test_signals_with_another_handler_are_not_changed():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signals() as stop_request:
        os.kill(os.getpid(), signal.SIGINT)
        assert not stop_request
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
    recipe = gingham.RECIPES["article"].replace(network="tiny", epochs=3, batch_size=32, checkpoint_seconds=1e9)
    settings = {"folder": tmp_path / "run", "progress": False}

    def interrupt(model, epoch):
        if epoch == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(ending):
        gingham.fit(recipe, data.train, data.validation, options=gingham.FitOptions(on_epoch=interrupt), **settings)
    assert load_checkpoint(tmp_path / "run").metadata["step"] == 19  # the signal came after the 18th step
    resumed = gingham.fit(recipe, data.train, data.validation, resume=True, **settings)
    whole = gingham.fit(recipe, data.train, data.validation, progress=False)
    assert resumed.metrics["resumed_from_step"] == 19
    assert all(tensor.equal(resumed.model.state_dict()[name]) for name, tensor in whole.model.state_dict().items())

    record = Trainer.record

    def interrupt_after_a_step(*arguments):
        os.kill(os.getpid(), number)
        record(*arguments)

    monkeypatch.setattr("gingham.training.trainer.Trainer.record", interrupt_after_a_step)
    done = command.call("train", "--data", quadrants, "--recipe", "article", "--out", "run")
    assert done.code == code
    assert "interrupted; continue with the same command and --resume" in done.stderr
    assert load_checkpoint(command.folder / "run").metadata["step"] == 1


def test_the_suggested_command_resumes_a_training_with_a_changed_recipe(quadrants, command, monkeypatch):
    def interrupt_after_a_step(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        record(*arguments)

    record = Trainer.record
    options = ("--recipe", "article", "--epochs", 2, "--set", "batch_size=50", "--set", "network=tiny")
    options += ("--data", quadrants, "--out", "changed")
    monkeypatch.setattr("gingham.training.trainer.Trainer.record", interrupt_after_a_step)
    command("train", *options, code=130)
    monkeypatch.undo()
    message = command("evaluate", "changed", code=2).stderr
    suggested = ["train", *message.strip().partition(" gingham train ")[2].split()]
    assert "--epochs 2" in message
    assert "resuming from step" in command(*suggested).stderr
    other = command("train", *options[:-1], "other", code=0)
    assert "nothing to resume" not in other.stderr
