"""Measure accuracy and time with few images per class: from scratch, with frozen features, and fine-tuned.

    python benchmarks/few_images.py DATA --weights model.safetensors
    python benchmarks/few_images.py DATA --counts 20 100 --seeds 3 --methods frozen

DATA is as for `gingham train`, with a split for testing. Each seed draws other images. The runs that are done are kept in
runs/few-images.json, so that the command can be interrupted and repeated. Writes
benchmarks/results/few-images-<hardware>-<date>.md.
"""

import argparse
import dataclasses
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.evaluation.metrics import mean_interval
from gingham.io import read_json, write_json
from gingham.presets import RECIPES
from gingham.training.auto import SCRATCH_SIDE

COUNTS, SEEDS = (20, 50, 100, 300), 5
SIZES = {"fast": SCRATCH_SIDE, "frozen": RECIPES["frozen"].size, "finetune": RECIPES["finetune"].size}  # pixels
TEST_IMAGES = 2000
STATE = Path("runs/few-images.json")


def choose(split: gingham.Split, count: int, seed: int) -> gingham.Split:
    """Return `count` random images of each class of a split, or all images of smaller classes."""
    random = np.random.default_rng(seed)
    labels = split.labels.numpy()
    rows = [random.permutation(np.flatnonzero(labels == k))[:count] for k in range(len(split.classes))]
    indices = torch.from_numpy(np.sort(np.concatenate(rows)))
    return dataclasses.replace(split, images=split.images[indices], labels=split.labels[indices], files=(), block=1)


def measure(
    method: str, data: gingham.DataSplits, count: int, seed: int, weights: Path | None, epochs: float | None
) -> dict[str, Any]:
    """Train with `count` images per class; return the accuracy on test images and the seconds of training."""
    train = choose(data.train, count, seed)
    test = choose(data.test, TEST_IMAGES // len(data.classes), 0)
    recipe = RECIPES[method].replace(seed=seed, size=SIZES[method], validation_images=0)
    if epochs is not None and method == "finetune":
        recipe = recipe.replace(epochs=epochs)
    started = time.perf_counter()
    options = gingham.FitOptions(weights=weights if recipe.pretrained else None)
    run = gingham.fit(recipe.for_small_dataset(len(train)), train, progress=False, options=options)
    seconds = time.perf_counter() - started
    return {"accuracy": gingham.evaluate(run, test).accuracy, "seconds": seconds, "test_images": len(test)}


def table(results: dict[str, dict[str, Any]], methods: list[str], counts: list[int]) -> list[str]:
    lines = ["| images per class | " + " | ".join(f"`{method}` | seconds" for method in methods) + " |"]
    lines.append("| ---: |" + " ---: |" * 2 * len(methods))
    for count in counts:
        cells = []
        for method in methods:
            rows = [row for key, row in results.items() if key.startswith(f"{method} {count} ")]
            accuracies = [row["accuracy"] for row in rows]
            spread = "±" + format((mean_interval(accuracies)[1] - statistics.fmean(accuracies)) * 100, ".1f")
            cells += [f"{statistics.fmean(accuracies):.1%} {spread if len(rows) > 1 else ''}".strip()]
            cells += [f"{statistics.median(row['seconds'] for row in rows):.0f}"]
        lines.append(f"| {count} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--methods", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--epochs", type=float, help="of finetune, instead of the recipe's")
    options = parser.parse_args()
    commit = records.clean_commit()
    retain_freed_memory()
    state = read_json(STATE) if STATE.exists() else {}
    results = state.setdefault(Path(options.data).name, {})
    for method in options.methods:
        data = gingham.load_data(options.data, validation=0, size=SIZES[method])
        for count in options.counts:
            for seed in range(options.seeds):
                if (key := f"{method} {count} {seed}") not in results:
                    results[key] = measure(method, data, count, seed, options.weights, options.epochs)
                    results[key]["commit"] = commit[:12]
                    write_json(STATE, state)
                print(key, results[key], file=sys.stderr)
    environment = describe_environment(choose_device("auto"))
    tested = next(iter(results.values()))["test_images"]
    commits = ", ".join(sorted({row["commit"] for row in results.values()}))
    text = f"""# Accuracy with few images per class

Command: `{shlex.join(["python", "benchmarks/few_images.py", *sys.argv[1:]])}`, commit {commits}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}.
Data: {Path(options.data).name}, {len(data.classes)} classes; {options.seeds} seeds, each with other images; {tested:,} test images.
Mean accuracy and the 95 % interval (Student's t) of the mean over seeds; median seconds of `fit`, with features computed anew.

{chr(10).join(table(results, options.methods, options.counts))}
"""
    print(records.write_result("few-images", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
