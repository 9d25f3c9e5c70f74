"""Measure what each kind of augmentation gains when a pretrained network is fine-tuned.

    python benchmarks/augmentation.py DATA --weights model.safetensors
    python benchmarks/augmentation.py DATA --weights model.safetensors --changes "mixup=0.2" "rotation=15"

DATA is as for `gingham train`, with a test split. Each training changes one field of the recipe `finetune`. The trainings that
are done are kept in runs/augmentation.json, so that the command can be interrupted and repeated. Writes
benchmarks/results/augmentation-<hardware>-<date>.md.
"""

import argparse
import shlex
import sys
from pathlib import Path

import gingham
import records
from gingham.device import choose_device, describe_environment, retain_freed_memory
from gingham.evaluation.metrics import proportion_interval
from gingham.io import locked, read_json, write_json
from gingham.recipe import parse_settings

CHANGES = (
    "",
    "flip=none",
    "crop_scale=1",
    "color_jitter=0",
    "rotation=15",
    "trivial_augment=true",
    "mixup=0.5",
    "cutmix=0.5",
)
STATE = Path("runs/augmentation.json")


def measure(data: gingham.DataSplits, change: str, epochs: float, weights: Path) -> float:
    """Return the test accuracy of `finetune` with one change."""
    recipe = gingham.RECIPES["finetune"].replace(epochs=epochs, validation_images=0, **parse_settings(change.split()))
    run = gingham.fit(recipe, data.train, progress=False, options=gingham.FitOptions(weights=weights))
    return gingham.evaluate(run, data.test).accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--changes", nargs="+", default=CHANGES)
    parser.add_argument("--epochs", type=float, default=8)
    options = parser.parse_args()
    commit = records.clean_commit()
    retain_freed_memory()
    data = gingham.load_data(options.data, size=gingham.RECIPES["finetune"].size)
    name = f"{Path(options.data).name} {options.epochs:g} epochs"
    state = read_json(STATE) if STATE.exists() else {}
    for change in options.changes:
        if change not in state.get(name, {}):
            accuracy = measure(data, change, options.epochs, options.weights)
            with locked(STATE.parent, wait=True):  # others may measure other changes at the same time
                state = read_json(STATE) if STATE.exists() else {}
                state.setdefault(name, {})[change] = accuracy
                write_json(STATE, state)
        print(change or "finetune", state[name][change], file=sys.stderr)
    lines = []
    for change in options.changes:
        accuracy = state[name][change]
        low, high = proportion_interval(round(accuracy * len(data.test)), len(data.test))
        gain = f"{100 * (accuracy - state[name]['']):+.1f}" if change and "" in state[name] else ""
        lines.append(
            f"| {f'`{change}`' if change else '`finetune`'} | {accuracy:.1%} ({low:.1%} to {high:.1%}) | {gain} |"
        )
    environment = describe_environment(choose_device("auto"))
    text = f"""# The gain of each kind of augmentation

Command: `{shlex.join(["python", "benchmarks/augmentation.py", *sys.argv[1:]])}`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}.
Data: {Path(options.data).name}: {len(data.train):,} training and {len(data.test):,} test images, {len(data.classes)} classes; one seed,
{options.epochs:g} epochs. The interval is that of the test images; the difference is in points.

| recipe | test accuracy (95 % interval) | difference |
| --- | ---: | ---: |
{chr(10).join(lines)}
"""
    print(records.write_result("augmentation", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
