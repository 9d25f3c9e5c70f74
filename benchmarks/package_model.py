"""Put a run's model into the package, if it is no worse than the one that is there.

    gingham train --recipe photo --seed 0 --out runs/photo-0
    python benchmarks/package_model.py runs/photo-0 --photos ~/photographs      # `make model` does both, without --photos

The run's filters are rounded to 16 bits, its temperature and threshold fitted anew; then both models are measured, on the
test split (the opening is written into the model), on photographs made from validation pictures, and on each folder of real
ones. Worse on any of them, it does not come in.
"""

import argparse
import sys
from pathlib import Path

import torch

import gingham
import photographs
from gingham.evaluation.calibrate import calibrate
from gingham.inference.evaluate_photos import evaluate_photographs
from gingham.inference.packaged_model import PACKAGED, load_packaged
from gingham.inference.predict import mean_probabilities, preprocess
from gingham.runs.run import HISTORY_FILE, METADATA_FILE, Run, halve

LARGEST_BYTES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", nargs="*", type=Path, default=[], help="folders with a folder of photographs a class")
    arguments = parser.parse_args()
    run = gingham.load(arguments.run)
    data = gingham.load_data("fashion-mnist", run.recipe.validation_images)
    if run.data.get("fingerprint") != data.fingerprint or data.validation is None:
        sys.exit(
            f"{arguments.run} was not trained on Fashion-MNIST with pictures held out; nothing else comes into the package"
        )
    run.folder = None  # what is measured is the rounded model, whose openings are its own
    run.test_openings = []
    halve(run.model)
    calibrate(run, data.validation)
    new = scores(run, data, arguments.photos)
    if (PACKAGED / METADATA_FILE).exists():
        old = scores(load_packaged(), data, arguments.photos)
        for name, value in new.items():
            print(f"{name:<32} {value:.2%}, packaged {old[name]:.2%}")
        worse = [name for name, value in new.items() if value < old[name]]
        if worse:
            sys.exit(f"{arguments.run} is worse on {', '.join(worse)}; the packaged model stays")
    for name, value in new.items():
        print(f"{name:<32} {value:.2%}")
    for file in PACKAGED.glob("*"):  # git has them
        file.unlink()
    gingham.save(run, PACKAGED, halved=True)
    (PACKAGED / HISTORY_FILE).unlink()
    size = sum(file.stat().st_size for file in PACKAGED.iterdir())
    assert size < LARGEST_BYTES, f"the model takes {size:,} bytes; allowed: {LARGEST_BYTES:,}"
    print(f"packaged: {PACKAGED} ({size:,} bytes)")


def scores(run: Run, data: gingham.DataSplits, folders: list[Path]) -> dict[str, float]:
    """A model's accuracy on the test split and its balanced accuracy on each set of photographs."""
    found = {"test split": gingham.evaluate(run, data.test).accuracy}
    for kind in photographs.KINDS:
        images, labels = photographs.make(kind, 40)
        answered = mean_probabilities(run.model, [preprocess(run, image, "photo") for image in images]).argmax(dim=1)
        right = (answered == labels).double()
        found[f"made photographs, {kind}"] = float(
            torch.stack([right[labels == k].mean() for k in sorted(set(labels.tolist()))]).mean()
        )
    for folder in folders:
        found[f"photographs, {folder.name}"] = evaluate_photographs(run, folder)[0].balanced_accuracy
    return found


if __name__ == "__main__":
    main()
