"""Turn what the user named (a run folder, a network, a split) into the object."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gingham.cli.output import print_message
from gingham.errors import DataError, GinghamError, ModelError, suggest
from gingham.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from gingham.data.splits import Split
    from gingham.models.registry import NetworkFactory
    from gingham.runs.run import Run


def network_factory(model: str | None) -> "NetworkFactory | None":
    """Return the class that --model names, if it was given."""
    if model is None:
        return None
    from gingham.models.registry import import_network

    return import_network(model)


def load_run_or_packaged(run: Path | None, model: str | None) -> "Run":
    """Return the run in a folder, or the model that comes in the package where none is named.

    Raises
        GinghamError: --model without --run.
    """
    if model is not None and run is None:
        raise GinghamError("--model is for a run of your own network; give --run too")
    from gingham.inference.packaged_model import load_packaged
    from gingham.runs.run import load

    return load_packaged() if run is None else load(run, network_factory(model))


def load_named_run(run: Path, model: str | None = None) -> "Run":
    """Return the run in a folder; by the name `packaged`, unless there is such a folder, the model that comes in the package."""
    from gingham.inference.packaged_model import load_packaged
    from gingham.runs.run import load

    return load_packaged() if str(run) == "packaged" and not run.exists() else load(run, network_factory(model))


def load_teacher_runs(folders: Sequence[Path], given: Collection[str]) -> "list[Run]":
    """Return the runs that --teacher names; `given` are the fields of the recipe that were set.

    Raises
        GinghamError: one of them is no run, or a field was set that means something only with a teacher.
    """
    if not folders and (deaf := sorted({"distillation_weight", "distillation_temperature"} & set(given))):
        raise GinghamError(f"{deaf[0]} is set and there is no teacher; name one with --teacher RUN, or leave {deaf[0]} out")
    try:
        return [load_named_run(folder) for folder in folders]
    except GinghamError as error:
        raise GinghamError(f"--teacher: {error}") from error


def load_training_images(loaded: "Run", run: Path | None) -> "Split | None":
    """Return what a run was trained on, to find the pictures most like another; None, and why on stderr, where it is not at hand."""
    from gingham.data.registry import REGISTRY, find_dataset_dir
    from gingham.evaluation.run_data import load_run_data

    name = loaded.data.get("name")
    if name in REGISTRY and find_dataset_dir(str(name)) is None:  # nothing is downloaded for them
        print_message(
            f"gingham: without the nearest training pictures: {name} is not on this machine (gingham show {name} gets it)"
        )
        return None
    try:
        return load_run_data(loaded, run).train
    except GinghamError as error:
        print_message(f"gingham: without the nearest training pictures: {error}")
        return None


def adapt_to_size(recipe: Recipe, images: int, given: Collection[str]) -> Recipe:
    """Return the recipe as it suits that many training pictures, and say so; unless one of the fields that change was given."""
    few = recipe.for_small_dataset(images)
    changed = [name for name in ("batch_size", "epochs", "hard_share") if getattr(few, name) != getattr(recipe, name)]
    if not changed or {"batch_size", "epochs", "hard_share"} & set(given):
        return recipe
    now = ", ".join(f"{name} {getattr(few, name):g}" for name in changed)
    before = ", ".join(f"{getattr(recipe, name):g}" for name in changed)
    print_message(
        f"{images:,} training pictures are few for {recipe.name}: {now} in place of {before} (set any of these, and all stay)"
    )
    return few


def require_split(split: str) -> None:
    """Raise a GinghamError for anything but validation and test."""
    if split not in ("validation", "test"):
        raise GinghamError(f"--split got {split!r}; allowed: validation, test")


def load_split(run: "Run", folder: Path, data: str | None, split: str) -> "Split":
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
    from gingham.evaluation.run_data import load_run_data

    source = load_run_data(run, folder, data, None if split == "validation" else 0)
    chosen = source.test if split == "test" else source.validation
    if chosen is None:
        raise DataError(f"{source.name} has too few pictures to hold some out for validation; use --split test")
    return chosen


def find_network(
    model: str, shape: tuple[int, int, int] | None = None, factory: "NetworkFactory | None" = None
) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Return a network and the picture shape (C, H, W) it is for, where none is asked for.

    `model` is the name of one of gingham's networks, the folder of a run, `torchvision:NAME` (without its weights), or
    `package.module:Class`. A run of a network of one's own needs its `factory`.

    Raises
        ModelError: there is no such network, or it cannot be made.
        RunError: the run cannot be loaded.
    """
    from gingham.models.networks import NETWORKS
    from gingham.models.registry import create_network, import_network, torchvision_network
    from gingham.runs.run import load

    if model in NETWORKS:
        return create_network(model, None, shape[0] if shape else 1), (1, 28, 28)
    if model.startswith("torchvision:"):
        return torchvision_network(model.removeprefix("torchvision:")), (3, 224, 224)
    if model and Path(model).is_dir():
        loaded = load(model, factory).model
        return loaded.network, loaded.input_shape
    if ":" in model:
        return create_network(model, import_network(model), shape[0] if shape else 1), (1, 28, 28)
    raise ModelError(f"unknown model {model!r}{suggest(model, NETWORKS)}, a run folder, torchvision:NAME, package.module:Class")
