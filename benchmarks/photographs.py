"""How good are runs on photographs? On some made from the dataset's own pictures, and on folders of real ones.

    python benchmarks/photographs.py                                   # the packaged model
    python benchmarks/photographs.py packaged runs/fast-0 --photos ~/photographs

Photographs are made from validation pictures, enlarged, positive again and coloured: `product` on white, framed, a third of
them squeezed from 3:4 to a square; `floor` on creased cloth or boards, turned, unevenly lit. Real ones lie in a folder a class; no run
was trained on any. Beside what `gingham predict` prepares, what simple preparations get. Writes
benchmarks/results/photographs-<hardware>-<date>.md.
"""

import argparse
import statistics
import time
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
from gingham.inference.predict import mean_probabilities, preprocess
from gingham.inference.preprocess import PreparedPhoto, open_photo
from gingham.runs.run import Run

Picture = npt.NDArray[Any]  # OpenCV's type hints know no more
SIDE = 280


def product(picture: Picture, random: np.random.Generator) -> Image.Image:
    """A dataset's picture, uint8 (28, 28), as a catalogue shows it: in a colour, on white, framed, maybe squeezed."""
    garment, there = _enlarged(picture, random)
    height, width = random.integers(300, 420, 2)
    photo = _laid(garment, there, np.full((height, width, 3), 255.0), random)
    if random.random() < 0.33:
        photo = cv2.resize(photo, (width, int(height * 0.75)))
    return _as_image(photo + random.normal(0, 2, photo.shape))


