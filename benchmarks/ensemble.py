"""Let trained runs answer together, and report how right they are beside each alone.

    python benchmarks/ensemble.py runs/best-0 runs/best-1 runs/best-2                  # on the validation split
    python benchmarks/ensemble.py runs/best-* --size 5 --split test --record best-ensemble

An ensemble's answer is the mean of its members' probabilities. With --size the runs are dealt into ensembles of so many, in their
order and none in two, so that with enough of them the ensembles have a spread too. The test split is opened once by each member.
Writes benchmarks/results/ensemble-<hardware>-<date>.md, and with --record a folder in records/ with every answer.
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
    parser.add_argument("--size", type=int, help="how many runs answer together; all of them unless told")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--target", type=float, help="the accuracy asked for, for the record")
    parser.add_argument("--record", metavar="NAME", help="write records/<date>-NAME; needs --split test")
    options = parser.parse_args()
    size = options.size or len(options.runs)
    if not 2 <= size <= len(options.runs):
        parser.error(f"an ensemble needs at least 2 runs and has at most those given, {len(options.runs)}; --size got {size}")
    if options.record and options.split != "test":
        parser.error("a record needs --split test")
    commit = records.clean_commit()
    runs = [gingham.load(folder) for folder in options.runs[: len(options.runs) // size * size]]
    data = gingham.load_data("fashion-mnist", runs[0].recipe.validation_images)
    if any(run.data.get("fingerprint") != data.fingerprint or run.data["train_images"] != len(data.train) for run in runs):
        sys.exit("an ensemble here is of runs on Fashion-MNIST, all with the same pictures held out")
    split = data.test if options.split == "test" else data.validation
    assert split is not None
    alone, answers = [], []
    for run in runs:
        run.model.to(choose_device("auto"))
        alone.append(gingham.evaluate(run, split).accuracy)  # writes the opening down
        answers.append(run.model.predict(split.images).probabilities)
    together = [torch.stack(answers[first : first + size]).mean(dim=0).argmax(dim=1) for first in range(0, len(runs), size)]
    right = [int((predicted == split.labels).sum()) for predicted in together]
    accuracies = [count / len(split) for count in right]
    low, high = proportion_interval(right[0], len(split))
    environment = runs[0].environment
    same = f"python benchmarks/ensemble.py {' '.join(map(str, options.runs))} --size {size} --split {options.split}"
    if options.target is not None:
        same += f" --target {options.target}"
    command = same + (f" --record {options.record}" if options.record else "")
    recipes = ", ".join(f"`{name}`" for name in dict.fromkeys(run.recipe.name for run in runs))
    lines = [
        f"| {len(runs)} runs of {recipes}, each alone | {spread(alone)} | {min(alone):.2%} to {max(alone):.2%} |",
        f"| {len(together)} of {size} runs together | {spread(accuracies)} | {min(accuracies):.2%} to {max(accuracies):.2%} |",
    ]
    text = f"""# Runs that answer together

Command: `{command}`, commit {commit[:12]}.
The runs were trained on: {environment["hardware"]}; torch {environment["torch"]}. {len(split):,} {options.split} pictures; the 95 % interval of
the first ensemble, from how many pictures there are, is {low:.2%} to {high:.2%}.

| who answers | accuracy: mean ± std | min to max |
| --- | ---: | ---: |
{chr(10).join(lines)}
"""
    print(records.write_result("ensemble", environment, text))
    print(text)
    if options.record:
        seconds = [run.metrics["train_seconds"] for run in runs]
        walls = [run.metrics["wall_seconds"] for run in runs]
        groups = range(0, len(runs), size)
        records.write_record(
            options.record,
            target=options.target,
            accuracies=accuracies,
            train_seconds=[sum(seconds[first : first + size]) for first in groups],
            wall_seconds=[sum(walls[first : first + size]) for first in groups],
            environment=environment,
            commit=commit,
            command=command,
            recipe=runs[0].recipe.to_dict(),
            extra={"members": size, "accuracies_alone": alone},
            predictions=together,
        )


def spread(accuracies: list[float]) -> str:
    mean = f"{statistics.mean(accuracies):.2%}"
    return mean + (f" ± {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else "")


if __name__ == "__main__":
    main()
