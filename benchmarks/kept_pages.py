"""Time training steps of the ladder's recipes with the memory that a step frees kept by the process and given back.

    python benchmarks/kept_pages.py

Alternates both, a process each, since the setting lasts. Writes benchmarks/results/kept-pages-<hardware>-<date>.md.
"""

import argparse
import contextlib
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

import gingham
import records
from gingham.models import build
from gingham.optimization import build_optimizer
from gingham.storage import describe_environment
from gingham.training import choose_device, choose_precision, kept_pages, learn

RECIPES, SIDES = ("fast-85", "fast"), ("given back", "kept")
STEPS, ROUNDS = 60, 9


def measure(name: str, side: str) -> list[float]:
    """Return seconds and page faults a step."""
    recipe, device = gingham.RECIPES[name], choose_device("auto")
    precision = choose_precision(recipe.precision, device)
    torch.manual_seed(0)
    model = build(recipe.network, list("0123456789"), (1, 28, 28)).to(device).train()
    optimizer = build_optimizer(model, recipe)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    images = torch.randint(256, (recipe.batch_size, 1, 28, 28), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (recipe.batch_size,), device=device)
    with kept_pages() if side == "kept" else contextlib.nullcontext():
        for step in range(10 + STEPS):
            if step == 10:  # those before warm up
                before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            learn(model, optimizer, images, labels, recipe, precision)
        seconds = time.perf_counter() - started
        return [seconds / STEPS, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(*options.worker)))
        return
    commit = records.clean_commit()
    found: dict[tuple[str, str], list[list[float]]] = {(name, side): [] for name in RECIPES for side in SIDES}
    for _ in range(ROUNDS):
        for (name, side), results in found.items():
            line = [sys.executable, __file__, "--worker", name, side]
            results.append(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))
    rows = []
    for name in RECIPES:
        ratios = [back[0] / kept[0] for back, kept in zip(*(found[name, side] for side in SIDES), strict=True)]
        for side in SIDES:
            times, faults = ([result[k] for result in found[name, side]] for k in (0, 1))
            middle, low, high = (1000 * x for x in (statistics.median(times), min(times), max(times)))
            rows.append(
                f"| `{name}` | {side} | {middle:.1f} | {low:.1f} to {high:.1f} | {statistics.median(faults):,.0f} | "
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )
    environment = describe_environment(choose_device("auto"))
    text = f"""# Freed memory kept or given back

Command: `python benchmarks/kept_pages.py`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; one seed, {ROUNDS} rounds of {STEPS} steps a side, alternating.

| recipe | memory | ms a step, median | range | page faults a step | given back / kept: median of the rounds' ratios |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""
    print(records.write_result("kept-pages", environment, text))
    print(text)


if __name__ == "__main__":
    main()
