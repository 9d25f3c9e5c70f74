"""Train recipes over seeds and report the accuracy and the seconds of each.

    python benchmarks/time_to_accuracy.py fast --seeds 10                  # on the validation split
    python benchmarks/time_to_accuracy.py fast fast-92 --seeds 10 --split test --record
    python benchmarks/time_to_accuracy.py fast-92 fast-92:optimizer=sgd:learning_rate=0.4 --seeds 5 --title optimizer

NAME:FIELD=VALUE:FIELD=VALUE changes fields of a recipe, to measure the effect of each. Each seed is one `gingham train`
in its own process; the recipes take turns, so that slow periods of the machine affect all of them. If a seed takes a
second but its process ten, --seeds-a-process lets several seeds share a process, each with all recipes. Finished seeds
are saved in --work. With --minutes the training that runs then saves its state and stops; the same command continues
it. The test split is used once per run, after all have been trained. Writes
benchmarks/results/<title>-<hardware>-<date>.md and .json, and with --record a folder in records/ for each recipe, with
the predictions of each seed on the test images.
"""

import argparse
import functools
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gingham
import records
from gingham.cli.app import main as gingham_command
from gingham.device import choose_device
from gingham.evaluation.metrics import mean_interval
from gingham.io import read_json, write_json
from gingham.presets import RECIPES
from gingham.recipe import parse_settings
from gingham.runs.predictions import load_predictions

# Target accuracy and seconds of each recipe: on two cores with AMX, and on one H100 for the gpu recipes.
TARGETS = {
    "gpu-94": (0.94, 0.8),
    "gpu-95": (0.95, 3),
    "gpu-96": (0.96, 30),
    "gpu-best": (0.967, None),
    "fast-85": (0.855, 1),
    "fast-90": (0.90, 3),
    "fast-92": (0.92, 8),
    "fast": (0.93, 20),
    "fast-94": (0.94, 60),
    "accurate": (0.95, 600),
}


MIN_SEEDS = {"gpu-best": 5}  # of a record; ten of any other

COLUMNS = (
    "recipe",
    "accuracy: mean ± std",
    "95 % interval of the mean",
    "seeds",
    "epochs",
    "parameters",
    "train_seconds",
    "wall_seconds",
    "not training",
    "images/s",
    "peak memory",
    "TFLOP/s",
    "share of float32, bfloat16 rate",
    "target: accuracy in seconds",
)


@functools.cache
def matmul_tflops(dtype: torch.dtype, device: torch.device) -> float:
    """Return the TFLOP/s of square matrix products, an upper bound for this process."""
    on_gpu = device.type == "cuda"
    rate = 0.0
    for size in (1024, 8192) if on_gpu else (128, 512, 2048):
        a = torch.randn(size, size, device=device).to(dtype)
        if rate and 2 * size**3 / rate > 1e12:  # over a second: the hardware lacks this type, so keep the smaller size
            break
        rates = []
        times = 10 if on_gpu else 1  # queued, as in training on a GPU
        for _ in range(7):
            if on_gpu:
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            for _ in range(times):
                a @ a
            if on_gpu:
                torch.cuda.synchronize(device)
            rates.append(times * 2 * size**3 / (time.perf_counter() - started) / 1e12)
        rate = statistics.median(rates)
    return rate


