"""Load the data that a run was trained on."""

from pathlib import Path

from gingham.data.load_data import load_data
from gingham.data.registry import REGISTRY
from gingham.data.splits import DataSplits
from gingham.errors import DataError
from gingham.runs.run import Run


def load_run_data(
    run: Run, folder: Path | None = None, name: str | None = None, held_out: int | None = None
) -> DataSplits:
    """Return the data that a run was trained on, or the dataset `name` with the run's classes.

    Error messages name the run's `folder`. `held_out` images are held out for validation, by default as many as in the
    training.

    Raises
        DataError: the data is unknown or missing, or has changed since the training.
    """
    folder, is_original = folder or run.folder or Path("the packaged model"), not name
    name = name or run.data.get("name")
    if not isinstance(name, str):
        raise DataError(f"{folder} does not record its training data; give the data (on the command line: --data)")
    if is_original and name not in REGISTRY and not Path(name).exists():
        raise DataError(f"{name}, which {folder} was trained on, is missing; restore it, or give other data (--data)")
    # A folder of IDX files has only class numbers, so the names are the model's.
    _, height, width = run.model.input_shape
    data = load_data(
        name,
        run.recipe.validation_images if held_out is None else held_out,
        run.model.classes,
        # Images of another dataset are resized to the input size of the model.
        size=run.recipe.size if is_original or height != width else height,
        skip_unreadable=run.data.get("skip_unreadable") is True,
        label_from=run.data.get("label_from", "folder"),
        trained_on=run.image_hashes.get("train") if run.data.get("keeps_trained") else None,
    )
    if is_original and data.fingerprint != run.data.get("fingerprint"):
        raise DataError(
            f"{name} has changed since {folder} was trained on it, so its splits may overlap with the training "
            f"images; restore it, or give {name} as other data to evaluate on its present state (--data {name})"
        )
    if is_original and held_out is None and len(data.validation or ()) != run.recipe.validation_images:
        raise DataError(
            f"{folder} was trained with {run.recipe.validation_images} validation images of {name}, but "
            f"{len(data.validation or ())} are held out now; train again, or use the test split (--split test)"
        )
    return data
