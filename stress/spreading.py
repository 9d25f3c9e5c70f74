"""Trainings in many processes, started by torchrun as a user does, on one host and on two.

The two hosts are two network namespaces of this machine that only a virtual cable joins; where they cannot be made (they need root on
Linux) that check is not tried, and says so.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

import gingham
from gingham.data.registry import find_dataset_dir
from gingham.evaluation.metrics import mean_interval
from helpers import make_dataset
from stress.killing import COMPARED, SEED, end, start
from stress.outcomes import Check, Outcome

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
SINGLE_PROCESS = (*TORCHRUN, "--standalone", "--max-restarts=3")
PLAIN = (
    "--recipe",
    "article",
    "--epochs",
    "5",
    "--set",
    "batch_size=50",
    "--set",
    "validation_images=100",
)  # 50 steps, no BatchNorm, float32
HARD = (
    "--recipe",
    "fast",
    "--epochs",
    "40",
    "--set",
    "network=tiny",
    "--set",
    "batch_size=16",
    "--set",
    "validation_images=100",
)
HOSTS = ("gingham-a", "gingham-b")


def finished(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> str | None:
    """Train to the end; return what went wrong, or None."""
    process = start(folder, *arguments, launcher=launcher)
    try:
        code = process.wait(timeout=300)
    except subprocess.TimeoutExpired:
        end(process)
        code = -1
    return f"it ended with {code}: {(folder / 'err').read_text()[-400:]}" if code else None


def metadata(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "model.json").read_text())["metrics"]
    return found


def as_one_process(runs: int) -> Outcome:
    """The same global batch in 2, 3, ... processes: weights within 1e-4 of one process's after 50 steps, each validation picture counted once."""
    outcome, worst = Outcome(), 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = make_dataset(folder / "data", train=600)
        line = ("--data", data, *PLAIN)
        if wrong := finished(folder, *line, "--out", "one"):
            return Outcome(1, [wrong])
        one = load_file(folder / "one/model.safetensors")
        report = gingham.evaluate(gingham.load(folder / "one"), gingham.load_data(str(data), 100).validation)
        for number in range(2, 2 + runs):
            outcome.tried += 1
            run = folder / f"many-{number}"
            if wrong := finished(folder, *line, "--out", run, launcher=(*SINGLE_PROCESS, f"--nproc-per-node={number}")):
                outcome.lost.append(f"{number} processes: {wrong}")
                continue
            many = load_file(run / "model.safetensors")
            apart = max(float((many[name] - one[name]).abs().max()) for name in one if name.startswith("network."))
            worst = max(worst, apart)
            if apart > 1e-4:
                outcome.lost.append(f"{number} processes end {apart:.1e} from one")
            if abs(metadata(run)["validation_accuracy"] - report.accuracy) > 1e-9:
                outcome.lost.append(
                    f"{number} processes counted {metadata(run)['validation_accuracy']:.3f} right, evaluate {report.accuracy:.3f}"
                )
    outcome.figures = f"weights at most {worst:.0e} apart after 50 steps"
    return outcome


