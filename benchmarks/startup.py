"""Measure the time of a command that is not training: from start to the result and to exit, without `train_seconds`.

    python benchmarks/startup.py
    python benchmarks/startup.py --recipe fast --rounds 5

Runs `import torch`, `import torch._dynamo` (the compiler, which commands avoid), `gingham train` and `gingham predict`
in processes of their own, alternating, with Fashion-MNIST already in the cache. Writes
benchmarks/results/startup-<hardware>-<date>.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from PIL import Image

import gingham
import records

GINGHAM = [sys.executable, "-m", "gingham"]


def timed(command: list[str]) -> tuple[float, float, str]:
    """Return the seconds until a command prints its first line to stdout and until it ends, and that line."""
    with tempfile.TemporaryFile("w+") as errors:  # a pipe that nobody reads would fill up
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            printed = time.perf_counter() - start
            process.communicate()
            total = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=errors.read())
    return printed, total, line


def measure(recipe: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command in each round; of trainings, without `train_seconds`."""
    seconds = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(gingham.load_data().test.images[0, 0].numpy()).save(image)
        for number in range(rounds):
            for module in ("torch", "torch._dynamo"):
                seconds[f"`import {module}`"].append(timed([sys.executable, "-c", f"import {module}"])[1])
            train = f"`gingham train --recipe {recipe}`, without training"
            out = ["--out", f"{folder}/run-{number}", "--json"]
            printed, total, line = timed([*GINGHAM, "train", "--recipe", recipe, *out])
            train_seconds = json.loads(line)["train_seconds"]
            seconds[f"{train}, until the result is printed"].append(printed - train_seconds)
            seconds[f"{train}, until it has ended"].append(total - train_seconds)
            seconds["`gingham predict`, one image"].append(timed([*GINGHAM, "predict", str(image)])[1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="fast-85")
    parser.add_argument("--rounds", type=records.positive, default=7)
    arguments = parser.parse_args()
    commit = records.clean_commit()
    seconds = measure(arguments.recipe, arguments.rounds)
    command = f"python benchmarks/startup.py --recipe {arguments.recipe} --rounds {arguments.rounds}"
    records.write_times("startup", "From start to exit", command, commit, seconds, unit="`import torch`")


if __name__ == "__main__":
    records.run(main)
