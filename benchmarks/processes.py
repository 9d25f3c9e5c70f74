"""Does it pay to share the cores of one machine among processes, and does the input keep up?

    python benchmarks/processes.py

Trains each recipe for a few epochs in one process of one thread, in one of two, and in two of one with torchrun, in turn; and measures which share
of a step's time goes to getting its pictures: taken from the split, moved, mirrored. Writes benchmarks/results/processes-<hardware>-<date>.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

import gingham
import records
from gingham.data.augment import augment
from gingham.device import choose_device, choose_precision, describe_environment, retain_freed_memory
from gingham.distributed import DistributedContext
from gingham.models.registry import build_classifier
from gingham.training.batches import Batch
from gingham.training.optimizer import build_optimizer
from gingham.training.step import train_step

RECIPES = {"fast": 3, "fast-94": 1}  # and their epochs
PREPARE_MODES = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}
ROUNDS, STEPS = 3, 60


def train(recipe: str, processes: int, threads: int) -> dict[str, Any]:
    """Return the metrics of a training as `gingham train --json` prints them."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        line = [
            sys.executable,
            *torchrun,
            "-m",
            "gingham",
            "train",
            "--recipe",
            recipe,
            "--epochs",
            str(RECIPES[recipe]),
            "--json",
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run([*line, "--out", f"{folder}/run"], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def input_share(name: str, context: DistributedContext) -> float:
    """Return the share of a step's time that goes to getting its pictures, in one of some processes, with one thread."""
    torch.set_num_threads(1)
    recipe, data = gingham.RECIPES[name], gingham.load_data("fashion-mnist")
    device = choose_device("cpu")
    model = build_classifier(recipe.network, data.classes, (1, 28, 28)).train()
    optimizer = build_optimizer(model, recipe.replace(learning_rate=0.01))
    precision = choose_precision(recipe.precision, device)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    part, getting, whole = context.shard(recipe.batch_size), [], []
    with retain_freed_memory():
        for step in range(10 + STEPS):
            batch = order[step * recipe.batch_size :][: recipe.batch_size][part]
            began = time.perf_counter()
            images = augment(data.train.images[batch], batch, recipe, 0, step, part, recipe.batch_size)
            got = time.perf_counter()
            train_step(model, optimizer, recipe, precision, None, Batch(images, data.train.labels[batch]))
            getting.append(got - began)
            whole.append(time.perf_counter() - began)
    return statistics.median(getting[10:]) / statistics.median(whole[10:])


def main() -> None:
    commit = records.clean_commit()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {(recipe, way): [] for recipe in RECIPES for way in PREPARE_MODES}
    for turn in range(ROUNDS):
        print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr)
        for (recipe, way), results in found.items():
            results.append(train(recipe, *PREPARE_MODES[way]))
    rows = []
    for (recipe, way), results in found.items():
        seconds = [result["train_seconds"] for result in results]
        rate = statistics.median(result["images_per_second_per_process"] for result in results)
        rows.append(
            f"| `{recipe}` | {way} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} | {rate:,.0f} | "
            f"{statistics.median(result['validation_accuracy'] for result in results):.2%} |"
        )
    environment = describe_environment(choose_device("cpu"))
    shares = [
        f"| `{recipe}` | {input_share(recipe, DistributedContext(0, 1)):.1%} | {input_share(recipe, DistributedContext(0, 2)):.1%} |"
        for recipe in RECIPES
    ]
    text = f"""# Processes that share one machine

Command: `python benchmarks/processes.py`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; precision {choose_precision("auto", choose_device("cpu"))}.
{", ".join(f"`{recipe}` for {epochs} epoch{'s' * (epochs > 1)}" for recipe, epochs in RECIPES.items())}; {ROUNDS} rounds, all rows in turn, seed 0.

| recipe | how | train_seconds, median | range | pictures a second in each process, median | validation accuracy |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

The share of a step's time, with one thread, that goes to getting its pictures (median of {STEPS} steps after 10):

| recipe | in one process | in each of two |
| --- | ---: | ---: |
{chr(10).join(shares)}
"""
    print(records.write_result("processes", environment, text))
    print(text)


if __name__ == "__main__":
    main()
