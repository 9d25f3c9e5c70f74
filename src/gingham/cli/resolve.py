"""Turn names on the command line (a run folder, a network, a dataset) into objects."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gingham
from gingham.cli.output import print_message
from gingham.errors import DataError, GinghamError, ModelError, format_message, suggest
from gingham.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from gingham.models.registry import NetworkFactory


def network_factory(model: str | None) -> "NetworkFactory | None":
    """Return the class that --model names, or None if it is not given."""
    from gingham.models.registry import import_network

    return None if model is None else import_network(model)


def load_run_or_packaged(run: Path | None, model: str | None = None, device: str = "cpu") -> "gingham.Run":
    """Return the run in a folder, or the packaged model for None, or for `packaged` if there is no such folder.

    Raises
        GinghamError: --model with the packaged model, or there is no such device.
    """
    if run is not None and (str(run) != "packaged" or run.exists()):
        trained = gingham.load(run, network_factory(model))
    elif model is not None:
        raise GinghamError("--model is for a run with a network of your own; give --run too")
    else:
        trained = gingham.load_packaged()
    if device != "cpu":
        from gingham.device import choose_device

        trained.model.to(choose_device(device))
    return trained


def load_teacher_runs(folders: Sequence[Path] | None, changes: Mapping[str, Any]) -> "list[gingham.Run]":
    """Return the runs that --teacher names; `changes` are the fields of the recipe that the user set.

    Raises
        GinghamError: one of them is not a run, or a field was set that needs a teacher.
    """
    if not folders and (unused := sorted({"distillation_weight", "distillation_temperature"} & set(changes))):
        raise GinghamError(f"{unused[0]} is set but there is no teacher; give one with --teacher RUN, or leave it out")
    try:
        return [load_run_or_packaged(folder) for folder in folders or ()]
    except GinghamError as error:
        own = "a teacher with a network of your own works in Python: FitOptions(teachers=[gingham.load(RUN, CLASS)])"
        message = f"{str(error).partition(';')[0]}; {own}" if "--model" in str(error) else error
        raise GinghamError(f"--teacher: {message}") from error


def load_training_data(
    recipe: Recipe, data: str, reading: Mapping[str, Any], changes: Mapping[str, Any], out: Path, reason: str
) -> "tuple[Recipe, gingham.DataSplits]":
    """Return the data to train on and the recipe adapted to its size. Print the `reason` for the recipe, and notes.

    `reading` are further arguments of `load_data`.

    Raises
        DataError: see `load_data`; also if the run folder `out` is among the folders of classes.
    """
    from gingham.data.image_folder import require_outside_classes
    from gingham.data.load_data import is_image_collection

    if is_image_collection(Path(data)):
        require_outside_classes(out, Path(data))
    splits = gingham.load_data(data, recipe.validation_images, size=recipe.size, **reading)
    for note in filter(None, (reason, *splits.notes)):
        print_message(note)
    if "class_balance" not in changes:
        from gingham.training.checks import check_balance

        for issue in check_balance(splits.train):
            print_message(format_message(f"{issue.title}: {issue.evidence}; {issue.fix}"))
    return _adapt_to_size(recipe, len(splits.train), changes), splits


def _adapt_to_size(recipe: Recipe, count: int, changes: Mapping[str, Any]) -> Recipe:
    """Adapt a recipe to few training images and print how, unless the user set one of the fields that would change."""
    adapted, fields = recipe.for_small_dataset(count), ("batch_size", "epochs", "hard_share")
    changed = [name for name in fields if getattr(adapted, name) != getattr(recipe, name)]
    if not changed or set(fields) & set(changes):
        return recipe
    new = ", ".join(f"{name} {getattr(adapted, name):g}" for name in changed)
    old = ", ".join(f"{getattr(recipe, name):g}" for name in changed)
    print_message(
        f"{count:,} training images are few for {recipe.name}: {new} instead of {old} "
        "(set any of these to keep the recipe's own values)"
    )
    return adapted


def load_training_images(trained: "gingham.Run", run: Path | None) -> "gingham.Split | None":
    """Return a run's training split, to find the nearest images in it, or print why it is missing and return None."""
    from gingham.data.registry import REGISTRY, find_dataset_dir
    from gingham.evaluation.run_data import load_run_data

    name = trained.data.get("name")
    try:
        if name in REGISTRY and find_dataset_dir(str(name)) is None:  # not downloaded only for this
            raise DataError(f"{name} is not on this machine (gingham show {name} downloads it)")
        return load_run_data(trained, run).train
    except GinghamError as error:
        print_message(f"gingham: no nearest training images are shown: {error}")
        return None


def load_split(trained: "gingham.Run", folder: Path, data: str | None, split: str) -> "gingham.Split":
    """Return the split of this name to evaluate a run on.

    Raises
        DataError: no images are held out for validation.
    """
    from gingham.evaluation.run_data import load_run_data

    splits = load_run_data(trained, folder, data, None if split == "validation" else 0)
    selected = splits.test if split == "test" else splits.validation
    if selected is None:
        raise DataError(f"{folder} has no validation images of {splits.name}; use --split test")
    return selected


def find_network(
    model: str, shape: tuple[int, int, int] | None = None, model_class: str | None = None
) -> "tuple[nn.Module, tuple[int, int, int]]":
    """Return a network and its default input shape (C, H, W).

    `model` is the name of one of gingham's networks, the folder of a run, `packaged`, `timm/NAME` or `torchvision:NAME`
    (without their weights), or `package.module:Class`. A run of your own network needs its class, --model, as
    `model_class`.

    Raises
        GinghamError: `model_class` is given and `model` is not a run.
        ModelError: there is no such network, or it cannot be built.
        RunError: the run cannot be loaded.
    """
    from gingham.models.backbones import PREFIX, Backbone
    from gingham.models.networks import NETWORKS
    from gingham.models.registry import create_network, torchvision_network

    is_run = model == "packaged" or (bool(model) and model not in NETWORKS and Path(model).is_dir())
    if model_class is not None and not is_run:
        raise GinghamError(f"--model is for a run; {model} is not one; leave it out")
    if model.startswith("torchvision:"):
        return torchvision_network(model.removeprefix("torchvision:")), (3, 224, 224)
    if is_run:
        classifier = load_run_or_packaged(Path(model), model_class).model
        return classifier.network, classifier.input_shape
    if model.startswith(PREFIX):
        backbone = Backbone(model.removeprefix(PREFIX), classes=1000)
        return backbone, tuple(backbone.body.pretrained_cfg["input_size"])
    own = network_factory(model) if ":" in model or model.endswith(".py") else None
    if model not in NETWORKS and own is None:
        others = "packaged, a run folder, timm/NAME, torchvision:NAME, package.module:Class"
        raise ModelError(f"unknown model {model!r}{suggest(model, NETWORKS)}, {others}")
    return create_network(model, own, shape[0] if shape else 1), (1, 28, 28)
