"""Measure the false positives of `gingham compare`, and whether it detects a difference of one point.

    python benchmarks/honesty.py

Trains sets of a few seeds of a recipe and of a worse variant, no seed twice. Each try compares two sets of the same
recipe, and a set of the recipe with a set of the variant, on the validation split; then the same with single runs.
Finished seeds are saved in --work. Writes benchmarks/results/honesty-<hardware>-<date>.md.
"""

import argparse
import statistics
import sys
from pathlib import Path

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.presets import RECIPES
from gingham.recipe import parse_settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipe", default="fast-85")
    parser.add_argument(
        "--worse",
        default="epochs=0.265",
        metavar="FIELD=VALUE",
        help="the setting that makes the variant about a point worse",
    )
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5, help="seeds per set")
    parser.add_argument("--work", type=Path, default=Path("runs/honesty"))
    options = parser.parse_args()
    commit = records.clean_commit()
    work = options.work / commit[:12]
    recipe = RECIPES[options.recipe]
    variant = recipe.replace(name=f"{recipe.name}-worse", **parse_settings([options.worse]))
    data = gingham.load_data("fashion-mnist", recipe.validation_images)
    assert data.validation is not None
    validation = data.validation
    retain_freed_memory()  # as gingham trials does

    def fit(kind: str, trained_recipe: gingham.Recipe, number: int) -> gingham.Trials:
        seeds = range(number * options.seeds, (number + 1) * options.seeds)
        print(f"{kind}, set {number + 1} of {options.tries}", file=sys.stderr)
        return gingham.trials(trained_recipe, data, seeds, work / f"{kind}-{number}", progress=False)

    offset = options.tries
    sets = [(fit("a", recipe, k), fit("b", recipe, k + offset), fit("worse", variant, k)) for k in range(options.tries)]
    folders = [(work / f"a-{k}", work / f"b-{k + offset}", work / f"worse-{k}") for k in range(options.tries)]
    rows = []
    for title, other in (("the same recipe", 1), ("the worse variant", 2)):
        for kind, inner in (("sets", ""), ("single runs", "seed-{}")):
            values = []
            for k, group in enumerate(folders):
                firsts = (k * options.seeds, (k + offset if other == 1 else k) * options.seeds)
                pair = (group[0] / inner.format(firsts[0]), group[other] / inner.format(firsts[1]))
                values.append(gingham.compare(*pair, lambda run: validation).p_value)
            num_significant = sum(value < 0.05 for value in values)
            rows.append(
                f"| {title} | {kind} | {num_significant} of {options.tries} | {min(values):.3f} | "
                f"{statistics.median(values):.3f} | {max(values):.3f} |"
            )
    means = [statistics.mean(group[side].mean for group in sets) for side in (0, 1, 2)]
    environment = describe_environment(choose_device("auto"))
    text = f"""# How often `gingham compare` is wrong

Command: `python benchmarks/honesty.py --recipe {options.recipe} --worse {options.worse} --tries {options.tries} --seeds {options.seeds}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}.
Sets of {options.seeds} seeds, no seed in two sets, on the {len(validation):,} validation images. Mean accuracy over all sets: the recipe {means[0]:.2%}
and {means[1]:.2%}, the variant {means[2]:.2%}. "Found" counts the p-values below 0.05.

| compared with | as | found | smallest p | median p | largest p |
| --- | --- | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""
    print(records.write_result("honesty", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
