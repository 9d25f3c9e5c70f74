"""Measure the effect of each optimization of the training loop on the time of a step.

    python benchmarks/step_time.py
    python benchmarks/step_time.py fast-92 --rounds 9
    python benchmarks/step_time.py --profile        # instead: the time of a step by operation

Each measurement runs in its own process, since some settings cannot be reset. Writes
benchmarks/results/step-time-<hardware>-<date>.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import gingham
import records
from gingham.device import choose_device, choose_precision, describe_environment, retain_freed_memory
from gingham.models.classifier import Classifier
from gingham.models.networks import MeanPool
from gingham.models.registry import build_classifier
from gingham.training.batches import Batch
from gingham.training.loss import CrossEntropyLoss
from gingham.training.optimizer import build_optimizer
from gingham.training.step import CUDAGraphStep, EagerStep, TrainStep, compile_step, dummy_batch, warm_up

WITHOUT = {
    "as it is": "all optimizations on",
    "kept pages": "freed memory is returned to the system",
    "channels last": "activations and filters as NCHW",
    "mean over NHWC": "nn.AdaptiveAvgPool2d instead of MeanPool",
    "bfloat16": "float32 throughout (no difference if the hardware lacks bfloat16)",
    "eager steps": "the network compiled with torch.compile, after its compilation",
    "one by one": "steps recorded as a CUDA graph and replayed (no difference without an NVIDIA GPU)",
}
RECIPES = ("fast-85", "fast", "fast-94")
STEPS, ROUNDS = 40, 7


def create_step(model: Classifier, recipe: gingham.Recipe, precision: str) -> EagerStep:
    optimizer = build_optimizer(model, recipe.replace(learning_rate=0.01))
    loss = CrossEntropyLoss(recipe.label_smoothing)
    return EagerStep(model, optimizer, loss, precision, with_losses=recipe.hard_share < 1)


def random_batch(recipe: gingham.Recipe, device: torch.device) -> Batch:
    images = torch.randint(256, (recipe.batch_size, 1, 28, 28), dtype=torch.uint8, device=device)
    return Batch(images, torch.randint(10, (recipe.batch_size,), device=device))


def measure(name: str, trick: str) -> float:
    """Return the median seconds of STEPS steps without one optimization."""
    recipe, device = gingham.RECIPES[name], choose_device("auto")
    precision = "float32" if trick == "bfloat16" else choose_precision(recipe.precision, device)
    torch.manual_seed(0)
    model = build_classifier(recipe.network, list("0123456789"), (1, 28, 28))
    if trick == "mean over NHWC":
        for parent in list(model.modules()):
            for key, child in parent.named_children():
                if isinstance(child, MeanPool):
                    setattr(parent, key, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    if trick == "channels last":
        model = model.to(memory_format=torch.contiguous_format)
    model = model.to(device).train()
    batch = random_batch(recipe, device)
    times = []
    step = create_step(model, recipe, precision)
    train_step: TrainStep = step
    if trick == "eager steps":
        train_step = compile_step(step, [batch], recipe.network)
    if trick == "one by one" and device.type == "cuda":
        batches = [dummy_batch(recipe.batch_size, model, recipe)]
        warm_up(model, step, batches, recipe, 0)  # the first calls of libraries cannot be captured
        train_step = CUDAGraphStep(step, batches)
    if trick != "kept pages":
        retain_freed_memory()
    for _ in range(10 + STEPS):
        started = time.perf_counter()
        train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[10:])


def profile(name: str) -> list[tuple[str, float, int]]:
    """Return the operations of a recipe's step, their shares of its time and their calls, the longest first."""
    recipe, device = gingham.RECIPES[name], choose_device("auto")
    precision = choose_precision(recipe.precision, device)
    torch.manual_seed(0)
    model = build_classifier(recipe.network, list("0123456789"), (1, 28, 28)).to(device).train()
    step, batch = create_step(model, recipe, precision), random_batch(recipe, device)
    retain_freed_memory()
    for _ in range(10):
        step(batch)
    rows = operations(step, batch, STEPS)
    total = sum(time for _, time, _ in rows)
    return [(key, time / total, round(count)) for key, time, count in rows]


def operations(train_step: TrainStep, batch: Batch, steps: int) -> list[tuple[str, float, float]]:
    """Return the operations of a step, their microseconds without those that they call, and their calls per step.

    On a GPU they are its kernels and copies. The longest come first.
    """
    device = batch.images.device
    with torch.profiler.profile() as profiler:
        for _ in range(steps):
            train_step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    rows = []
    for event in profiler.key_averages():
        if device.type != "cuda":
            rows.append((event.key, event.self_cpu_time_total / steps, event.count / steps))
        elif event.device_type.name == "CUDA" and not event.is_user_annotation:
            rows.append((event.key, event.self_device_time_total / steps, event.count / steps))
    return sorted(rows, key=lambda row: -row[1])


def write_profile(names: list[str], commit: str) -> None:
    environment = describe_environment(choose_device("auto"))
    lines = []
    for name in names:
        lines += [
            "",
            f"## `{name}`",
            "",
            "| operation | share of the step's time | calls per step |",
            "| --- | ---: | ---: |",
        ]
        lines += [f"| {key} | {share:.1%} | {count} |" for key, share, count in profile(name)[:12]]
    text = f"""# Where the time of a step goes

Command: `python benchmarks/step_time.py {" ".join(names)} --profile`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; precision {choose_precision("auto", choose_device("auto"))}.
`torch.profiler` over {STEPS} steps, one process, one seed: the time spent in each operation, without the operations that it calls.
{chr(10).join(lines)}
"""
    print(records.write_result("profile", environment, text))
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE")
    parser.add_argument("--rounds", type=records.positive, default=ROUNDS)
    parser.add_argument("--profile", action="store_true", help="measure the time of a step by operation instead")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    for name in options.recipes:
        gingham.RECIPES[name].replace()  # a wrong name stops here
    commit = records.clean_commit()
    if options.profile:
        write_profile(list(options.recipes), commit)
        return
    results: dict[tuple[str, str], list[float]] = {(name, trick): [] for name in options.recipes for trick in WITHOUT}
    for turn in range(options.rounds):
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
        for (name, trick), values in results.items():
            command = [sys.executable, __file__, "--worker", name, trick]
            values.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    rows = []
    for (name, trick), values in results.items():
        ratios = [without / usual for without, usual in zip(values, results[name, "as it is"], strict=True)]
        median, low, high = (1000 * x for x in (statistics.median(values), min(values), max(values)))
        rows.append(
            f"| `{name}` | {trick} | {WITHOUT[trick]} | {median:.1f} | {low:.1f} to {high:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    environment = describe_environment(choose_device("auto"))
    text = f"""# The time of a step without each optimization

Command: `python benchmarks/step_time.py {" ".join(options.recipes)} --rounds {options.rounds}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; precision {choose_precision("auto", choose_device("auto"))} unless the row says otherwise.
{options.rounds} rounds, all rows in turn. Each measurement is the median of {STEPS} steps after 10 warm-up steps, in its own process. One seed, since
only time is measured.

| recipe | without | what runs instead | ms per step, median | range | relative time: median of the ratios per round |
| --- | --- | --- | ---: | ---: | ---: |
{chr(10).join(rows)}
"""
    print(records.write_result("step-time", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
