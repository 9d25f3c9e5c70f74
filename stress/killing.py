"""Trainings killed with SIGKILL, at any moment and while they write a checkpoint, and gone on with until they end.

A case is a kill. A training is started, killed, resumed, killed again, and so on until it ends, and then the next one is begun; each must end
with the `model.safetensors` of one that nobody touched, byte for byte, and a `history.jsonl` that has each step once and is the same bytes too.
If it does not, all the kills it took count as lost. In between some of the checkpoints are torn by hand, as a dying disk would.
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
# Hard pictures, an order that depends on losses, BatchNorm, momentum, augmentation: all the state there is.
SETTINGS = (
    "--recipe",
    "fast",
    "--set",
    "network=tiny",
    "--set",
    "batch_size=16",
    "--set",
    "validation_images=40",
    "--epochs",
    "60",
)
SETTINGS += ("--set", "shift_pixels=1", "--set", "patience=40")
COMPARED = ("model.safetensors", "history.jsonl")


def start(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """Start `gingham train` in a folder, with Ctrl-C as it is in the foreground; what it says goes to the files out and err there."""
    line = [*launcher, sys.executable, "-m", "gingham"] if not launcher else [*launcher, "-m", "gingham"]
    with (folder / "out").open("w") as out, (folder / "err").open("a") as err:
        return subprocess.Popen(
            [*line, "train", *map(str, arguments)],
            cwd=folder,
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )


def end(process: "subprocess.Popen[str]", number: int = signal.SIGKILL) -> int:
    """Send a signal to a process and all that it started, and return how it ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    return process.wait(timeout=120)


def differences(run: Path, whole: Path) -> list[str]:
    """In what a run differs from one that was not disturbed, each in a few words."""
    found = [f"{name} differs" for name in COMPARED if (run / name).read_bytes() != (whole / name).read_bytes()]
    steps = [
        entry["step"] for line in (run / "history.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))
    ]
    if steps != list(range(1, len(steps) + 1)):
        found.append("the history does not have each step once")
    if (run / "checkpoint").exists():
        found.append("its checkpoint is still there")
    return found


def at_any_moment(run: Path, begins: float, seconds: float, chance: random.Random) -> None:
    """Wait for a moment from shortly before a training begins, as its process imports and reads for that long, to its likely end."""
    time.sleep(chance.uniform(0.8 * begins, seconds))


def while_writing(run: Path, begins: float, seconds: float, chance: random.Random) -> None:
    """Wait until a training has begun to keep checkpoints, for a while more, and until one is just being written."""
    deadline = time.monotonic() + 4 * seconds

    def until_written() -> None:
        while time.monotonic() < deadline and not list(run.glob("checkpoint/.step-*")) and not (run / "model.json").exists():
            time.sleep(0.0002)

    until_written()
    time.sleep(chance.uniform(0, seconds / 10))
    until_written()
    time.sleep(chance.choice([0, 0.0005, 0.002]))


def tear(run: Path, chance: random.Random) -> bool:
    """Damage the last checkpoint, where there is one before it; return whether there was."""
    manifests = sorted(run.glob("checkpoint/step-*.json"))
    if len(manifests) < 2:
        return False
    torn = manifests[-1] if chance.random() < 0.3 else manifests[-1].with_suffix(".safetensors")
    data = bytearray(torn.read_bytes())
    place = chance.randrange(len(data))
    if chance.random() < 0.5:
        del data[place:]
    else:
        data[place] ^= 1 << chance.randrange(8)
    torn.write_bytes(data)
    return True


def killed(
    kills: int, moment: Callable[[Path, float, float, random.Random], None], pause: float, *, torn: bool = False
) -> Outcome:
    """Kill trainings `kills` times, each at a `moment`; checkpoints are due every `pause` seconds."""
    chance, outcome, tears = random.Random(SEED), Outcome(), 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = make_dataset(folder / "data")
        line = ("--data", data, *SETTINGS, "--set", f"checkpoint_seconds={pause}")
        began = time.monotonic()
        whole = start(folder, *line, "--out", "whole")
        while whole.poll() is None and not (folder / "whole").exists():
            time.sleep(0.01)
        begins = time.monotonic() - began
        if whole.wait(timeout=120):
            return Outcome(1, [f"the undisturbed training failed: {(folder / 'err').read_text()[-300:]}"])
        seconds, trainings, resumes = time.monotonic() - began, 0, 0
        while outcome.tried < kills:
            run, took = folder / f"run-{trainings}", 0
            trainings += 1
            while True:
                process = start(folder, *line, "--out", run, "--resume")
                if outcome.tried + took < kills:
                    moment(run, begins, seconds, chance)
                if outcome.tried + took >= kills or process.poll() is not None or (run / "model.json").exists():
                    code = process.wait(timeout=120)  # it ended before the kill, or is to end now
                    break
                end(process)
                took += 1
                resumes += bool(list(run.glob("checkpoint/step-*.json")))
                tears += torn and tear(run, chance)
            wrong = (
                [f"it ended with {code}: {(folder / 'err').read_text()[-300:]}"] if code else differences(run, folder / "whole")
            )
            outcome.tried += took
            if wrong:
                outcome.lost += [f"training {trainings} (seed {SEED}), killed {took} times: {', '.join(wrong)}"] * max(1, took)
        outcome.figures = (
            f"{trainings} trainings to their end, {resumes} of the kills after a checkpoint" + f", {tears} torn" * torn
        )
    return outcome


CHECKS = [
    Check("SIGKILL at any moment", lambda kills: killed(kills, at_any_moment, 0.05), short=3, long=20, unit="kills"),
    Check(
        "SIGKILL while a checkpoint is written", lambda kills: killed(kills, while_writing, 0), short=3, long=20, unit="kills"
    ),
    Check(
        "SIGKILL, then the last checkpoint torn",
        lambda kills: killed(kills, while_writing, 0, torn=True),
        short=3,
        long=15,
        unit="kills",
    ),
]