def workers(folder: Path) -> list[int]:
    """The processes that train in a folder, without those that started them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            trains = b"train" in words and b"gingham" in words and b"torch.distributed.run" not in words
            if trains and (entry / "cwd").resolve() == folder:
                found.append(int(entry.name))
    return sorted(found)


def when_kept(run: Path, process: "subprocess.Popen[str]") -> bool:
    """Wait until a training has kept a checkpoint; False if it ended before."""
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoint/step-*.json")):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_restart(kills: int) -> Outcome:
    """A worker killed with SIGKILL: torchrun starts all anew, and the run ends with the bytes of one that nobody touched."""
    outcome, chance = Outcome(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        line = ("--data", make_dataset(folder / "data", train=600), *HARD, "--set", "checkpoint_seconds=0.2")
        two = (*SINGLE_PROCESS, "--nproc-per-node=2")
        if wrong := finished(folder, *line, "--out", "whole", launcher=two):
            return Outcome(1, [wrong])
        for number in range(kills):
            outcome.tried += 1
            run = folder / f"run-{number}"
            process = start(folder, *line, "--out", run, launcher=two)
            if when_kept(run, process):
                time.sleep(chance.uniform(0, 1))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    signal.pidfd_send_signal(pid_descriptor(chance.choice(workers(folder))), signal.SIGKILL)
            try:
                code = process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                code = end(process)
            if code or any((run / name).read_bytes() != (folder / "whole" / name).read_bytes() for name in COMPARED):
                outcome.lost.append(f"kill {number} (seed {SEED}): code {code}, {(folder / 'err').read_text()[-300:]}")
        said = (folder / "err").read_text()
        outcome.figures = f"{len(re.findall('going on from step', said))} resumed from a checkpoint"
    return outcome


def pid_descriptor(number: int) -> int:
    """A handle of that very process: its number may be another's by the time the signal is sent."""
    return os.pidfd_open(number)


