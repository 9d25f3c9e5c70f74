import json
import os
import signal

import pytest

import gingham
from gingham.training.trainer import Trainer


def test_trials_can_be_compared_and_diagnosed(command, run_json, quadrants):
    options = ("--recipe", "article", "--data", quadrants, "--epochs", 2, "--seeds", 2,
               "--set", "network=tiny", "--set", "batch_size=32", "--set", "validation_images=40")  # fmt: skip
    for out, extra in (("a", ()), ("b", ("--set", "learning_rate=1e-9"))):
        done = command("trials", *options, "--out", out, *extra, "--json")
        result = json.loads(done.stdout)
        assert {"accuracies", "mean", "std", "interval"} <= set(result)
        assert len(result["accuracies"]) == 2
        assert "seed 1 (2 of 2)" in done.stderr
    assert "mean and standard deviation over 2 seeds (0 to 1)" in command("trials", *options, "--out", "a").stdout
    assert {"difference", "interval", "p_value", "verdict"} <= set(run_json("compare", "a", "b"))
    assert command("compare", "a/seed-0", "b/seed-0").stdout.count("\n") == 1
    for name in ("a/seed-0", "b/seed-0", quadrants):
        for issue in run_json("diagnose", name):
            assert {"code", "title", "evidence", "fix"} <= set(issue)
    assert "the learning rate is far too low" in command("diagnose", "b/seed-0").stdout
    stdout = command("diagnose", "a/seed-0", "--split", "validation").stdout
    assert "of 40 validation images are duplicates or near duplicates of training images" in stdout
    assert gingham.load(command.folder / "a/seed-0").test_openings == []
    command("diagnose", "a/seed-0", "--split", "test")
    assert len(gingham.load(command.folder / "a/seed-0").test_openings) == 1
    assert "--split is for a run" in command("diagnose", quadrants, "--split", "test", code=2).stderr
    stderr = command("diagnose", quadrants, "--model", "own_networks:Plain", code=2).stderr
    assert stderr == f"gingham: --model is for a run; {quadrants} is not one; leave it out\n"
    stderr = command("compare", "a/seed-0", "b/seed-0", "--model", "own_networks:Plain", code=2).stderr
    assert stderr == "gingham: no run in a/seed-0 or b/seed-0 has the network own_networks:Plain; leave it out\n"
    assert (
        "'train' is not one of 'validation', 'test'" in command("compare", "a", "b", "--split", "train", code=2).stderr
    )
    assert "is a single run and" in command("compare", "a", "b/seed-0", code=2).stderr
    assert "--set got a seed" in command("trials", "--set", "seed=3", code=2).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_trials_say_how_to_continue(command, quadrants, monkeypatch, number, code):
    record = Trainer.record

    def signal_in_seed_one(trainer, *arguments):
        if trainer.recipe.seed == 1:
            os.kill(os.getpid(), number)
        record(trainer, *arguments)

    options = ("--recipe", "article", "--data", quadrants, "--epochs", 1, "--seeds", 2, "--out", "a",
               "--set", "network=tiny", "--set", "validation_images=40")  # fmt: skip
    # The shell's background jobs ignore the one, and a server in this process has handled the other.
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {which: signal.signal(which, handler) for which, handler in defaults.items()}
    monkeypatch.setattr("gingham.training.trainer.Trainer.record", signal_in_seed_one)
    stopped = command.call("trials", *options)
    for which, handler in before.items():
        signal.signal(which, handler)
    assert (stopped.code, stopped.stdout) == (code, "")
    assert stopped.stderr.endswith("\ninterrupted; finished seeds are kept in a; continue with the same command\n")
    monkeypatch.undo()
    assert "seed 0 (1 of 2), already finished" in command("trials", *options).stderr
