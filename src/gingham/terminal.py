"""What all commands share: their common options, and how they print, say and load."""

import json
import os
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.errors import DataError, GinghamError
from gingham.recipe import Recipe

if TYPE_CHECKING:
    from gingham.datasets import Data, Split
    from gingham.models import NetworkFactory
    from gingham.storage import Run

STARTED = time.time()

DEFAULT_DATA = "fashion-mnist"
DATA_HELP = (
    "A dataset's name (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced, cifar-10, ...), a folder with a folder of pictures "
    "for each class, a .csv of paths and labels, a .npz file, or a folder of IDX files."
)
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out image files that cannot be read, and say so, in place of an error.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout, and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; auto takes the GPU where there is one.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="package.module:Class", help="A network of your own, importable from here, in place of the recipe's."),
]


def factory_of(model: str | None) -> "NetworkFactory | None":
    """Return the class that --model names, if it was given."""
    if model is None:
        return None
    from gingham.catalogue import import_network

    return import_network(model)


def process_start() -> float:
    """When this process began, in seconds since the epoch: before Python read its first import."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        start = time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return STARTED
    return start if 0 <= STARTED - start < 60 else STARTED  # a container may show another machine's uptime


def say(text: str) -> None:
    """Print to stderr, where everything goes that is not a result."""
    print(text, file=sys.stderr)


def say_notes(data: "Data") -> None:
    """Print what loading data has to tell, a line each."""
    for note in data.notes:
        say(note)


def suited(recipe: Recipe, images: int, given: Collection[str]) -> Recipe:
    """Return the recipe as it suits that many training pictures, and say so; unless one of the fields that change was given."""
    few = recipe.for_few(images)
    changed = [name for name in ("batch_size", "epochs", "hard_share") if getattr(few, name) != getattr(recipe, name)]
    if not changed or {"batch_size", "epochs", "hard_share"} & set(given):
        return recipe
    now = ", ".join(f"{name} {getattr(few, name):g}" for name in changed)
    before = ", ".join(f"{getattr(recipe, name):g}" for name in changed)
    say(f"{images:,} training pictures are few for {recipe.name}: {now} in place of {before} (set any of these, and all stay)")
    return few


def print_json(value: object) -> None:
    """Print one JSON value to stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def print_pairs(*pairs: tuple[str, object]) -> None:
    """Print labels and texts in two columns."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label:<{width}}  {text}")


def seconds(value: float | None) -> str:
    """Return seconds as text, `-` where they are not known."""
    return "-" if value is None else f"{value:.1f} s"


def times(number: int) -> str:
    """Return how often, in words."""
    return "once" if number == 1 else f"{number} times"


def drawn(draw: Callable[..., Path], *what: Any) -> str | None:
    """Draw a figure beside a result: where it cannot be written the result still counts, and stderr says why."""
    try:
        return str(draw(*what))
    except GinghamError as error:
        say(f"gingham: no figure: {error}")
        return None


def data_of(run: "Run", folder: Path, data: str | None = None, held_out: int | None = None) -> "Data":
    """Return what a run was trained on, as it was, or other data of its classes.

    Raises
        DataError: the data is not known or has changed since.
    """
    from gingham.datasets import load_data

    name = data or run.data.get("name")
    if not isinstance(name, str):
        raise DataError(f"{folder} does not say what it was trained on; give --data with a name or a place")
    # A folder of IDX files has numbers for classes; here they are the model's.
    _, height, width = run.model.input_shape
    source = load_data(
        name,
        run.recipe.validation_images if held_out is None else held_out,
        run.model.classes,
        # Other pictures are made as large as those the model knows.
        size=run.recipe.size if data is None or height != width else height,
        skip_unreadable=run.data.get("skip_unreadable") is True,
    )
    if data is None and source.fingerprint != run.data.get("fingerprint"):
        raise DataError(
            f"{name} has changed since {folder} was trained on it, so its splits may overlap with what was trained on; "
            f"restore it, or say --data {name} to measure on it as it is now"
        )
    if data is None and held_out is None and len(source.validation or ()) != run.recipe.validation_images:
        raise DataError(
            f"{folder} held out {run.recipe.validation_images} pictures of {name} for validation, where {len(source.validation or ())} "
            "are held out now; train again, or use --split test"
        )
    return source


def require_split(split: str) -> None:
    """Raise a GinghamError for anything but validation and test."""
    if split not in ("validation", "test"):
        raise GinghamError(f"--split got {split!r}; allowed: validation, test")


def split_of(run: "Run", folder: Path, data: str | None, split: str) -> "Split":
    """Return the split of that name that a run is to be measured on.

    Raises
        GinghamError: no such split, or the run held no pictures out for validation.
    """
    require_split(split)
    if split == "validation" and run.recipe.validation_images == 0:
        raise DataError(
            f"{folder} held no pictures out for validation (recipe {run.recipe.name}, validation_images=0); "
            f"use --split test, or train with --set validation_images=5000"
        )
    source = data_of(run, folder, data, None if split == "validation" else 0)
    chosen = source.test if split == "test" else source.validation
    if chosen is None:
        raise DataError(f"{source.name} has too few pictures to hold some out for validation; use --split test")
    return chosen
