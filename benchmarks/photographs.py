"""Measure the accuracy of runs on photos: on some made from the dataset's images, and on folders of real ones.

    python benchmarks/photographs.py                                   # the packaged model
    python benchmarks/photographs.py packaged runs/fast-0 --photos ~/photographs

Photos are made from validation images, enlarged, inverted and coloured: `product` on white with a margin, a third of
them squeezed from 3:4 to a square; `floor` on creased cloth or boards, rotated, unevenly lit. Real photos are in a
folder per class; no run was trained on any. Compares the preparation of `gingham predict` with simple ones. Writes
benchmarks/results/photographs-<hardware>-<date>.md.
"""

import argparse
import statistics
import time
from collections import Counter
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
from gingham.data.image_files import list_images
from gingham.device import describe_environment
from gingham.inference.evaluate_photos import normalize_class_name
from gingham.inference.packaged_model import load_packaged
from gingham.inference.predict import preprocess, score_prepared
from gingham.inference.preprocess import PreparedPhoto, open_photo
from gingham.runs.run import Run

Array = npt.NDArray[Any]  # OpenCV's type hints are no more precise
SIDE = 280


def product(image: Array, random: np.random.Generator) -> Image.Image:
    """Return an image, uint8 (28, 28), as a catalogue photo: coloured, on white, with a margin, sometimes squeezed."""
    garment, mask = _enlarge(image, random)
    height, width = random.integers(300, 420, 2)
    photo = _paste(garment, mask, np.full((height, width, 3), 255.0), random)
    if random.random() < 0.33:
        photo = cv2.resize(photo, (width, int(height * 0.75)))
    return _to_image(photo + random.normal(0, 2, photo.shape))


