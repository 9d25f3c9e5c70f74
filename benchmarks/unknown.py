"""Measure what runs answer to images of things that they were not trained on.

    python benchmarks/unknown.py packaged runs/fast-*                      # runs of Fashion-MNIST
    python benchmarks/unknown.py packaged runs/fast-* --other cifar10 ~/cifar10/test --photos ~/things --garments ~/phone
    python benchmarks/unknown.py runs/mnist-0                              # a run of MNIST: digits drawn on paper

For each family of images: the area under the ROC curve of the novelty score against the run's test images, the share
that is rejected at the run's threshold, and the share that gets a class with confidence. Runs of one recipe are
averaged. The method was chosen on the families marked so; the others are for the report only. MNIST is that of
`gingham.load_data`; `--other NAME FOLDER` adds a folder of small images, `--photos` photos of other things, and
`--garments` folders with a folder of photos for each class. Then it compares the time of an answer for 64 images with
and without the score, alternating, and measures the time of fitting what `fit` fits at its end. Writes benchmarks/results/unknown-<hardware>-<date>.md.
"""

import argparse
import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

import gingham
import records
from gingham.cli.predict import list_files
from gingham.device import describe_environment
from gingham.errors import DataError
from gingham.evaluation.calibrate import calibrate
from gingham.evaluation.metrics import area_under_roc, proportion_interval
from gingham.evaluation.run_data import load_run_data
from gingham.inference.evaluate_photos import normalize_class_name
from gingham.inference.packaged_model import load_packaged
from gingham.inference.predict import predict
from gingham.inference.preprocess import open_photo
from gingham.runs.run import Run

Array = npt.NDArray[Any]  # OpenCV's type hints are no more precise
COUNT, SIDE = 1000, 28
CHOSEN_ON = {
    "uniform noise",
    "negatives",
    "shuffled pixels",
}  # and MNIST's training images, and half of the CIFAR-10 images
Y, X = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) * 2 - 1


def uniform_noise(random: np.random.Generator) -> Array:
    return random.uniform(0, 255, (SIDE, SIDE))


def normal_noise(random: np.random.Generator) -> Array:
    return random.normal(random.uniform(0, 255), random.uniform(5, 80), (SIDE, SIDE))


def blank(random: np.random.Generator) -> Array:
    return np.full((SIDE, SIDE), random.integers(0, 256))


def stripes(random: np.random.Generator) -> Array:
    angle, low, high = random.uniform(0, np.pi), *random.uniform(0, 255, 2)
    wave = np.sin((np.cos(angle) * X + np.sin(angle) * Y) * random.uniform(5, 28) + random.uniform(0, 7))
    return np.asarray(low + (high - low) * (wave > 0 if random.random() < 0.5 else (wave + 1) / 2))


def gradient(random: np.random.Generator) -> Array:
    angle, low, high = random.uniform(0, 2 * np.pi), *random.uniform(0, 255, 2)
    linear = (np.cos(angle) * X + np.sin(angle) * Y + 1.5) / 3
    radial = np.hypot(X - random.uniform(-0.5, 0.5), Y - random.uniform(-0.5, 0.5)) / 2.2
    return np.asarray(low + (high - low) * (linear if random.random() < 0.6 else radial))


def checkerboard(random: np.random.Generator) -> Array:
    cell, low, high = random.integers(1, 10), *random.uniform(0, 255, 2)
    rows, columns = (np.arange(SIDE) + random.integers(0, 9)) // cell, (np.arange(SIDE) + random.integers(0, 9)) // cell
    return np.asarray(low + (high - low) * ((rows[:, None] + columns) % 2))


def scribble(random: np.random.Generator) -> Array:
    paper = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    for _ in range(random.integers(1, 4)):
        points = np.cumsum(random.normal(0, 22, (random.integers(4, 12), 2)), axis=0) + random.uniform(30, 82, 2)
        smooth = cv2.GaussianBlur(np.repeat(points, 8, axis=0), (1, 21), 0)
        tone, width = int(random.integers(128, 256)), int(random.integers(4, 14))
        cv2.polylines(paper, [smooth.clip(2, 110).astype(np.int32)], False, tone, width, cv2.LINE_AA)
    return cv2.resize(paper, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


DRAWN: dict[str, Callable[[np.random.Generator], Array]] = {
    "uniform noise": uniform_noise,
    "normal noise": normal_noise,
    "blank": blank,
    "stripes": stripes,
    "gradients": gradient,
    "checkerboards": checkerboard,
    "scribbles": scribble,
}


def families(test: torch.Tensor, others: list[tuple[str, Path]]) -> dict[str, torch.Tensor]:
    """Return the images of each family, uint8 (N, 1, 28, 28)."""
    sets = {}
    try:
        sets["MNIST, test images"] = gingham.load_data("mnist").test.images
    except DataError as error:
        print(f"left out: {error}")
    for name, folder in others:
        photos = [
            open_photo(file).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX) for file in list_files([folder])
        ]
        sets[name] = torch.from_numpy(np.stack([np.asarray(photo) for photo in photos])[:, None])
    sets["negatives"] = 255 - test[:COUNT]
    shuffled = np.random.default_rng(0).permuted(test[:COUNT].flatten(1).numpy(), axis=1)
    sets["shuffled pixels"] = torch.from_numpy(shuffled).view(-1, 1, SIDE, SIDE)
    for name, draw in DRAWN.items():
        random = np.random.default_rng(0)
        images = np.stack([draw(random).clip(0, 255).astype(np.uint8) for _ in range(COUNT)])
        sets[name] = torch.from_numpy(images[:, None])
    return sets


