"""Turn names on the command line (a run folder, a network, a split) into objects."""

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
    """Return the class that --model names, or None if it is not given."""
    if model is None:
        return None
    from gingham.models.registry import import_network

    return import_network(model)


def load_run_or_packaged(run: Path | None, model: str | None) -> "Run":
    """Return the run in a folder, or the packaged model if `run` is None.

    Raises
        GinghamError: --model without --run.
    """
    if model is not None and run is None:
        raise GinghamError("--model is for a run of your own network; give --run too")
    from gingham.inference.packaged_model import load_packaged
    from gingham.runs.run import load

    return load_packaged() if run is None else load(run, network_factory(model))


def load_named_run(run: Path, model: str | None = None) -> "Run":
    """Return the run in a folder, or the packaged model for the name `packaged` if no folder has this name."""
    from gingham.inference.packaged_model import load_packaged
    from gingham.runs.run import load

    return load_packaged() if str(run) == "packaged" and not run.exists() else load(run, network_factory(model))


def load_teacher_runs(folders: Sequence[Path], changes: Collection[str]) -> "list[Run]":
    """Return the runs that --teacher names; `changes` are the fields of the recipe that the user set.

    Raises
        GinghamError: one of them is no run, or a field was set that needs a teacher.
    """
    if not folders and (unused := sorted({"distillation_weight", "distillation_temperature"} & set(changes))):
        raise GinghamError(
            f"{unused[0]} is set and there is no teacher; name one with --teacher RUN, or leave {unused[0]} out"
        )
    try:
        return [load_named_run(folder) for folder in folders]
    except GinghamError as error:
        raise GinghamError(f"--teacher: {error}") from error


def load_training_images(trained: "Run", run: Path | None) -> "Split | None":
    """Return a run's training split, to find the nearest images in it; if it is not available, print why and return None."""
    from gingham.data.registry import REGISTRY, find_dataset_dir
    from gingham.evaluation.run_data import load_run_data

    name = trained.data.get("name")
    if name in REGISTRY and find_dataset_dir(str(name)) is None:  # nearest images are not worth a download
        print_message(
            f"gingham: without the nearest training pictures: {name} is not on this machine (gingham show {name} gets "
            "it)"
        )
        return None
    try:
        return load_run_data(trained, run).train
    except GinghamError as error:
        print_message(f"gingham: without the nearest training pictures: {error}")
        return None


def adapt_to_size(recipe: Recipe, count: int, changes: Collection[str]) -> Recipe:
    """Adapt a recipe to few training images and print how, unless the user set one of the fields that would change."""
    adapted = recipe.for_small_dataset(count)
    changed = [
        name for name in ("batch_size", "epochs", "hard_share") if getattr(adapted, name) != getattr(recipe, name)
    ]
    if not changed or {"batch_size", "epochs", "hard_share"} & set(changes):
        return recipe
    new = ", ".join(f"{name} {getattr(adapted, name):g}" for name in changed)
    old = ", ".join(f"{getattr(recipe, name):g}" for name in changed)
    print_message(
        f"{count:,} training pictures are few for {recipe.name}: {new} in place of {old} (set any of these, and all "
        "stay)"
    )
    return adapted


def require_split(split: str) -> None:
    """Raise a GinghamError unless the split is validation or test."""
    if split not in ("validation", "test"):
        raise GinghamError(f"--split got {split!r}; allowed: validation, test")


def load_split(trained: "Run", folder: Path, data: str | None, split: str) -> "Split":
    """Return the split of this name to evaluate a run on.

    Raises
        GinghamError: the split is unknown, or the run held out no images for validation.
    """
    require_split(split)
    if split == "validation" and trained.recipe.validation_images == 0:
        raise DataError(
            f"{folder} held no pictures out for validation (recipe {trained.recipe.name}, validation_images=0); "
            f"use --split test, or train with --set validation_images=5000"
        )
    from gingham.evaluation.run_data import load_run_data

    splits = load_run_data(trained, folder, data, None if split == "validation" else 0)
    selected = splits.test if split == "test" else splits.validation
    if selected is None:
        raise DataError(f"{splits.name} has too few pictures to hold some out for validation; use --split test")
    return selected


def find_network(
    model: str, shape: tuple[int, int, int] | None = None, factory: "NetworkFactory | None" = None
) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Return a network and its default input shape (C, H, W).

    `model` is the name of one of gingham's networks, the folder of a run, `torchvision:NAME` (without its weights), or
    `package.module:Class`. A run of your own network needs its class as `factory`.

    Raises
        ModelError: there is no such network, or it cannot be built.
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
        classifier = load(model, factory).model
        return classifier.network, classifier.input_shape
    if ":" in model:
        return create_network(model, import_network(model), shape[0] if shape else 1), (1, 28, 28)
    raise ModelError(
        f"unknown model {model!r}{suggest(model, NETWORKS)}, a run folder, torchvision:NAME, package.module:Class"
    )