def floor(image: Array, random: np.random.Generator) -> Image.Image:
    """Return an image, uint8 (28, 28), as a phone's photo on a bed or a floor: rotated, on a texture, unevenly lit."""
    garment, mask = _enlarge(image, random)
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), random.uniform(-15, 15), random.uniform(0.8, 1))
    garment = cv2.warpAffine(garment, turn, (SIDE, SIDE), borderValue=(255, 255, 255))
    mask = cv2.warpAffine(mask.astype(np.uint8), turn, (SIDE, SIDE)) > 0
    height, width = random.integers(320, 460, 2)
    colour = random.uniform(60, 230, 3)
    if random.random() < 0.5:  # boards
        lines = (np.arange(width) // random.integers(30, 70)) % 2 * random.uniform(5, 25)
        background = np.broadcast_to(colour + lines[None, :, None], (height, width, 3))
    else:  # creased cloth
        creases = cv2.resize(random.normal(0, 1, (9, 9)), (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        background = colour + creases[..., None] * random.uniform(4, 14)
    photo = _paste(garment, mask, background, random)
    light = np.linspace(random.uniform(0.7, 1), random.uniform(0.7, 1), width)[None, :, None]
    return _to_image(photo * light + random.normal(0, 4, photo.shape))


def _enlarge(image: Array, random: np.random.Generator) -> tuple[Array, npt.NDArray[np.bool_]]:
    large = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(float)
    mask = cv2.resize((image > 10).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) > 0.5
    if random.random() < 0.5:
        large, mask = large[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray((255 - large)[..., None] * random.uniform(0.5, 1, 3)), np.ascontiguousarray(mask)


def _paste(garment: Array, mask: npt.NDArray[np.bool_], background: Array, random: np.random.Generator) -> Array:
    photo = np.array(background)
    top, left = (int(random.integers(0, size - SIDE + 1)) for size in photo.shape[:2])
    part = photo[top : top + SIDE, left : left + SIDE]
    part[mask] = garment[mask]
    return photo


def _to_image(photo: Array) -> Image.Image:
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[Array, np.random.Generator], Image.Image]] = {"product": product, "floor": floor}


def make(kind: str, each: int) -> tuple[list[Image.Image], torch.Tensor]:
    """Return `each` photos of every class, made from validation images, and their labels, int64 (N,)."""
    split = gingham.load_data().validation
    assert split is not None
    random = np.random.default_rng(0)
    chosen = torch.cat([(split.labels == k).nonzero().flatten()[:each] for k in range(len(split.classes))])
    return [KINDS[kind](split.images[k, 0].numpy(), random) for k in chosen], split.labels[chosen]


SIMPLE = ("shrunk only", "shrunk, negative", "cropped at its border, negative, padded")


def prepare_simply(image: Image.Image, method: str) -> Array:
    """Prepare a photo as simple programs do, uint8 (1, 28, 28)."""
    grey = np.asarray(image.convert("L"))
    if method.startswith("cropped"):
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        foreground = np.abs(grey.astype(int) - int(np.median(border))) > 30
        if foreground.any():
            rows, columns = np.flatnonzero(foreground.any(axis=1)), np.flatnonzero(foreground.any(axis=0))
            grey = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = max(grey.shape)
        square = np.full((side, side), int(np.median(border)), np.uint8)
        top, left = (side - grey.shape[0]) // 2, (side - grey.shape[1]) // 2
        square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
        grey = square
    small = cv2.resize(grey, (28, 28), interpolation=cv2.INTER_AREA)
    return (small if method == SIMPLE[0] else 255 - small)[None]


def accuracy_cells(run: Run, prepared: list[PreparedPhoto], labels: torch.Tensor) -> str:
    """Return table cells: the balanced accuracy, the share not sure and the share wrong among the sure."""
    confidence, predicted = score_prepared(run.model, prepared)[:, :-1].max(dim=1)
    correct, confident = (predicted == labels).double(), confidence >= run.model.thresholds(for_photos=True)[0]
    accuracy = statistics.fmean(float(correct[labels == k].mean()) for k in set(labels.tolist()))
    wrong = f"{1 - float(correct[confident].mean()):.1%}" if bool(confident.any()) else "-"
    return f"{accuracy:.1%} | {1 - float(confident.double().mean()):.1%} | {wrong}"


def frequent_mistakes(run: Run, prepared: list[PreparedPhoto], labels: torch.Tensor, limit: int = 6) -> str:
    """Return the most frequent mistakes of a run, such as "pullover as coat 7 of 12", separated by commas."""
    predicted = score_prepared(run.model, prepared)[:, :-1].argmax(dim=1)
    pairs = Counter((t, p) for t, p in zip(labels.tolist(), predicted.tolist(), strict=True) if t != p)
    names, totals = run.model.classes, labels.bincount(minlength=len(run.model.classes)).tolist()
    return ", ".join(f"{names[t]} as {names[p]} {n} of {totals[t]}" for (t, p), n in pairs.most_common(limit))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--photos", nargs="*", type=Path, default=[], help="folders with a folder of photos per class")
    parser.add_argument("--each", type=int, default=40, help="photos to make per class")
    arguments = parser.parse_args()
    commit = records.clean_commit()
    runs: dict[str, Run] = {
        str(name): load_packaged() if str(name) == "packaged" else gingham.load(name)
        for name in arguments.runs or ["packaged"]
    }
    first = next(iter(runs.values()))
    known = {normalize_class_name(label): k for k, label in enumerate(first.model.classes)}
    sets = {f"made: {kind}": make(kind, arguments.each) for kind in KINDS}
    for folder in arguments.photos:
        entries = list_images(folder).entries
        labels = torch.tensor([known[normalize_class_name(entry.label)] for entry in entries])
        sets[f"photos: {folder.name}"] = ([open_photo(entry.path) for entry in entries], labels)
    rows, mistakes, times = [], list[str](), list[float]()
    for title, (images, labels) in sets.items():
        prepared = []
        for image in images:
            started = time.perf_counter()
            prepared.append(preprocess(first, image, "photo"))
            times.append(time.perf_counter() - started)
        methods = {"as predict does": prepared}
        methods |= {
            method: [PreparedPhoto(prepare_simply(image, method)[None], ()) for image in images] for method in SIMPLE
        }
        mistakes.append(f"- {title}: {frequent_mistakes(first, prepared, labels)}")
        for name, run in runs.items():
            rows += [
                f"| {title} | {len(images)} | {name} | {m} | {accuracy_cells(run, methods[m], labels)} |"
                for m in methods
            ]
    environment = describe_environment(torch.device("cpu"))
    folders = " ".join(["", "--photos", *(folder.name for folder in arguments.photos)]) if arguments.photos else ""
    text = "\n".join(
        [
            "# Photos",
            "",
            f"Command: `python benchmarks/photographs.py {' '.join(map(str, runs))}{folders}`, commit {commit[:12]}.",
            f"Hardware: {environment['hardware']}; torch {environment['torch']}. One seed per run.",
            f"Preparing a photo took {1000 * statistics.median(times):.0f} ms (median of {len(times)}).",
            "",
            "| photos | number | run | preparation | balanced accuracy | not sure | errors among the others |",
            "| --- | ---: | --- | --- | ---: | ---: | ---: |",
            *rows,
            "",
            f"The most frequent mistakes of {next(iter(runs))}, prepared as `gingham predict` does:",
            "",
            *mistakes,
            "",
        ]
    )
    print(text)
    print("written:", records.write_result("photographs", environment, text))


if __name__ == "__main__":
    records.run(main)