def floor(picture: Picture, random: np.random.Generator) -> Image.Image:
    """A dataset's picture, uint8 (28, 28), as a phone sees it on a bed or a floor: turned, on a texture, unevenly lit."""
    garment, there = _enlarged(picture, random)
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), random.uniform(-15, 15), random.uniform(0.8, 1))
    garment = cv2.warpAffine(garment, turn, (SIDE, SIDE), borderValue=(255, 255, 255))
    there = cv2.warpAffine(there.astype(np.uint8), turn, (SIDE, SIDE)) > 0
    height, width = random.integers(320, 460, 2)
    colour = random.uniform(60, 230, 3)
    if random.random() < 0.5:  # boards
        lines = (np.arange(width) // random.integers(30, 70)) % 2 * random.uniform(5, 25)
        ground = np.broadcast_to(colour + lines[None, :, None], (height, width, 3))
    else:  # creased cloth
        creases = cv2.resize(random.normal(0, 1, (9, 9)), (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        ground = colour + creases[..., None] * random.uniform(4, 14)
    photo = _laid(garment, there, ground, random)
    light = np.linspace(random.uniform(0.7, 1), random.uniform(0.7, 1), width)[None, :, None]
    return _as_image(photo * light + random.normal(0, 4, photo.shape))


def _enlarged(picture: Picture, random: np.random.Generator) -> tuple[Picture, npt.NDArray[np.bool_]]:
    large = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(float)
    there = cv2.resize((picture > 10).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) > 0.5
    if random.random() < 0.5:
        large, there = large[:, ::-1], there[:, ::-1]
    return np.ascontiguousarray((255 - large)[..., None] * random.uniform(0.5, 1, 3)), np.ascontiguousarray(there)


def _laid(garment: Picture, there: npt.NDArray[np.bool_], ground: Picture, random: np.random.Generator) -> Picture:
    photo = np.array(ground)
    top, left = (int(random.integers(0, size - SIDE + 1)) for size in photo.shape[:2])
    part = photo[top : top + SIDE, left : left + SIDE]
    part[there] = garment[there]
    return photo


def _as_image(photo: Picture) -> Image.Image:
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8))


KINDS: dict[str, Callable[[Picture, np.random.Generator], Image.Image]] = {"product": product, "floor": floor}


def make(kind: str, each: int) -> tuple[list[Image.Image], torch.Tensor]:
    """Return `each` photographs of a class, made from validation pictures, and their labels, int64 (N,)."""
    split = gingham.load_data().validation
    assert split is not None
    random = np.random.default_rng(0)
    chosen = torch.cat([(split.labels == k).nonzero().flatten()[:each] for k in range(len(split.classes))])
    return [KINDS[kind](split.images[k, 0].numpy(), random) for k in chosen], split.labels[chosen]


SIMPLE = ("shrunk only", "shrunk, negative", "cropped at its border, negative, padded")


def simply(image: Image.Image, way: str) -> Picture:
    """A photograph prepared as simple programs do, uint8 (1, 28, 28)."""
    grey = np.asarray(image.convert("L"))
    if way.startswith("cropped"):
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        differs = np.abs(grey.astype(int) - int(np.median(border))) > 30
        if differs.any():
            rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
            grey = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        side = max(grey.shape)
        square = np.full((side, side), int(np.median(border)), np.uint8)
        top, left = (side - grey.shape[0]) // 2, (side - grey.shape[1]) // 2
        square[top : top + grey.shape[0], left : left + grey.shape[1]] = grey
        grey = square
    small = cv2.resize(grey, (28, 28), interpolation=cv2.INTER_AREA)
    return (small if way == SIMPLE[0] else 255 - small)[None]


def balanced(run: Run, prepared: list[PreparedPhoto], labels: torch.Tensor) -> str:
    """The balanced accuracy, the share not sure and, of the others, the share of wrong answers, as cells of a table."""
    confidence, answered = mean_probabilities(run.model, prepared).max(dim=1)
    right, sure = (answered == labels).double(), confidence >= run.model.threshold
    accuracy = statistics.fmean(float(right[labels == k].mean()) for k in set(labels.tolist()))
    wrong = f"{1 - float(right[sure].mean()):.1%}" if bool(sure.any()) else "-"
    return f"{accuracy:.1%} | {1 - float(sure.double().mean()):.1%} | {wrong}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--photos", nargs="*", type=Path, default=[], help="folders with a folder of photographs a class")
    parser.add_argument("--each", type=int, default=40, help="photographs made a class")
    arguments = parser.parse_args()
    commit = records.clean_commit()
    runs: dict[str, Run] = {
        str(name): load_packaged() if str(name) == "packaged" else gingham.load(name) for name in arguments.runs or ["packaged"]
    }
    first = next(iter(runs.values()))
    known = {normalize_class_name(label): k for k, label in enumerate(first.model.classes)}
    sets = {f"made: {kind}": make(kind, arguments.each) for kind in KINDS}
    for folder in arguments.photos:
        entries = list_images(folder).entries
        labels = torch.tensor([known[normalize_class_name(entry.label)] for entry in entries])
        sets[f"photographs: {folder.name}"] = ([open_photo(entry.file) for entry in entries], labels)
    rows, times = [], list[float]()
    for title, (images, labels) in sets.items():
        prepared = []
        for image in images:
            started = time.perf_counter()
            prepared.append(preprocess(first, image, "photo"))
            times.append(time.perf_counter() - started)
        ways = {"as predict does": prepared}
        ways |= {way: [PreparedPhoto(simply(image, way)[None], ()) for image in images] for way in SIMPLE}
        for name, run in runs.items():
            rows += [f"| {title} | {len(images)} | {name} | {way} | {balanced(run, ways[way], labels)} |" for way in ways]
    environment = describe_environment(torch.device("cpu"))
    text = "\n".join(
        [
            "# Photographs",
            "",
            f"Command: `python benchmarks/photographs.py {' '.join(map(str, runs))}`, commit {commit[:12]}.",
            f"Hardware: {environment['hardware']}; torch {environment['torch']}. One seed a run.",
            f"Preparing a photograph took {1000 * statistics.median(times):.0f} ms, the median of {len(times)}.",
            "",
            "| photographs | how many | run | prepared | balanced accuracy | not sure | wrong of the sure |",
            "| --- | ---: | --- | --- | ---: | ---: | ---: |",
            *rows,
            "",
        ]
    )
    print(text)
    print("written:", records.write_result("photographs", environment, text))


if __name__ == "__main__":
    main()
