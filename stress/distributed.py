"""Train in several processes started by torchrun, on one host and on two.

The two hosts are network namespaces connected by a virtual cable. They need root on Linux; where they cannot be
created, that check is reported as not tried.
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
from stress.kill import COMPARED_FILES, SEED, end, start
from stress.outcomes import Check, Outcome

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
STANDALONE = (*TORCHRUN, "--standalone", "--max-restarts=3")
# 50 steps, no BatchNorm, float32
EXACT_SETTINGS = ("--recipe", "article", "--epochs", "5", "--set", "batch_size=50", "--set", "validation_images=100")
STATEFUL_SETTINGS = ("--recipe", "fast", "--epochs", "40", "--set", "network=tiny", "--set", "batch_size=16")
STATEFUL_SETTINGS += ("--set", "validation_images=100")
HOSTS = ("gingham-a", "gingham-b")


def train_to_end(folder: Path, *arguments: object, launcher: tuple[str, ...] = ()) -> str | None:
    """Train to the end; return what went wrong, or None."""
    process = start(folder, *arguments, launcher=launcher)
    try:
        code = process.wait(timeout=300)
    except subprocess.TimeoutExpired:
        end(process)
        code = -1
    return f"it ended with {code}: {(folder / 'err').read_text()[-400:]}" if code else None


def metrics(run: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads((run / "model.json").read_text())["metrics"]
    return values


def as_one_process(runs: int) -> Outcome:
    """Check that 2, 3, ... processes end within 1e-4 of one after 50 steps, and count each validation image once."""
    outcome, worst = Outcome(), 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_dataset(folder / "data", train=600)
        arguments = ("--data", data, *EXACT_SETTINGS)
        if problem := train_to_end(folder, *arguments, "--out", "single"):
            return Outcome(1, [problem])
        single = load_file(folder / "single/model.safetensors")
        result = gingham.evaluate(gingham.load(folder / "single"), gingham.load_data(str(data), 100).validation)
        for number in range(2, 2 + runs):
            outcome.tried += 1
            run = folder / f"multiple-{number}"
            if problem := train_to_end(
                folder, *arguments, "--out", run, launcher=(*STANDALONE, f"--nproc-per-node={number}")
            ):
                outcome.lost.append(f"{number} processes: {problem}")
                continue
            multiple = load_file(run / "model.safetensors")
            difference = max(
                float((multiple[name] - single[name]).abs().max()) for name in single if name.startswith("network.")
            )
            worst = max(worst, difference)
            if difference > 1e-4:
                outcome.lost.append(f"{number} processes end {difference:.1e} from one")
            if abs(metrics(run)["validation_accuracy"] - result.accuracy) > 1e-9:
                outcome.lost.append(
                    f"{number} processes counted {metrics(run)['validation_accuracy']:.3f} right, evaluate "
                    f"{result.accuracy:.3f}"
                )
    outcome.figures = f"weights at most {worst:.0e} apart after 50 steps"
    return outcome


def worker_pids(folder: Path) -> list[int]:
    """Return the ids of the processes that train in a folder, without their launchers."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            trains = b"train" in words and b"gingham" in words and b"torch.distributed.run" not in words
            if trains and (entry / "cwd").resolve() == folder:
                pids.append(int(entry.name))
    return sorted(pids)


