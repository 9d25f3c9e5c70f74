"""Check what `fit` was given, before anything is built."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from gingham.data.augment_photos import simulate_photos
from gingham.data.splits import Split
from gingham.errors import DataError, GinghamError, RunError, require_types
from gingham.io import is_run_folder, locked
from gingham.models.registry import factory_name
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint
from gingham.runs.run import METADATA_FILE, TRIALS_FILE
from gingham.training.distillation import validate_teachers
from gingham.training.options import FitOptions


def validate_folder(folder: Path | None, resume: bool, track: str | None) -> None:
    """Check that there is a folder where one is needed, and that a tracker can be used.

    Raises
        GinghamError: no folder to resume from or to write to, an unknown tracker, or one that is not installed.
    """
    if resume and folder is None:
        raise GinghamError("resume is True, and there is no folder to resume from; give folder=")
    if track is None:
        return
    if track != "tensorboard":
        raise GinghamError(f"track is {track!r}; allowed: tensorboard")
    if folder is None:
        raise GinghamError("track is tensorboard, and there is no folder to write to; give folder=")
    if importlib.util.find_spec("tensorboard") is None:
        raise GinghamError("track needs the package tensorboard; install it with pip install 'gingham[track]'")


@contextlib.contextmanager
def reserve_folder(folder: Path, resume: bool) -> Iterator[None]:
    """Lock a folder for a training, which must not hold another one.

    Raises
        RunError: it holds a finished run, trials, or an unfinished run that is not to be resumed.
        GinghamError: another process has locked it, or it cannot be written to.
    """
    with locked(folder, wait=False):
        if (folder / METADATA_FILE).exists():
            raise RunError(f"{folder} already holds a finished run; give another folder, or load it with gingham.load")
        if is_run_folder(folder, TRIALS_FILE):
            raise RunError(f"{folder} holds trials; give another folder")
        if has_checkpoint(folder) and not resume:
            raise RunError(f"{folder} holds an unfinished training; resume it (resume=True), or give another folder")
        yield


def resolve_recipe(recipe: Recipe, train: Split, validation: Split | None, options: FitOptions) -> Recipe:
    """Return the recipe with the size of the images, the number held out and the network that are really used.

    Raises
        DataError: a split that may not be used, two that do not belong together, or a teacher trained on other images.
        GinghamError: patience without a validation split, or teachers without a weight for them.
    """
    held_out = train if validation is None else validation
    require_types("fit", recipe=(recipe, Recipe), train=(train, Split), validation=(held_out, Split))
    _validate_splits(train, validation)
    recipe = recipe.replace(validation_images=len(validation) if validation else 0, size=train.size)
    if recipe.patience and validation is None:
        raise GinghamError(
            f"patience is {recipe.patience}, and no validation split is held out to look at; "
            "hold images out (on the command line: --set validation_images=5000), or set patience=0"
        )
    if recipe.photo_share:
        simulate_photos(train.images[:0], train.labels[:0], train.classes, recipe, 0)  # raises an error for colour
    validate_teachers(options.teachers, recipe, train, validation)
    return recipe if options.network is None else recipe.replace(network=factory_name(options.network))


def _validate_splits(train: Split, validation: Split | None) -> None:
    for role, split in (("training", train), ("validation", validation)):
        if split is not None and split.name == "test":
            raise DataError(f"fit got the test split as {role} data; the test split is opened by evaluate alone")
        if split is not None and not len(split):
            raise DataError(f"the {role} split of {split.dataset} is empty; give it at least one picture")
    if validation is None:
        return
    if validation.classes != train.classes or validation.image_shape != train.image_shape:
        raise DataError(
            f"the validation split has {len(validation.classes)} classes and pictures of {validation.image_shape}, the "
            f"training split {len(train.classes)} and {train.image_shape}; cut both from one dataset"
        )
    if validation.fingerprint != train.fingerprint:
        raise DataError(
            f"the training split is of {train.dataset} and the validation split of {validation.dataset}, or of another "
            "state of it; cut both from one dataset"
        )