def train_one(recipe: str, seed: int, folder: Path, started: float, teachers: list[Path]) -> dict[str, Any]:
    """Run `gingham train` in this process and return its results; `started` is when the process began with it."""
    name, *settings = recipe.split(":")
    options = [word for setting in settings for word in ("--set", setting)]
    options += [word for teacher in teachers for word in ("--teacher", str(teacher))]
    spent_path = Path(f"{folder}.wall.json")  # the seconds of processes that were stopped
    spent = read_json(spent_path)["wall_seconds"] if spent_path.exists() else 0.0
    if not spent_path.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the seed was killed, so its seconds are unknown
    try:
        gingham_command(["train", "--recipe", name, "--seed", str(seed), "--out", str(folder), "--resume", *options])
    except SystemExit as stop:
        if stop.code:
            write_json(spent_path, {"wall_seconds": spent + time.time() - started})
            raise
    wall_seconds = spent + time.time() - started
    run = gingham.load(folder)
    device = torch.device(run.metrics["device"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
    network = run.model.network.cpu()
    flops = (
        3 * gingham.summarize(network, run.model.input_shape, recipe).flops
    )  # the backward pass takes twice the forward's
    images = run.metrics["images_seen"]
    achieved = flops * images / run.metrics["train_seconds"] / 1e12
    rates = {name: matmul_tflops(getattr(torch, name), device) for name in ("bfloat16", "float32")}
    return {
        "recipe": recipe,
        "seed": seed,
        "folder": str(folder),
        "train_seconds": run.metrics["train_seconds"],
        "wall_seconds": wall_seconds,
        "precision": run.metrics["precision"],
        "epochs": run.metrics["epochs"],
        "parameters": run.metrics["parameters"],
        "images_per_second": images / run.metrics["train_seconds"],
        "peak_memory_bytes": peak,
        "flops_per_image": flops,
        "tflops": achieved,
        "matrix_tflops": rates,
        "validation_accuracy": run.metrics["validation_accuracy"],
        "environment": run.environment,
    }


def train_all(options: argparse.Namespace, work: Path) -> dict[str, list[dict[str, Any]]]:
    """Train every seed of every recipe that has no result yet, and return all results; exit when the time is over."""
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    separate = options.seeds_a_process == 1
    jobs = [
        (name, seed)
        for seed in range(options.seeds)
        for name in options.recipes
        if not result_path(work, name, seed).exists()
    ]
    share = 1 if separate else options.seeds_a_process * len(options.recipes)
    failed: list[tuple[str, int]] = []
    while jobs:
        batch, jobs = jobs[:share], jobs[share:]
        command = [sys.executable, __file__, "none", "--worker", json.dumps(batch), "--work", str(work.resolve())]
        command += [word for teacher in options.teacher for word in ("--teacher", str(teacher.resolve()))]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as worker:
            try:
                worker.wait(None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.terminate()
                worker.wait()
                sys.exit(
                    f"{options.minutes:g} minutes are over; finished seeds are saved in {work}: run the same command again"
                )
        failed += [job for job in batch if not result_path(work, *job).exists()]
    if failed:
        sys.exit(
            f"no result of {', '.join(f'{name} with seed {seed}' for name, seed in failed)}; the reasons are above"
        )
    return {
        name: [read_json(result_path(work, name, seed)) for seed in range(options.seeds)] for name in options.recipes
    }


def result_path(work: Path, recipe: str, seed: int) -> Path:
    return work / f"{recipe}-{seed}.json"


def train_jobs(jobs: list[tuple[str, int]], work: Path, teachers: list[Path]) -> None:
    """Train jobs one after the other in this process; if one fails, print why and continue."""
    started = STARTED
    for recipe, seed in jobs:
        print(f"{recipe}, seed {seed}", file=sys.stderr, flush=True)
        try:
            outcome = train_one(recipe, seed, work / f"{recipe}-{seed}", started, teachers)
            write_json(result_path(work, recipe, seed), outcome)
            print(
                f"    {outcome['validation_accuracy']:.2%} after {outcome['train_seconds']:.3f} s, "
                f"{outcome['tflops']:.1f} TFLOP/s",
                file=sys.stderr,
                flush=True,
            )
        except SystemExit as stop:
            if stop.code not in (1, 2):  # stopped by a signal
                raise
        except Exception as error:  # noqa: BLE001 - the other jobs must still run
            print(f"    {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        started = time.time()


def evaluate_on_test(outcomes: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Evaluate each run once on the test split, store its accuracy and return its predictions, int64 (N,)."""
    test = gingham.load_data("fashion-mnist").test
    predictions = []
    for outcome in outcomes:
        run = gingham.load(outcome["folder"])
        run.model.to(choose_device("auto"))
        outcome["accuracy"] = gingham.evaluate(run, test).accuracy
        stored = load_predictions(run, test)
        if stored is None:
            sys.exit(f"the predictions of {outcome['folder']} could not be saved")
        predictions.append(stored)
    return predictions


def describe(name: str, outcomes: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """Summarize the seeds of a recipe."""
    accuracies = [outcome["accuracy"] for outcome in outcomes]
    low, high = mean_interval(accuracies)

    def median(key: str) -> float:
        return float(statistics.median(outcome[key] for outcome in outcomes))

    return {
        "recipe": name,
        "split": split,
        "n": len(outcomes),
        "mean": statistics.mean(accuracies),
        "std": statistics.stdev(accuracies),
        "interval": [low, high],
        "accuracies": accuracies,
        "train_seconds": median("train_seconds"),
        "wall_seconds": median("wall_seconds"),
        "images_per_second": median("images_per_second"),
        "peak_memory_bytes": max(outcome["peak_memory_bytes"] for outcome in outcomes),
        "tflops": median("tflops"),
        "share_of_bfloat16": statistics.median(o["tflops"] / o["matrix_tflops"]["bfloat16"] for o in outcomes),
        "share_of_float32": statistics.median(o["tflops"] / o["matrix_tflops"]["float32"] for o in outcomes),
        "precision": outcomes[0]["precision"],
        "epochs": outcomes[0]["epochs"],
        "parameters": outcomes[0]["parameters"],
        "target": TARGETS.get(name),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"| --- {'| ---: ' * (len(COLUMNS) - 1)}|",
    ]
    for row in rows:
        target = "-" if row["target"] is None else f"{row['target'][0]:.1%} in {row['target'][1] or 'any time'}"
        cells = [
            f"`{row['recipe']}`",
            f"{row['mean']:.2%} ± {row['std']:.2%}",
            f"{row['interval'][0]:.2%} to {row['interval'][1]:.2%}",
            str(row["n"]),
            f"{row['epochs']:.3g}",
            f"{row['parameters']:,}",
            f"{row['train_seconds']:.1f}",
            f"{row['wall_seconds']:.1f}",
            f"{row['wall_seconds'] - row['train_seconds']:.1f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
            f"{row['tflops']:.3f}",
            f"{row['share_of_float32']:.0%}, {row['share_of_bfloat16']:.0%}",
            target,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE[:FIELD=VALUE...]")
    parser.add_argument("--title", default="time-to-accuracy", help="the name of the results file")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds, counted from 0 (default: 10)")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument(
        "--record", action="store_true", help="write records/<date>-<recipe>/record.json; needs --split test"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/time-to-accuracy"), help="where finished seeds are saved"
    )
    parser.add_argument(
        "--teacher", type=Path, action="append", default=[], metavar="RUN", help="as in gingham train; repeatable"
    )
    parser.add_argument("--minutes", type=float, help="stop after this many; the same command continues")
    parser.add_argument(
        "--seeds-a-process", type=int, default=1, metavar="N", help="how many seeds share a process (default: 1)"
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        train_jobs([(recipe, seed) for recipe, seed in json.loads(options.worker)], options.work, options.teacher)
        return
    min_seeds = max(MIN_SEEDS.get(name, 10) for name in options.recipes)
    if options.seeds < 2 or (options.record and (options.seeds < min_seeds or options.split != "test")):
        parser.error(f"a spread needs at least 2 seeds, a record {min_seeds} and --split test")
    for spec in options.recipes:
        name, *settings = spec.split(":")
        RECIPES[name].replace(**parse_settings(settings))  # fail on a wrong name now, not after an hour
        if options.record and settings:
            parser.error("a record needs an unchanged recipe")
    commit = records.clean_commit()
    work = options.work / commit[:12]

    outcomes = train_all(options, work)
    environments = [outcome["environment"] for seeds in outcomes.values() for outcome in seeds]
    if any(environment != environments[0] for environment in environments):
        sys.exit(f"the seeds in {work} were trained on different machines or versions; give another --work")
    predictions: dict[str, list[torch.Tensor]] = {}
    for name, seeds in outcomes.items():
        for outcome in seeds:
            outcome["accuracy"] = outcome["validation_accuracy"]
        if options.split == "test":
            predictions[name] = evaluate_on_test(seeds)
    rows = [describe(name, seeds, options.split) for name, seeds in outcomes.items()]

    words = [*options.recipes, "--seeds", options.seeds, "--split", options.split]
    words += [word for teacher in options.teacher for word in ("--teacher", teacher)]
    words += [] if options.seeds_a_process == 1 else ["--seeds-a-process", options.seeds_a_process]
    words += [] if options.title == parser.get_default("title") else ["--title", options.title]
    command = f"python benchmarks/time_to_accuracy.py {' '.join(map(str, words))}"
    if options.record:
        for row, seeds in zip(rows, outcomes.values(), strict=True):
            records.write_record(
                row["recipe"],
                target=row["target"][0] if row["target"] else None,
                accuracies=row["accuracies"],
                train_seconds=[outcome["train_seconds"] for outcome in seeds],
                wall_seconds=[outcome["wall_seconds"] for outcome in seeds],
                environment=environments[0],
                commit=commit,
                command=command + " --record",
                recipe=gingham.RECIPES[row["recipe"]].to_dict(),
                extra={
                    "precision": row["precision"],
                    "seeds_a_process": options.seeds_a_process,
                    "teachers": len(options.teacher),
                },
                predictions=predictions[row["recipe"]],
            )
    rates = [outcome["matrix_tflops"] for seeds in outcomes.values() for outcome in seeds]
    float32, bfloat16 = (statistics.median(rate[name] for rate in rates) for name in ("float32", "bfloat16"))
    images = (
        "10,000 test images, used once per run after all runs were trained"
        if options.split == "test"
        else ("5,000 validation images")
    )
    timing_note = f", or from the end of the previous command, since {options.seeds_a_process} seeds share a process"
    timing_note = timing_note if options.seeds_a_process > 1 else ""
    text = f"""# Time to accuracy

Command: `{command}`, commit {commit[:12]}.
Hardware: {environments[0]["hardware"]}; torch {environments[0]["torch"]}; precision {", ".join(sorted({row["precision"] for row in rows}))}.
Accuracy on the {images}. Every run has a fixed length; seconds are medians over the seeds, and the recipes take turns.
Square matrix products in the same processes, median: {float32:.3f} TFLOP/s in float32, {bfloat16:.3f} in bfloat16.

{table(rows)}

`train_seconds`: from images in memory and fresh weights to the final weights. `wall_seconds`: from the start of the process to
the end of the command{timing_note}. TFLOP/s: three times the operations of the forward pass per image, where a multiply-add counts as two.
"""
    path = records.write_result(options.title, environments[0], text)
    write_json(
        path.with_suffix(".json"), {"command": command, "commit": commit, "environment": environments[0], "rows": rows}
    )
    print(path)
    print(text)


STARTED = time.time()

if __name__ == "__main__":
    records.run(main)