def wait_for_checkpoint(run: Path, process: "subprocess.Popen[str]") -> bool:
    """Wait until a training has saved a checkpoint; return False if it ended before."""
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoint/step-*.json")):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def restart_after_kill(kills: int) -> Outcome:
    """Kill a worker with SIGKILL: torchrun restarts all, and the run must end with the bytes of an undisturbed one."""
    outcome, rng = Outcome(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        arguments = (
            "--data",
            make_dataset(folder / "data", train=600),
            *STATEFUL_SETTINGS,
            "--set",
            "checkpoint_seconds=0.2",
        )
        launcher = (*STANDALONE, "--nproc-per-node=2")
        if problem := train_to_end(folder, *arguments, "--out", "reference", launcher=launcher):
            return Outcome(1, [problem])
        for number in range(kills):
            outcome.tried += 1
            run = folder / f"run-{number}"
            process = start(folder, *arguments, "--out", run, launcher=launcher)
            if wait_for_checkpoint(run, process):
                time.sleep(rng.uniform(0, 1))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    signal.pidfd_send_signal(open_pid(rng.choice(worker_pids(folder))), signal.SIGKILL)
            try:
                code = process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                code = end(process)
            if code or any(
                (run / name).read_bytes() != (folder / "reference" / name).read_bytes() for name in COMPARED_FILES
            ):
                outcome.lost.append(f"kill {number} (seed {SEED}): code {code}, {(folder / 'err').read_text()[-300:]}")
        stderr = (folder / "err").read_text()
        outcome.figures = f"{len(re.findall('resuming from step', stderr))} resumed from a checkpoint"
    return outcome


def open_pid(number: int) -> int:
    """Return a file descriptor of a process, since its id may be reused before the signal is sent."""
    return os.pidfd_open(number)


def stop_signals(times: int) -> Outcome:
    """Send SIGTERM and Ctrl-C, which torchrun passes on: a checkpoint is saved, and `--resume` gives the same bytes."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        arguments = (
            "--data",
            make_dataset(folder / "data", train=600),
            *STATEFUL_SETTINGS,
            "--set",
            "checkpoint_seconds=0.3",
        )
        for launcher, name in (((), "alone"), ((*STANDALONE, "--nproc-per-node=2"), "two")):
            if problem := train_to_end(folder, *arguments, "--out", f"reference-{name}", launcher=launcher):
                return Outcome(1, [problem])
            for number, sent_signal in enumerate((signal.SIGTERM, signal.SIGINT)[:times]):
                outcome.tried += 1
                run = folder / f"{name}-{number}"
                process = start(folder, *arguments, "--out", run, launcher=launcher)
                wait_for_checkpoint(run, process)
                code = end(process, sent_signal)
                expected = {(): {signal.SIGTERM: 143, signal.SIGINT: 130}}.get(launcher, {})
                if not list(run.glob("checkpoint/step-*.json")) or expected.get(sent_signal, code) != code or code == 0:
                    outcome.lost.append(
                        f"{name}, {sent_signal.name}: code {code}, kept "
                        f"{[path.name for path in run.glob('checkpoint/*')]}"
                    )
                elif problem := train_to_end(folder, *arguments, "--out", run, "--resume", launcher=launcher):
                    outcome.lost.append(f"{name}, {sent_signal.name}: {problem}")
                elif any(
                    (run / file).read_bytes() != (folder / f"reference-{name}" / file).read_bytes()
                    for file in COMPARED_FILES
                ):
                    outcome.lost.append(f"{name}, {sent_signal.name}: resumed to other bytes")
    return outcome


def with_batchnorm(seeds: int) -> Outcome:
    """Check that two processes, with BatchNorm statistics of half a batch each, reach the accuracy of one."""
    if find_dataset_dir("fashion-mnist") is None:
        return Outcome(figures="not tried: Fashion-MNIST is not on this machine")
    accuracies: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in range(seeds):
            for number, values in accuracies.items():
                launcher = (*STANDALONE, f"--nproc-per-node={number}") if number > 1 else ()
                run = folder / f"{number}-{seed}"
                if problem := train_to_end(
                    folder, "--recipe", "fast-85", "--seed", seed, "--out", run, launcher=launcher
                ):
                    return Outcome(1, [problem])
                values.append(metrics(run)["validation_accuracy"])
    one, two = (statistics.mean(values) for values in accuracies.values())
    # The 95 % prediction interval of another seed: that of the mean times the root of n + 1.
    low, high = mean_interval(accuracies[1])
    half = (high - low) / 2 * (seeds + 1) ** 0.5
    lost = [
        f"{accuracy:.2%} is not within {one:.2%} ± {half:.2%}"
        for accuracy in accuracies[2]
        if abs(accuracy - one) > half
    ]
    allowed = -(-seeds // 10)  # some lie outside a 95 % interval
    figures = f"{two:.2%} in two processes, {one:.2%} ± {half:.2%} in one"
    return Outcome(seeds, lost if len(lost) > allowed else [], figures)


@contextlib.contextmanager
def two_hosts() -> Iterator[bool]:
    """Create two connected network namespaces; yield whether that worked."""

    def ip(*words: str) -> bool:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0

    if shutil.which("ip") is None:
        yield False
        return
    try:
        available = all(ip("netns", "add", host) for host in HOSTS)
        available = available and ip(
            "link", "add", "cable-a", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable-b", "netns", HOSTS[1]
        )
        for host, cable, address in zip(HOSTS, ("cable-a", "cable-b"), ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            available = available and ip("-n", host, "addr", "add", address, "dev", cable)
            available = (
                available and ip("-n", host, "link", "set", cable, "up") and ip("-n", host, "link", "set", "lo", "up")
            )
        yield available
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def on_two_hosts(kills: int) -> Outcome:
    """Train on two hosts that share only the network and the data; in some runs a worker of the second is killed."""
    outcome, rng = Outcome(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as temporary, two_hosts() as available:
        if not available:
            return Outcome(figures="not tried: network namespaces cannot be made here")
        folder = Path(temporary).resolve()
        data = make_dataset(folder / "data", train=600)
        arguments = ("--data", data, *STATEFUL_SETTINGS, "--set", "checkpoint_seconds=0.2")
        if problem := train_to_end(
            folder, *arguments, "--out", "reference", launcher=(*STANDALONE, "--nproc-per-node=2")
        ):
            return Outcome(1, [problem])
        for number in range(1 + kills):
            outcome.tried += 1
            folders, processes = [], []
            for host, cable in zip(HOSTS, ("cable-a", "cable-b"), strict=True):
                folders.append(folder / f"{host}-{number}")
                folders[-1].mkdir()
                torchrun = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d")
                torchrun += (
                    "--rdzv-endpoint=10.77.0.1:29400",
                    f"--rdzv-id={number}",
                    f"--local-addr=10.77.0.{len(folders)}",
                )
                torchrun += (
                    f"--rdzv-conf=is_host={int(host == HOSTS[0])}",
                )  # by default torchrun compares host names, and these share one
                in_namespace = ("ip", "netns", "exec", host, "env", f"GLOO_SOCKET_IFNAME={cable}")
                processes.append(start(folders[-1], *arguments, "--out", "run", launcher=(*in_namespace, *torchrun)))
            run = folders[0] / "run"
            if number and wait_for_checkpoint(run, processes[0]):
                time.sleep(rng.uniform(0, 0.5))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    signal.pidfd_send_signal(open_pid(worker_pids(folders[1])[0]), signal.SIGKILL)
            try:
                codes = [process.wait(timeout=180) for process in processes]
            except subprocess.TimeoutExpired:
                codes = [end(process) for process in processes]
            stderr = " ".join((host_folder / "err").read_text()[-300:] for host_folder in folders)
            if any(codes):
                outcome.lost.append(f"run {number}: codes {codes}, {stderr}")
            elif (folders[1] / "run").exists():
                outcome.lost.append(f"run {number}: the second host wrote a run of its own")
            elif any(
                (run / name).read_bytes() != (folder / "reference" / name).read_bytes() for name in COMPARED_FILES
            ):
                outcome.lost.append(f"run {number}: other bytes than on one host")
        outcome.figures = "the bytes of two processes on one host" if not outcome.lost else ""
    return outcome


CHECKS = [
    Check("Processes: 2 or more with torchrun equal one", as_one_process, short=1, long=3, unit="runs"),
    Check("Processes: a killed worker, restarted by torchrun", restart_after_kill, short=1, long=4, unit="kills"),
    Check("Processes: SIGTERM and Ctrl-C", stop_signals, short=1, long=2, unit="signals"),
    Check("Processes: BatchNorm, compared with one process", with_batchnorm, short=3, long=6, unit="seeds"),
    Check("Processes on two hosts", on_two_hosts, short=1, long=3, unit="kills"),
]