def asked_to_end(times: int) -> Outcome:
    """SIGTERM and Ctrl-C, which torchrun passes on: a checkpoint is kept, and `--resume` ends with the same bytes."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        line = ("--data", make_dataset(folder / "data", train=600), *HARD, "--set", "checkpoint_seconds=0.3")
        for launcher, name in (((), "alone"), ((*SINGLE_PROCESS, "--nproc-per-node=2"), "two")):
            if wrong := finished(folder, *line, "--out", f"whole-{name}", launcher=launcher):
                return Outcome(1, [wrong])
            for number, sent in enumerate((signal.SIGTERM, signal.SIGINT)[:times]):
                outcome.tried += 1
                run = folder / f"{name}-{number}"
                process = start(folder, *line, "--out", run, launcher=launcher)
                when_kept(run, process)
                code = end(process, sent)
                expected = {(): {signal.SIGTERM: 143, signal.SIGINT: 130}}.get(launcher, {})
                if not list(run.glob("checkpoint/step-*.json")) or expected.get(sent, code) != code or code == 0:
                    outcome.lost.append(
                        f"{name}, {sent.name}: code {code}, kept {[path.name for path in run.glob('checkpoint/*')]}"
                    )
                elif wrong := finished(folder, *line, "--out", run, "--resume", launcher=launcher):
                    outcome.lost.append(f"{name}, {sent.name}: {wrong}")
                elif any((run / file).read_bytes() != (folder / f"whole-{name}" / file).read_bytes() for file in COMPARED):
                    outcome.lost.append(f"{name}, {sent.name}: resumed to other bytes")
    return outcome


def with_batchnorm(seeds: int) -> Outcome:
    """Two processes, each with BatchNorm's statistics of its own half: accuracy within the interval that the seeds of one process span."""
    if find_dataset_dir("fashion-mnist") is None:
        return Outcome(figures="not tried: Fashion-MNIST is not on this machine")
    accuracies: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for seed in range(seeds):
            for number, found in accuracies.items():
                launcher = (*SINGLE_PROCESS, f"--nproc-per-node={number}") if number > 1 else ()
                run = folder / f"{number}-{seed}"
                if wrong := finished(folder, "--recipe", "fast-85", "--seed", seed, "--out", run, launcher=launcher):
                    return Outcome(1, [wrong])
                found.append(metadata(run)["validation_accuracy"])
    one, two = (statistics.mean(found) for found in accuracies.values())
    # Where another seed's accuracy lies, at 95 %: the interval of the mean is narrower by the root of n + 1.
    low, high = mean_interval(accuracies[1])
    half = (high - low) / 2 * (seeds + 1) ** 0.5
    lost = [f"{accuracy:.2%} is not within {one:.2%} ± {half:.2%}" for accuracy in accuracies[2] if abs(accuracy - one) > half]
    allowed = -(-seeds // 10)  # of 95 % some lie outside
    figures = f"{two:.2%} in two processes, {one:.2%} ± {half:.2%} in one"
    return Outcome(seeds, lost if len(lost) > allowed else [], figures)


@contextlib.contextmanager
def hosts() -> Iterator[bool]:
    """Two network namespaces with a cable between them; False where they cannot be made."""

    def ip(*words: str) -> bool:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0

    if shutil.which("ip") is None:
        yield False
        return
    try:
        made = all(ip("netns", "add", host) for host in HOSTS)
        made = made and ip(
            "link", "add", "cable-a", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable-b", "netns", HOSTS[1]
        )
        for host, cable, address in zip(HOSTS, ("cable-a", "cable-b"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            made = made and ip("-n", host, "addr", "add", address, "dev", cable)
            made = made and ip("-n", host, "link", "set", cable, "up") and ip("-n", host, "link", "set", "lo", "up")
        yield made
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def on_two_hosts(kills: int) -> Outcome:
    """Two hosts with nothing in common but the cable and the data, each with a folder of its own; a worker of the second is killed in some."""
    outcome, chance = Outcome(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as place, hosts() as made:
        if not made:
            return Outcome(figures="not tried: network namespaces cannot be made here")
        folder = Path(place).resolve()
        data = make_dataset(folder / "data", train=600)
        line = ("--data", data, *HARD, "--set", "checkpoint_seconds=0.2")
        if wrong := finished(folder, *line, "--out", "whole", launcher=(*SINGLE_PROCESS, "--nproc-per-node=2")):
            return Outcome(1, [wrong])
        for number in range(1 + kills):
            outcome.tried += 1
            places, processes = [], []
            for host, cable in zip(HOSTS, ("cable-a", "cable-b"), strict=True):
                places.append(folder / f"{host}-{number}")
                places[-1].mkdir()
                torchrun = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d")
                torchrun += ("--rdzv-endpoint=10.77.0.1:29400", f"--rdzv-id={number}", f"--local-addr=10.77.0.{len(places)}")
                torchrun += (f"--rdzv-conf=is_host={int(host == HOSTS[0])}",)  # it goes by names, and these hosts share one
                within = ("ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={cable}")
                processes.append(start(places[-1], *line, "--out", "run", launcher=(*within, *torchrun)))
            run = places[0] / "run"
            if number and when_kept(run, processes[0]):
                time.sleep(chance.uniform(0, 0.5))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    signal.pidfd_send_signal(pid_descriptor(workers(places[1])[0]), signal.SIGKILL)
            try:
                codes = [process.wait(timeout=180) for process in processes]
            except subprocess.TimeoutExpired:
                codes = [end(process) for process in processes]
            said = " ".join((each / "err").read_text()[-300:] for each in places)
            if any(codes):
                outcome.lost.append(f"run {number}: codes {codes}, {said}")
            elif (places[1] / "run").exists():
                outcome.lost.append(f"run {number}: the second host wrote a run of its own")
            elif any((run / name).read_bytes() != (folder / "whole" / name).read_bytes() for name in COMPARED):
                outcome.lost.append(f"run {number}: other bytes than on one host")
        outcome.figures = "the bytes of two processes on one host" if not outcome.lost else ""
    return outcome


CHECKS = [
    Check("Processes as one: torchrun with 2 and more", as_one_process, short=1, long=3, unit="runs"),
    Check("Processes: a worker killed, restarted by torchrun", is_restart, short=1, long=4, unit="kills"),
    Check("Processes: SIGTERM and Ctrl-C", asked_to_end, short=1, long=2, unit="signals"),
    Check("Processes: BatchNorm against one process", with_batchnorm, short=3, long=6, unit="seeds"),
    Check("Processes on two hosts", on_two_hosts, short=1, long=3, unit="kills"),
]
