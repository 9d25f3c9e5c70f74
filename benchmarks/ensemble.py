"""Average the probabilities of trained runs and compare their accuracy with that of each run.

    python benchmarks/ensemble.py runs/best-0 runs/best-1 runs/best-2                  # on the validation split
    python benchmarks/ensemble.py runs/best-* --size 5 --split test --record best-ensemble

An ensemble predicts with the mean of its members' probabilities. --size splits the runs, in their order, into disjoint
ensembles of that size, so that the accuracy of the ensembles has a spread too. Each member uses the test split once.
Writes ensemble-<hardware>-<date>.md into the folder --out, if it is given, and with --record a folder in records/ with
all predictions.
"""

import argparse
import statistics
import sys
from pathlib import Path

import torch

import gingham
import records
from gingham.device import choose_device
from gingham.evaluation.metrics import proportion_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--size", type=int, help="runs per ensemble; by default all in one")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--target", type=float, help="the target accuracy, for the record")
    parser.add_argument("--record", metavar="NAME", help="write records/<date>-NAME; needs --split test")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write the results into a file there")
    options = parser.parse_args()
    size = options.size or len(options.runs)
    if not 2 <= size <= len(options.runs):
        parser.error(f"--size got {size} with {len(options.runs)} runs; allowed: 2 to the number of runs")
    if options.record and options.split != "test":
        parser.error("a record needs --split test")
    commit = records.clean_commit()
    runs = [gingham.load(folder) for folder in options.runs[: len(options.runs) // size * size]]
    data = gingham.load_data("fashion-mnist", runs[0].recipe.validation_images)
    if any(
        run.data.get("fingerprint") != data.fingerprint or run.data["train_images"] != len(data.train) for run in runs
    ):
        sys.exit("the runs must be of Fashion-MNIST, all with the same validation images")
    split = data.test if options.split == "test" else data.validation
    assert split is not None
    single_accuracies, probabilities = [], []
    for run in runs:
        run.model.to(choose_device("auto"))
        single_accuracies.append(gingham.evaluate(run, split).accuracy)  # records the use of the test split
        probabilities.append(run.model.predict(split.images).probabilities)
    predictions = [
        torch.stack(probabilities[k : k + size]).mean(dim=0).argmax(dim=1) for k in range(0, len(runs), size)
    ]
    correct = [int((predicted == split.labels).sum()) for predicted in predictions]
    accuracies = [count / len(split) for count in correct]
    low, high = proportion_interval(correct[0], len(split))
    environment = runs[0].environment
    base_command = (
        f"python benchmarks/ensemble.py {' '.join(map(str, options.runs))} --size {size} --split {options.split}"
    )
    if options.target is not None:
        base_command += f" --target {options.target}"
    command = base_command + (f" --record {options.record}" if options.record else "")
    recipes = ", ".join(f"`{name}`" for name in dict.fromkeys(run.recipe.name for run in runs))
    lines = [
        (
            f"| {len(runs)} single runs of {recipes} | {format_mean(single_accuracies)} | "
            f"{min(single_accuracies):.2%} to {max(single_accuracies):.2%} |"
        ),
        (
            f"| ensembles of {size} runs: {len(predictions)} | {format_mean(accuracies)} | {min(accuracies):.2%} to "
            f"{max(accuracies):.2%} |"
        ),
    ]
    text = f"""# Ensembles

Command: `{command}`, commit {commit[:12]}.
The runs were trained on: {environment["hardware"]}; torch {environment["torch"]}. {len(split):,} {options.split} images. The 95 % interval of
the first ensemble, over images, is {low:.2%} to {high:.2%}.

| predictions of | accuracy: mean ± std | min to max |
| --- | ---: | ---: |
{chr(10).join(lines)}
"""
    if options.out:
        print(records.write_result("ensemble", environment, text, options.out))
    print(text)
    if options.record:
        seconds = [run.metrics["train_seconds"] for run in runs]
        walls = [run.metrics["wall_seconds"] for run in runs]
        groups = range(0, len(runs), size)
        records.write_record(
            options.record,
            target=options.target,
            accuracies=accuracies,
            train_seconds=[sum(seconds[k : k + size]) for k in groups],
            wall_seconds=[sum(walls[k : k + size]) for k in groups],
            environment=environment,
            commit=commit,
            command=command,
            recipe=runs[0].recipe.to_dict(),
            extra={"members": size, "accuracies_alone": single_accuracies},
            predictions=predictions,
        )


def format_mean(accuracies: list[float]) -> str:
    mean = f"{statistics.mean(accuracies):.2%}"
    return mean + (f" ± {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else "")


if __name__ == "__main__":
    records.run(main)
