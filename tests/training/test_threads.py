"""The number of threads during training. Time is that of a clock that the tests set."""

import os

import pytest
import torch

import gingham
from gingham.device import limit_threads, usable_cores
from gingham.training.threads import NUM_STEPS, AdaptiveStep


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    """Four threads, chosen by nobody."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """A clock that steps move forward, by a number of seconds for each number of threads."""

    def __init__(self, seconds):
        self.now, self.seconds, self.changes = 0.0, seconds, []

    def step(self, batch=None):
        self.now += self.seconds[torch.get_num_threads()]
        return batch

    def adaptive(self):
        return AdaptiveStep(self.step, self.step, self.changes.append, clock=lambda: self.now)


QUIET = {1: 1.0, 2: 0.5, 3: 0.4, 4: 0.3}
BUSY = {1: 1.1, 2: 0.6, 3: 0.5, 4: 9.0}  # another process has one of four cores


def test_on_a_quiet_machine_all_threads_are_used():
    machine = Machine(QUIET)
    step = machine.adaptive()
    assert [step(number) for number in range(50)] == list(range(50))
    assert (torch.get_num_threads(), machine.changes) == (4, [])


def test_a_core_that_is_busy_from_the_start_is_left_out():
    machine = Machine(BUSY)
    step = machine.adaptive()
    assert (torch.get_num_threads(), machine.changes) == (3, [3])
    for number in range(50):
        step(number)
    assert machine.changes == [3]


def test_a_core_that_becomes_busy_is_left_out_and_stays_so():
    machine = Machine(QUIET)
    step = machine.adaptive()
    machine.seconds = BUSY
    for number in range(NUM_STEPS):
        step(number)
    assert (torch.get_num_threads(), machine.changes) == (3, [3])
    machine.seconds = QUIET
    for number in range(50):
        step(number)
    assert (torch.get_num_threads(), machine.changes) == (3, [3])


def test_a_single_slow_step_changes_nothing():
    machine = Machine(QUIET)
    step = machine.adaptive()
    for number in range(50):
        machine.seconds = BUSY if number % NUM_STEPS == 2 else QUIET
        step(number)
    assert machine.changes == []


def test_short_steps_change_nothing_however_much_longer_they_take():
    machine = Machine({threads: seconds / 1000 for threads, seconds in QUIET.items()})
    step = machine.adaptive()
    machine.seconds = {threads: seconds / 1000 for threads, seconds in BUSY.items()}
    for number in range(50):
        step(number)
    assert machine.changes == []


def test_one_thread_remains_however_slow_the_steps_are():
    machine = Machine(QUIET)
    step = machine.adaptive()
    machine.seconds = dict.fromkeys(QUIET, 100.0)
    for number in range(50):
        step(number)
    assert (torch.get_num_threads(), machine.changes) == (1, [3, 2, 1])


def test_threads_that_the_user_chose_are_kept(monkeypatch, quadrants):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr("gingham.training.trainer.AdaptiveStep", None)  # creating one would raise an error
    torch.set_num_threads(1000)
    limit_threads()
    assert torch.get_num_threads() == 1000
    torch.set_num_threads(4)
    data = gingham.load_data(str(quadrants), validation=0)
    recipe = gingham.RECIPES["article"].replace(epochs=0.5, validation_images=0)
    gingham.fit(recipe, data.train, options=gingham.FitOptions(adapt_threads=True), progress=False)


def test_a_change_is_said_and_saved_and_the_process_keeps_its_threads(monkeypatch, quadrants, tmp_path, capsys):
    def slow(step, warm_up, on_change):
        torch.set_num_threads(1)
        on_change(1)
        return step

    monkeypatch.setattr("gingham.training.trainer.AdaptiveStep", slow)
    data = gingham.load_data(str(quadrants), validation=0)
    recipe = gingham.RECIPES["article"].replace(epochs=1, validation_images=0)
    adapt = gingham.FitOptions(device="cpu", adapt_threads=True)
    run = gingham.fit(recipe, data.train, options=adapt)
    assert "other work keeps the cores busy: training on 1 thread from here" in capsys.readouterr().err
    assert run.environment["hardware"].endswith("1 thread")
    assert torch.get_num_threads() == 4


def test_a_resumed_training_starts_with_the_threads_of_its_checkpoint(quadrants, tmp_path, capsys):
    if usable_cores() < 2:
        pytest.skip("needs two cores")
    data = gingham.load_data(str(quadrants), validation=0)
    recipe = gingham.RECIPES["article"].replace(epochs=2, validation_images=0, checkpoint_seconds=0)
    adapt = gingham.FitOptions(device="cpu", adapt_threads=True)

    def stop(model, epoch):
        raise KeyboardInterrupt

    torch.set_num_threads(1)
    with pytest.raises(KeyboardInterrupt):
        gingham.fit(recipe, data.train, folder=tmp_path, options=gingham.FitOptions(device="cpu", on_epoch=stop))
    torch.set_num_threads(2)
    run = gingham.fit(recipe, data.train, folder=tmp_path, resume=True, options=adapt)
    assert "bit-identical" not in capsys.readouterr().err
    assert run.environment["hardware"].endswith("1 thread")
    assert run.metrics["resumed_from_step"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_no_more_threads_than_cores_that_may_be_used():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert usable_cores() == 1
        limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.parametrize(
    ("content", "cores"), [("150000 100000", 2), ("max 100000", 64), ("50000 100000", 1), ("?", 64)]
)
def test_the_quota_of_a_container_limits_the_cores(monkeypatch, tmp_path, content, cores):
    (tmp_path / "cpu.max").write_text(content)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr("gingham.device.CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == cores
