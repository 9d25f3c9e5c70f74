"""Measure how much longer a training takes when other work uses the same cores.

    python benchmarks/contention.py
    OMP_NUM_THREADS=2 python benchmarks/contention.py --rounds 1       # without adapting the number of threads: minutes

Trains a recipe alone, beside a process that keeps one core busy, and twice at the same time, alternating. The
processes may use no more than two cores, whatever the machine has. Writes
benchmarks/results/contention-<hardware>-<date>.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict

import records

BUSY = [sys.executable, "-c", "while True: pass"]


def start(recipe: str, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gingham", "train", "--recipe", recipe, "--out", out, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train_seconds(process: subprocess.Popen[str]) -> float:
    """Return the `train_seconds` of a training process when it has ended."""
    output, errors = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args, stderr=errors)
    return float(json.loads(output)["train_seconds"])


def measure(recipe: str, rounds: int) -> dict[str, list[float]]:
    seconds = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            seconds["alone"].append(train_seconds(start(recipe, f"{folder}/alone-{number}")))
            with subprocess.Popen(BUSY) as busy:
                try:
                    seconds["beside a busy core"].append(train_seconds(start(recipe, f"{folder}/beside-{number}")))
                finally:
                    busy.kill()
            both = [start(recipe, f"{folder}/two-{number}-{k}") for k in range(2)]
            seconds["two at once, each"] += [train_seconds(process) for process in both]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="fast-90")
    parser.add_argument("--rounds", type=records.positive, default=3)
    arguments = parser.parse_args()
    commit = records.clean_commit()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # inherited by the processes
    seconds = measure(arguments.recipe, arguments.rounds)
    command = f"python benchmarks/contention.py --recipe {arguments.recipe} --rounds {arguments.rounds}"
    records.write_times(
        "contention", "Training beside other work: train_seconds", command, commit, seconds, unit="alone"
    )


if __name__ == "__main__":
    records.run(main)
