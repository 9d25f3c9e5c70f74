"""Replace the packaged model with a run's model if it is about as good or better.

    make model                                                                  # trains it, and runs this script
    python benchmarks/package_model.py runs/photo-2 --photos ~/photographs      # only this script

The run's filters are rounded to 16 bits, and its temperature and threshold are fitted again. Then both models are
evaluated on the test split (the model records this use), on photos made from validation images, on drawn outliers, and
on each folder of real photos. If the new model is worse on any of them by more than the numbers in ALLOWED, the
packaged one stays.
"""

import argparse
import sys
from pathlib import Path

import torch

import gingham
import photographs
import records
from gingham.data.augment_photos import simulate_photos
from gingham.evaluation.calibrate import calibrate
from gingham.inference.evaluate_photos import evaluate_photographs
from gingham.inference.packaged_model import PACKAGED, load_packaged
from gingham.inference.predict import preprocess, score_prepared
from gingham.recipe import Recipe
from gingham.runs.run import HISTORY_FILE, METADATA_FILE, Run, halve

LARGEST_BYTES = 1_500_000
# How much worse the new model may be: a tenth of a point, and what a few of the photos make.
ALLOWED = {"test split": 0.001, "outliers not answered": 0.0, "made photos, product": 0.02, "made photos, floor": 0.02}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", nargs="*", type=Path, default=[], help="folders with a folder of photos per class")
    arguments = parser.parse_args()
    run = gingham.load(arguments.run)
    data = gingham.load_data("fashion-mnist", run.recipe.validation_images)
    if run.data.get("fingerprint") != data.fingerprint or data.validation is None:
        sys.exit(
            f"{arguments.run} was not trained on Fashion-MNIST with validation images, as the packaged model must be"
        )
    run.folder = None  # the rounded model is evaluated, with its own uses of the test split
    run.test_openings = []
    run.model.load_state_dict(halve(run.model.state_dict()))
    calibrate(run, data.train, data.validation)
    run.model.load_state_dict(halve(run.model.state_dict()))  # also the new novelty score
    new = scores(run, data, arguments.photos)
    if (PACKAGED / METADATA_FILE).exists():
        old = scores(load_packaged(), data, arguments.photos)
        for name, value in new.items():
            print(f"{name:<32} {value:.2%}, packaged {old[name]:.2%}")
        worse = [name for name, value in new.items() if value < old[name] - ALLOWED.get(name, 0.02)]
        if worse:
            sys.exit(f"{arguments.run} is worse on {', '.join(worse)}; the packaged model stays")
    for name, value in new.items():
        print(f"{name:<32} {value:.2%}")
    for file in PACKAGED.glob("*"):  # git keeps them
        file.unlink()
    run.image_hashes = {}  # half a megabyte
    gingham.save(run, PACKAGED, halved=True)
    (PACKAGED / HISTORY_FILE).unlink()
    size = sum(file.stat().st_size for file in PACKAGED.iterdir())
    assert size < LARGEST_BYTES, f"the model takes {size:,} bytes; allowed: {LARGEST_BYTES:,}"
    print(f"packaged: {PACKAGED} ({size:,} bytes)")


def scores(run: Run, data: gingham.DataSplits, folders: list[Path]) -> dict[str, float]:
    """Return a model's accuracy on the test split and on sets of photos, and the share of outliers it does not answer."""
    accuracies = {"test split": gingham.evaluate(run, data.test).accuracy}
    for kind in photographs.KINDS:
        images, labels = photographs.make(kind, 40)
        prepared = [preprocess(run, image, "photo") for image in images]
        predicted = score_prepared(run.model, prepared)[:, :-1].argmax(dim=1)
        correct = (predicted == labels).double()
        accuracies[f"made photos, {kind}"] = float(
            torch.stack([correct[labels == k].mean() for k in sorted(set(labels.tolist()))]).mean()
        )
    recipe = Recipe(photo_share=1.0, outlier_share=1.0)
    outliers = simulate_photos(*data.train.sample(2000), data.classes, recipe, step=-1)
    logits, novelty = run.model.score(outliers)
    threshold, novelty_threshold = run.model.thresholds(for_photos=True)
    answered = (logits.softmax(dim=1).amax(dim=1) >= threshold) & (novelty <= novelty_threshold)
    accuracies["outliers not answered"] = 1 - float(answered.double().mean())
    for folder in folders:
        accuracies[f"photos, {folder.name}"] = evaluate_photographs(run, folder)[0].balanced_accuracy
    return accuracies


if __name__ == "__main__":
    records.run(main)
