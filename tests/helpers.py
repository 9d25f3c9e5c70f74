"""Shared by the tests: small datasets and photos, and the command line as a user calls it."""

import contextlib
import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageDraw
from torch import nn

import gingham
from gingham.data.idx import IDX_FILES
from gingham.data.splits import DataSplits
from gingham.io import LOCK_FILE
from gingham.models.classifier import Classifier
from gingham.models.registry import build_classifier
from gingham.recipe import Recipe
from gingham.runs.run import Run
from gingham.training.batches import Batch
from gingham.training.options import FitOptions

ROOT = Path(__file__).resolve().parent.parent


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def make_dataset(
    folder: Path, train: int = 300, test: int = 80, classes: int = 4, side: int = 28, seed: int = 0
) -> Path:
    """Write four IDX files of noisy images with one bright quadrant per class, which are learned in an epoch or two."""
    random = np.random.RandomState(seed)
    half = side // 2
    corners = [(0, 0), (0, half), (half, 0), (half, half)]
    for count, (images_name, labels_name) in ((train, IDX_FILES[:2]), (test, IDX_FILES[2:])):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = random.randint(0, 90, (count, side, side)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = corners[label]
            image[row : row + half, column : column + half] += 140
        write_idx(folder / images_name, images)
        write_idx(folder / labels_name, labels)
    return folder


def fit(recipe: Recipe, data: DataSplits, folder: Path | None = None, *, resume: bool = False, **options: Any) -> Run:
    """Train on a dataset without progress; `options` are those of FitOptions."""
    return gingham.fit(
        recipe, data.train, data.validation, folder=folder, resume=resume, progress=False, options=FitOptions(**options)
    )


def train_arguments(data: Path, epochs: float) -> tuple[object, ...]:
    """Return the arguments of a short `gingham train` of the article's recipe into the folder `run`."""
    settings = ("--epochs", epochs, "--set", "validation_images=40")
    return ("train", "--recipe", "article", "--data", data, *settings, "--out", "run")


def locked_by_another(folder: Path) -> FileLock:
    """Lock a folder as another process would: `gingham.io.locked` lets a thread in again."""
    return FileLock(folder / LOCK_FILE)


class CommandResult:
    """How a command ended: its exit code and what it printed."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


class Command:
    """Runs `gingham` as a user does, in its own folder: in this process, or with `process=True` in a new one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, code: int = 0, process: bool = False) -> CommandResult:
        done = self.start(*arguments) if process else self.call(*arguments)
        assert done.code == code, f"exit {done.code}, not {code}\n{done.stdout}\n{done.stderr}"
        if code == 2:
            assert done.stdout == ""
            assert done.stderr.startswith("gingham: ")
            assert done.stderr.count("\n") == 1, f"more than one line: {done.stderr}"
        return done

    def call(self, *arguments: object) -> CommandResult:
        from gingham.cli.app import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(list(map(str, arguments)))
            except SystemExit as stop:
                return CommandResult(stop.code, out.getvalue(), err.getvalue())
        raise AssertionError("main always exits")

    def start(self, *arguments: object) -> CommandResult:
        line = [sys.executable, "-m", "gingham", *map(str, arguments)]
        done = subprocess.run(line, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        return CommandResult(done.returncode, done.stdout, done.stderr)


SHIRT = [
    (30, 20),
    (70, 20),
    (98, 45),
    (88, 60),
    (76, 52),
    (76, 100),
    (24, 100),
    (24, 52),
    (12, 60),
    (2, 45),
]  # of 100 by 120


def draw_garment_photo(colour, ground, size=(300, 400), scale=2.0, corner=(50, 80), texture=0.0):
    """Return a photo of a shirt on a background, and the mask of the shirt."""
    random = np.random.default_rng(0)
    there = Image.new("1", size)
    ImageDraw.Draw(there).polygon([(corner[0] + scale * x, corner[1] + scale * y) for x, y in SHIRT], fill=1)
    mask = np.asarray(there)
    pixels = np.where(mask[..., None], np.array(colour, float), np.array(ground, float))
    pixels = pixels + random.normal(0, texture, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), mask


COLOURS_AND_BACKGROUNDS = [
    ((40, 60, 120), (255, 255, 255)),  # dark on white
    ((230, 230, 225), (60, 30, 20)),  # light on dark
    ((200, 40, 40), (150, 150, 150)),  # a colour as bright as the background
    ((120, 120, 120), (200, 180, 150)),
    ((20, 20, 20), (90, 120, 70)),
    ((243, 243, 243), (255, 255, 255)),  # white on white
]


def reference_article():
    """Return the network that the article describes, written layer by layer, to compare ours with."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, bias=False), nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False), nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False), nn.ReLU(),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(64, 32, 1, bias=False), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(),
        nn.Conv2d(32, 32, 3, bias=False), nn.ReLU(),
        nn.Conv2d(32, 10, 1, bias=False), nn.ReLU(),
        nn.Conv2d(10, 10, 7, bias=False),
        nn.Flatten(), nn.LogSoftmax(1),
    )  # fmt: skip


def fresh_model(recipe: Recipe, seed: int = 0) -> Classifier:
    """Return the recipe's model for ten classes of grey 28x28 images, freshly initialised, in training mode."""
    torch.manual_seed(seed)
    return build_classifier(
        recipe.network, list("abcdefghij"), (1, 28, 28), recipe.mean, recipe.std, recipe.tta
    ).train()


def random_batch(count: int = 12, seed: int = 0, **tensors: torch.Tensor) -> Batch:
    """Return a batch of random images and labels for `fresh_model`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(10, (count,), generator=generator), **tensors)


def read_pixels(path):
    """Return the pixels of a PNG file, uint8 (H, W, 3)."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def contact_sheet_arguments(data):
    """Return the arguments of `draw_contact_sheet` for a dataset."""
    return data.train.images, data.train.labels, data.classes, "quadrants"
