"""Load the data that a run was trained on."""

from pathlib import Path

from gingham.data.load_data import load_data
from gingham.data.registry import REGISTRY
from gingham.data.splits import DataSplits
from gingham.errors import DataError
from gingham.runs.run import Run


def load_run_data(run: Run, place: Path | None = None, data: str | None = None, held_out: int | None = None) -> DataSplits:
    """Return what a run was trained on, as it was, or other data of its classes; `place` is what errors call the run.

    Raises
        DataError: the data is not known or has changed since.
    """
    folder = place or run.folder or Path("the packaged model")
    name = data or run.data.get("name")
    if not isinstance(name, str):
        raise DataError(f"{folder} does not say what it was trained on; give --data with a name or a place")
    if data is None and name not in REGISTRY and not Path(name).exists():
        raise DataError(
            f"{name}, which {folder} was trained on, is not there any more; put it back (evaluate and export take another place with --data)"
        )
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