def on_paper(digit: Array, random: np.random.Generator) -> Image.Image:
    """Return a light digit on black, uint8 (28, 28), as a photo of a dark digit on plain or squared paper."""
    side = int(random.integers(90, 340))
    large = (cv2.resize(digit, (side, side), interpolation=cv2.INTER_CUBIC) > 100).astype(np.uint8)
    inside = cv2.distanceTransform(large, cv2.DIST_L2, 5)
    ink = (inside > random.uniform(0, 0.5) * np.percentile(inside[inside > 0], 75)).astype(np.float32)
    height, width = (int(side * share) for share in random.uniform(1.05, 2.6, 2))
    paper = np.full((height, width, 3), random.uniform(170, 250)) * [1, random.uniform(0.96, 1), random.uniform(0.9, 1)]
    if random.random() < 0.5:  # squares
        pitch, thickness = random.uniform(0.12, 0.5) * side, max(1, int(0.01 * side))
        lines = [(np.arange(length) + random.uniform(0, pitch)) % pitch < thickness for length in (height, width)]
        paper -= (lines[0][:, None] | lines[1])[..., None] * random.uniform(20, 70) * np.array([1, 0.8, 0.4])
    top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
    covered: Array = np.zeros((height, width), np.float32)
    covered[top : top + side, left : left + side] = ink
    covered = cv2.GaussianBlur(covered, (0, 0), random.uniform(0.6, 1.6))[..., None]
    photo = paper * (1 - covered) + random.uniform(20, 90) * covered
    light = 1 + random.uniform(-0.2, 0.2) * np.linspace(-1, 1, width)[None, :, None]
    return Image.fromarray((photo * light + random.normal(0, 3, photo.shape)).clip(0, 255).astype(np.uint8))


def share(flags: list[bool]) -> str:
    low, high = proportion_interval(sum(flags), len(flags))
    return f"{sum(flags) / len(flags):.1%} ({low:.1%} to {high:.1%})"


def family_rows(runs: dict[str, Run], others: list[tuple[str, Path]]) -> list[str]:
    """Return a table row for each recipe and family."""
    values = defaultdict[tuple[str, str], list[tuple[float, float, float]]](list)
    for run in runs.values():
        test = gingham.load_data(str(run.data["name"])).test.images
        inside = run.model.predict(test)
        values[run.recipe.name, "test images of Fashion-MNIST"].append(_shares(inside, inside))
        for name, images in families(test, others).items():
            values[run.recipe.name, name].append(_shares(inside, run.model.predict(images)))
    rows = []
    for (recipe, name), results in values.items():
        auroc, rejected, confident = (list(column) for column in zip(*results, strict=True))
        spread = f" ({min(auroc):.4f} to {max(auroc):.4f})" if len(auroc) > 1 else ""
        mark = "yes" if name in CHOSEN_ON else ""
        cells = (
            f"{statistics.fmean(auroc):.4f}{spread}",
            f"{statistics.fmean(rejected):.1%}",
            f"{statistics.fmean(confident):.1%}",
        )
        rows.append(f"| {recipe} | {len(results)} | {name} | {mark} | {' | '.join(cells)} |")
    return rows


def _shares(inside: "gingham.Predictions", outside: "gingham.Predictions") -> tuple[float, float, float]:
    confident = ~outside.novel & ~outside.unsure
    rejected, answered = (float(flags.double().mean()) for flags in (outside.novel, confident))
    return area_under_roc(inside.novelty, outside.novelty), rejected, answered


