"""Check the arguments of `fit` before anything is created."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gingham.data.augment_photos import simulate_photos
from gingham.data.splits import Split
from gingham.errors import DataError, GinghamError, RunError, require_types
from gingham.io import is_run_folder, locked
from gingham.models.backbones import PREFIX, import_timm
from gingham.models.registry import factory_name
from gingham.presets import RECIPES
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint
from gingham.runs.run import METADATA_FILE, TRIALS_FILE
from gingham.training.distillation import validate_teachers
from gingham.training.options import FitOptions


def validate_folder(folder: Path | None, resume: bool, track: str | None) -> None:
    """Check that there is a folder if one is needed, and that the tracker is available.

    Raises
        GinghamError: there is no folder to resume from or to write to, or the tracker is unknown or not installed.
    """
    if resume and folder is None:
        raise GinghamError("resume is True, but there is no folder to resume from; give folder=")
    if track is None:
        return
    if track != "tensorboard":
        raise GinghamError(f"track is {track!r}; allowed: tensorboard")
    if folder is None:
        raise GinghamError("track is tensorboard, but there is no folder to write to; give folder=")
    if importlib.util.find_spec("tensorboard") is None:
        raise GinghamError("track needs the package tensorboard; install it with pip install 'gingham[track]'")


@contextlib.contextmanager
def reserve_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Lock the folder of a training, and check that it contains no other run.

    Raises
        RunError: the folder contains a finished run, trials, or an unfinished run, and `resume` is False.
        GinghamError: another process has locked the folder, or it cannot be written to.
    """
    with locked(folder, wait=False):
        if (folder / METADATA_FILE).exists():
            raise RunError(f"{folder} already contains a finished run; give another folder, or use gingham.load")
        if is_run_folder(folder, TRIALS_FILE):
            raise RunError(f"{folder} contains trials; give another folder")
        if has_checkpoint(folder) and not resume:
            raise RunError(f"{folder} contains an unfinished run; resume it (resume=True), or give another folder")
        yield


def resolve_recipe(recipe: Recipe, train: Split, validation: Split | None, options: FitOptions) -> Recipe:
    """Check the arguments of `fit`, and return the recipe with the actual image size, number held out and network.

    Raises
        DataError: a split is a test split or empty, the splits do not belong together, or a teacher was trained on
            other images.
        GinghamError: an argument has the wrong type, patience is set without a validation split, or there are teachers
            with a `distillation_weight` of 0.
    """
    held_out = train if validation is None else validation
    require_types("fit", recipe=(recipe, Recipe), train=(train, Split), validation=(held_out, Split))
    _validate_splits(train, validation)
    recipe = recipe.replace(validation_images=len(validation) if validation else 0, size=train.size)
    if recipe.patience and validation is None:
        raise GinghamError(
            f"patience is {recipe.patience}, but there is no validation split to evaluate on; "
            "hold out images (on the command line: --set validation_images=5000), or set patience=0"
        )
    if recipe.photo_share:
        simulate_photos(train.images[:0], train.labels[:0], train.classes, recipe, 0)  # an error for colour images
    validate_teachers(options.teachers, recipe, train, validation)
    recipe = recipe if options.network is None else recipe.replace(network=factory_name(options.network))
    _validate_pretrained(recipe, options)
    return recipe


def _validate_pretrained(recipe: Recipe, options: FitOptions) -> None:
    if recipe.network.startswith(PREFIX):
        import_timm(recipe.network.removeprefix(PREFIX))
    elif recipe.pretrained or recipe.frozen_layers:
        field = "pretrained" if recipe.pretrained else "frozen_layers"
        raise GinghamError(
            f"{field} is set, but the network is {recipe.network}; only networks of timm have pretrained weights: "
            "choose one (--backbone NAME), or set pretrained=false and frozen_layers=0"
        )
    if options.teachers and (recipe.trains_head_only or recipe.crop_size):
        field = "frozen_layers is 1, which trains on features" if recipe.trains_head_only else "crop_size is set"
        fix = "choose another recipe" if recipe.trains_head_only else "set crop_size=0"
        raise GinghamError(f"{field}, but teachers need images of their own size; {fix}, or leave the teachers out")
    if options.weights is not None and options.start is not None:
        raise GinghamError("weights and a run to start from are given (--weights, --from); leave one of them out")
    if options.weights is not None and not recipe.pretrained:
        raise GinghamError(
            "weights are given, but the recipe is not pretrained; leave them out, or choose frozen or finetune"
        )


def head_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe `frozen` for the network, image size and seed of a recipe that trains more layers."""
    kept = ["network", "seed", "size", "mean", "std", "precision"]
    kept += ["label_smoothing", "class_balance", "validation_images"]
    return RECIPES["frozen"].replace(**{name: getattr(recipe, name) for name in kept})


def _validate_splits(train: Split, validation: Split | None) -> None:
    for role, split in (("training", train), ("validation", validation)):
        if split is not None and split.name == "test":
            raise DataError(f"fit got the test split as {role} data; only evaluate may use the test split")
        if split is not None and not len(split):
            raise DataError(f"the {role} split of {split.dataset} is empty; it needs at least one image")
    if validation is None:
        return
    if validation.classes != train.classes or validation.image_shape != train.image_shape:
        raise DataError(
            f"the validation split has {len(validation.classes)} classes and images of {validation.image_shape}, but "
            f"the training split {len(train.classes)} and {train.image_shape}; take both from the same dataset"
        )
    if validation.fingerprint != train.fingerprint:
        raise DataError(
            f"the training split is from {train.dataset}, but the validation split is from {validation.dataset}, or "
            "from another version of it; take both from the same dataset"
        )
