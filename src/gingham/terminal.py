"""What all commands share: their common options, and how they print, say and load."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.errors import DataError, GinghamError, sentence
from gingham.recipe import Recipe

if TYPE_CHECKING:
    from gingham.datasets import Data, Split
    from gingham.models import NetworkFactory
    from gingham.storage import Run

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # that nobody sets, unlike the time of day
STARTED = time.clock_gettime(CLOCK)

DEFAULT_DATA = "fashion-mnist"
DATA_HELP = (
    "A dataset's name (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced, cifar-10, ...), a folder with a folder of pictures "
    "for each class, a .csv of paths and labels, a .npz file, or a folder of IDX files."
)
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out image files that cannot be read, and say so, in place of an error.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout, and nothing else.")]
RunFolder = Annotated[Path | None, typer.Option(help="A run folder; the model that comes with Gingham unless told.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; auto takes the GPU where there is one.")]
Teacher = Annotated[
    list[Path] | None,
    typer.Option(metavar="RUN", help="A run, trained on the same split, whose answers are learned too; may be repeated."),
]
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


def run_or_packaged(run: Path | None, model: str | None) -> "Run":
    """Return the run in a folder, or the model that comes in the package where none is named.

    Raises
        GinghamError: --model without --run.
    """
    if model is not None and run is None:
        raise GinghamError("--model is for a run of your own network; give --run too")
    from gingham.prediction import load_packaged
    from gingham.storage import load

    return load_packaged() if run is None else load(run, factory_of(model))


def named_run(run: Path, model: str | None = None) -> "Run":
    """Return the run in a folder; by the name `packaged`, unless there is such a folder, the model that comes in the package."""
    from gingham.prediction import load_packaged
    from gingham.storage import load

    return load_packaged() if str(run) == "packaged" and not run.exists() else load(run, factory_of(model))


def teachers_named(folders: Sequence[Path], given: Collection[str]) -> "list[Run]":
    """Return the runs that --teacher names; `given` are the fields of the recipe that were set.

    Raises
        GinghamError: one of them is no run, or a field was set that means something only with a teacher.
    """
    if not folders and (deaf := sorted({"teacher_share", "teacher_temperature"} & set(given))):
        raise GinghamError(f"{deaf[0]} is set and there is no teacher; name one with --teacher RUN, or leave {deaf[0]} out")
    try:
        return [named_run(folder) for folder in folders]
    except GinghamError as error:
        raise GinghamError(f"--teacher: {error}") from error


def training_pictures(loaded: "Run", run: Path | None) -> "Split | None":
    """Return what a run was trained on, to find the pictures most like another; None, and why on stderr, where it is not at hand."""
    from gingham.evaluation import data_of
    from gingham.published import NAMED, locate

    name = loaded.data.get("name")
    if name in NAMED and locate(str(name)) is None:  # nothing is downloaded for them
        say(f"gingham: without the nearest training pictures: {name} is not on this machine (gingham show {name} gets it)")
        return None
    try:
        return data_of(loaded, run).train
    except GinghamError as error:
        say(f"gingham: without the nearest training pictures: {error}")
        return None


def wall_seconds() -> float:
    """Return the seconds since this process began, before Python read its first import; by a clock that nobody sets."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        start = ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        start = STARTED
    if not 0 <= STARTED - start < 60:  # a container may show another machine's times
        start = STARTED
    return time.clock_gettime(CLOCK) - start


def say(text: str) -> None:
    """Print to stderr, where everything goes that is not a result; of processes that train together the first speaks for all."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        return
    with contextlib.suppress(OSError):  # a disk that is full must not end what goes well
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
    """Print labels and texts in two columns; what a file says of itself may be among them, and is kept from the terminal."""
    width = max(len(label) for label, _ in pairs)
    for label, text in pairs:
        print(f"{label:<{width}}  {sentence(str(text))}")


def seconds(value: float | None) -> str:
    """Return seconds as text, `-` where they are not known."""
    return "-" if value is None else f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


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
    from gingham.evaluation import data_of

    source = data_of(run, folder, data, None if split == "validation" else 0)
    chosen = source.test if split == "test" else source.validation
    if chosen is None:
        raise DataError(f"{source.name} has too few pictures to hold some out for validation; use --split test")
    return chosen