def photo_rows(runs: dict[str, Run], things: list[Path], garments: list[Path]) -> list[str]:
    rows = []
    for name, run in runs.items():
        for folder in things:
            answers = [p for p in predict(run, list_files([folder]), keep_steps=False) if p.error is None]
            confident = [not p.unsure and not p.novel for p in answers]
            rows.append(f"| {name} | {folder.name} | {len(answers)} | {share(confident)} | | |")
        for folder in garments:
            result, _ = gingham.evaluate_photographs(run, folder)
            known = {normalize_class_name(c): c for c in run.model.classes}
            files = list_files([folder])
            labels = [known.get(normalize_class_name(f.parent.name), "") for f in files]
            answers = predict(run, files, keep_steps=False)
            confident = [not p.unsure and not p.novel for p in answers]
            right = [p.label == label for p, label in zip(answers, labels, strict=True)]
            both = [c and r for c, r in zip(confident, right, strict=True)]
            wrong = [not r for c, r in zip(confident, right, strict=True) if c]
            cells = (share(confident), share(both), share(wrong) if wrong else "-")
            rows.append(
                f"| {name} | {folder.name} ({result.accuracy:.1%} right) | {len(answers)} | {' | '.join(cells)} |"
            )
    return rows


def time_rows(runs: dict[str, Run]) -> list[str]:
    """Return a table row for each recipe: milliseconds for 64 images without and with the score, alternating, and the
    seconds in which `calibrate` fits the temperature, the thresholds and the score."""
    rows = []
    for run in {run.recipe.name: run for run in runs.values()}.values():
        model = run.model.eval()
        seconds: tuple[list[float], list[float]] = ([], [])
        images = torch.randint(256, (64, *model.input_shape), dtype=torch.uint8)
        for _ in range(300):
            for function, times in zip((model.logits, model.score), seconds, strict=True):
                start = time.perf_counter()
                function(images)
                times.append(time.perf_counter() - start)
        before, after = (1000 * statistics.median(times[20:]) for times in seconds)
        data = load_run_data(run)
        start = time.perf_counter()
        calibrate(copy.deepcopy(run), data.train, data.validation)
        fitted = time.perf_counter() - start
        rows.append(f"| {run.recipe.name} | {before:.2f} | {after:.2f} | {after / before - 1:+.1%} | {fitted:.2f} |")
    return rows


def paper_rows(runs: dict[str, Run], count: int = 1000) -> list[str]:
    rows = []
    for name, run in runs.items():
        test, random = load_run_data(run).test, np.random.default_rng(0)
        photos = [on_paper(image[0], random) for image in test.images[:count].numpy()]
        negatives = [Image.fromarray(255 - image[0]) for image in test.images[:count].numpy()]
        for title, images in (("on paper", photos), ("28x28, dark on white", negatives)):
            labels = [test.classes[k] for k in test.labels[:count].tolist()]
            right = [p.label == label for p, label in zip(predict(run, images, keep_steps=False), labels, strict=True)]
            rows.append(f"| {name} | {title} | {count:,} | {share(right)} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["packaged"])
    parser.add_argument("--other", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"))
    parser.add_argument("--photos", nargs="*", type=Path, default=[])
    parser.add_argument("--garments", nargs="*", type=Path, default=[])
    arguments = parser.parse_args()
    commit = records.clean_commit()
    runs = {name: load_packaged() if name == "packaged" else gingham.load(name) for name in arguments.runs}
    digits = {name: run for name, run in runs.items() if run.data.get("name") == "mnist"}
    garments = {name: run for name, run in runs.items() if run.data.get("name") == "fashion-mnist"}
    others = [(name, Path(folder)) for name, folder in arguments.other]
    environment = describe_environment(torch.device("cpu"))
    lines = [
        "# Images of other things",
        "",
        f"Command: `python benchmarks/unknown.py {' '.join(arguments.runs)} ...`, commit {commit[:12]}.",
        f"Hardware: {environment['hardware']}; torch {environment['torch']}.",
    ]
    if garments:
        lines += ["", "| recipe | runs | images | chosen on | AUROC | rejected | answered with confidence |"]
        lines += ["| --- | ---: | --- | --- | ---: | ---: | ---: |", *family_rows(garments, others)]
        lines += ["", "| recipe | ms for 64 images | with the score | more | s for calibrate |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        lines += time_rows(garments)
    if garments and (arguments.photos or arguments.garments):
        lines += [
            "",
            "| run | photos | number | answered with confidence | of these right, of all | wrong among them |",
        ]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |"]
        lines += photo_rows(garments, arguments.photos, arguments.garments)
    if digits:
        lines += ["", "| run | digits | number | right |", "| --- | --- | ---: | ---: |", *paper_rows(digits)]
    text = "\n".join([*lines, ""])
    print(text)
    print("written:", records.write_result("unknown", environment, text))


if __name__ == "__main__":
    records.run(main)
