"""Compare one process with two that share the cores of a machine, and measure the cost of the input.

    python benchmarks/processes.py

Trains each recipe for a few epochs in one process with one thread, in one with two, and in two with one thread each
(torchrun), in turn; and measures the share of a step's time for its input: indexing the split, shifting and flipping.
Writes benchmarks/results/processes-<hardware>-<date>.md.
"""

import argparse
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
from gingham.training.batches import Batch, shard_of
from gingham.training.loss import CrossEntropyLoss
from gingham.training.optimizer import build_optimizer
from gingham.training.step import EagerStep

RECIPES = {"fast": 3, "fast-94": 1}  # and their epochs
SETUPS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}
ROUNDS, STEPS = 3, 60


def train(recipe: str, processes: int, threads: int) -> dict[str, Any]:
    """Train and return the metrics that `gingham train --json` prints."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
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
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.run(
            [*command, "--out", f"{folder}/run"], env=env, capture_output=True, text=True, check=True
        )
    metrics: dict[str, Any] = json.loads(process.stdout)
    return metrics


def input_share(name: str, context: DistributedContext) -> float:
    """Return the share of a step's time for its input, in one of several processes, with one thread."""
    torch.set_num_threads(1)
    recipe, data = gingham.RECIPES[name], gingham.load_data("fashion-mnist")
    device = choose_device("cpu")
    model = build_classifier(recipe.network, data.classes, (1, 28, 28)).train()
    optimizer = build_optimizer(model, recipe.replace(learning_rate=0.01))
    precision = choose_precision(recipe.precision, device)
    train_step = EagerStep(model, optimizer, CrossEntropyLoss(recipe.label_smoothing), precision, recipe.hard_share < 1)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    shard, input_times, step_times = shard_of(recipe.batch_size, context.rank, context.size), [], []
    retain_freed_memory()
    for step in range(10 + STEPS):
        batch = order[step * recipe.batch_size :][: recipe.batch_size][shard]
        started = time.perf_counter()
        images = augment(data.train.images[batch], batch, recipe, 0, step, shard, recipe.batch_size)
        input_ready = time.perf_counter()
        train_step(Batch(images, data.train.labels[batch]))
        input_times.append(input_ready - started)
        step_times.append(time.perf_counter() - started)
    return statistics.median(input_times[10:]) / statistics.median(step_times[10:])


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    commit = records.clean_commit()
    results: dict[tuple[str, str], list[dict[str, Any]]] = {
        (recipe, setup): [] for recipe in RECIPES for setup in SETUPS
    }
    for turn in range(ROUNDS):
        print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr)
        for (recipe, setup), values in results.items():
            values.append(train(recipe, *SETUPS[setup]))
    rows = []
    for (recipe, setup), values in results.items():
        seconds = [result["train_seconds"] for result in values]
        rate = statistics.median(result["images_per_second_per_process"] for result in values)
        rows.append(
            f"| `{recipe}` | {setup} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} | "
            f"{rate:,.0f} | {statistics.median(result['validation_accuracy'] for result in values):.2%} |"
        )
    environment = describe_environment(choose_device("cpu"))
    shares = [
        f"| `{recipe}` | {input_share(recipe, DistributedContext(0, 1)):.1%} | "
        f"{input_share(recipe, DistributedContext(0, 2)):.1%} |"
        for recipe in RECIPES
    ]
    text = f"""# Processes that share a machine

Command: `python benchmarks/processes.py`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; precision {choose_precision("auto", choose_device("cpu"))}.
{", ".join(f"`{recipe}` for {epochs} epoch{'s' * (epochs > 1)}" for recipe, epochs in RECIPES.items())}; {ROUNDS} rounds, all rows in turn, seed 0.

| recipe | setup | train_seconds, median | range | images per second in each process, median | validation accuracy |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}

The share of a step's time that its input takes, with one thread (median of {STEPS} steps after 10):

| recipe | in one process | in each of two |
| --- | ---: | ---: |
{chr(10).join(shares)}
"""
    print(records.write_result("processes", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
