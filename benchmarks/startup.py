"""Measure the time of a command that is not training: from start to exit, without `train_seconds`.

    python benchmarks/startup.py
    python benchmarks/startup.py --recipe fast --rounds 5

Runs `import torch`, `import torch._dynamo` (the compiler, which commands avoid), `gingham train` and `gingham predict`
in processes of their own, alternating, with Fashion-MNIST already in the cache. Writes
benchmarks/results/startup-<hardware>-<date>.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image

import gingham
import records
from gingham.device import describe_environment

GINGHAM = [sys.executable, "-m", "gingham"]


def timed(command: list[str]) -> tuple[float, str]:
    """Return the seconds that a command takes and what it prints to stdout."""
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def measure(recipe: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each command in each round; of trainings, without `train_seconds`."""
    seconds = defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(gingham.load_data().test.images[0, 0].numpy()).save(image)
        for number in range(rounds):
            for module in ("torch", "torch._dynamo"):
                seconds[f"`import {module}`"].append(timed([sys.executable, "-c", f"import {module}"])[0])
            out = ["--out", f"{folder}/run-{number}", "--json"]
            total, output = timed([*GINGHAM, "train", "--recipe", recipe, *out])
            seconds[f"`gingham train --recipe {recipe}`, without training"].append(
                total - json.loads(output)["train_seconds"]
            )
            seconds["`gingham predict`, one image"].append(timed([*GINGHAM, "predict", str(image)])[0])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="fast-85")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    commit = records.clean_commit()
    seconds = measure(arguments.recipe, arguments.rounds)
    environment = describe_environment(torch.device("cpu"))
    unit = statistics.median(seconds["`import torch`"])
    rows = [
        f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} "
        f"| {statistics.median(values) / unit:.2f} |"
        for name, values in seconds.items()
    ]
    lines = [
        "# From start to exit",
        "",
        f"Command: `python benchmarks/startup.py --recipe {arguments.recipe} --rounds {arguments.rounds}`.",
        f"Commit {commit[:12]}. Hardware: {environment['hardware']}; torch {environment['torch']}.",
        "",
        "| process | median s | range | divided by `import torch` |",
        "| --- | ---: | ---: | ---: |",
        *rows,
    ]
    text = "\n".join([*lines, ""])
    print(text)
    print("written:", records.write_result("startup", environment, text))


if __name__ == "__main__":
    records.run(main)
