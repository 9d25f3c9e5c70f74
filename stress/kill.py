"""Kill trainings with SIGKILL, at any moment or while they write a checkpoint, and resume them until they finish.

Each kill is a case. A training is killed and resumed until it finishes, then the next one starts. Each must end with
the same bytes of `model.safetensors` and `history.jsonl` as an undisturbed training, and its history must have each
step once; otherwise all its kills count as lost. One check also corrupts some of the checkpoints, as a failing disk
would.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from helpers import make_dataset
from stress.outcomes import Check, Outcome

SEED = 7
# Covers all state: an order that depends on losses, BatchNorm, momentum and augmentation.
SETTINGS = ("--recipe", "fast", "--epochs", "60", "--set", "network=tiny", "--set", "batch_size=16")
SETTINGS += ("--set", "validation_images=40", "--set", "shift_pixels=1", "--set", "patience=40")
COMPARED_FILES = ("model.safetensors", "history.jsonl")


def start(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """Start `gingham train` in a folder, with the default handling of Ctrl-C and its output in out and err there."""
    command = [*launcher, sys.executable, "-m", "gingham"] if not launcher else [*launcher, "-m", "gingham"]
    with (folder / "out").open("w") as out, (folder / "err").open("a") as err:
        return subprocess.Popen(
            [*command, "train", *map(str, arguments)],
            cwd=folder,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )


def end(process: "subprocess.Popen[str]", signal_number: int = signal.SIGKILL) -> int:
    """Send a signal to a process group and return the exit code of its leader."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal_number)
    return process.wait(timeout=120)


def differences(run: Path, reference: Path) -> list[str]:
    """Return how a run differs from an undisturbed one."""
    issues = [
        f"{name} differs" for name in COMPARED_FILES if (run / name).read_bytes() != (reference / name).read_bytes()
    ]
    steps = [
        entry["step"]
        for line in (run / "history.jsonl").read_text().splitlines()
        if "loss" in (entry := json.loads(line))
    ]
    if steps != list(range(1, len(steps) + 1)):
        issues.append("the history does not have each step once")
    if (run / "checkpoint").exists():
        issues.append("its checkpoint is still there")
    return issues


def at_any_moment(run: Path, startup_seconds: float, total_seconds: float, rng: random.Random) -> None:
    """Wait for a random time, from shortly before the training starts to its likely end."""
    time.sleep(rng.uniform(0.8 * startup_seconds, total_seconds))


def while_writing(run: Path, startup_seconds: float, total_seconds: float, rng: random.Random) -> None:
    """Wait until a training saves checkpoints, for a random time, and until one is being written."""
    deadline = time.monotonic() + 4 * total_seconds

    def wait_until_written() -> None:
        while (
            time.monotonic() < deadline
            and not list(run.glob("checkpoint/.step-*"))
            and not (run / "model.json").exists()
        ):
            time.sleep(0.0002)

    wait_until_written()
    time.sleep(rng.uniform(0, total_seconds / 10))
    wait_until_written()
    time.sleep(rng.choice([0, 0.0005, 0.002]))


def corrupt_last_checkpoint(run: Path, rng: random.Random) -> bool:
    """Corrupt the last checkpoint if there is an earlier one; return whether it was corrupted."""
    manifests = sorted(run.glob("checkpoint/step-*.json"))
    if len(manifests) < 2:
        return False
    path = manifests[-1] if rng.random() < 0.3 else manifests[-1].with_suffix(".safetensors")
    data = bytearray(path.read_bytes())
    offset = rng.randrange(len(data))
    if rng.random() < 0.5:
        del data[offset:]
    else:
        data[offset] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return True


def kill_repeatedly(
    kills: int,
    wait_for_moment: Callable[[Path, float, float, random.Random], None],
    interval: float,
    *,
    corrupt: bool = False,
) -> Outcome:
    """Kill trainings `kills` times, each after `wait_for_moment`; checkpoints are due every `interval` seconds."""
    rng, outcome, corrupted = random.Random(SEED), Outcome(), 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_dataset(folder / "data")
        arguments = ("--data", data, *SETTINGS, "--set", f"checkpoint_seconds={interval}")
        started = time.monotonic()
        reference = start(folder, *arguments, "--out", "reference")
        while reference.poll() is None and not (folder / "reference").exists():
            time.sleep(0.01)
        startup_seconds = time.monotonic() - started
        if reference.wait(timeout=120):
            return Outcome(1, [f"the undisturbed training failed: {(folder / 'err').read_text()[-300:]}"])
        total_seconds, trainings, resumes = time.monotonic() - started, 0, 0
        while outcome.tried < kills:
            run, run_kills = folder / f"run-{trainings}", 0
            trainings += 1
            while True:
                process = start(folder, *arguments, "--out", run, "--resume")
                if outcome.tried + run_kills < kills:
                    wait_for_moment(run, startup_seconds, total_seconds, rng)
                if outcome.tried + run_kills >= kills or process.poll() is not None or (run / "model.json").exists():
                    code = process.wait(timeout=120)  # it ended before the kill, or no kills are left
                    break
                end(process)
                run_kills += 1
                resumes += bool(list(run.glob("checkpoint/step-*.json")))
                corrupted += corrupt and corrupt_last_checkpoint(run, rng)
            problems = (
                [f"it ended with {code}: {(folder / 'err').read_text()[-300:]}"]
                if code
                else differences(run, folder / "reference")
            )
            outcome.tried += run_kills
            if problems:
                outcome.lost += [
                    f"training {trainings} (seed {SEED}), killed {run_kills} times: {', '.join(problems)}"
                ] * max(1, run_kills)
        outcome.figures = (
            f"{trainings} trainings to their end, {resumes} of the kills after a checkpoint"
            + f", {corrupted} corrupted" * corrupt
        )
    return outcome


CHECKS = [
    Check(
        "SIGKILL at any moment",
        lambda kills: kill_repeatedly(kills, at_any_moment, 0.05),
        short=3,
        long=20,
        unit="kills",
    ),
    Check(
        "SIGKILL while a checkpoint is written",
        lambda kills: kill_repeatedly(kills, while_writing, 0),
        short=3,
        long=20,
        unit="kills",
    ),
    Check(
        "SIGKILL, then the last checkpoint corrupted",
        lambda kills: kill_repeatedly(kills, while_writing, 0, corrupt=True),
        short=3,
        long=15,
        unit="kills",
    ),
]
