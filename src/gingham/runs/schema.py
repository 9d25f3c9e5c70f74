"""What a run says of itself beside its recipe, in `model.json` and `history.jsonl`, and of what kind each of it must be.

Tables and reports calculate with these: a file that has something else in their place is refused when it is loaded, not where it is shown.
"""

from collections.abc import Mapping
from typing import Any

LARGEST, WHOLE = 3.5e38, 2**53  # what a float32 holds, and up to where a float64 holds each whole number
COUNTS = {
    "metrics": (
        "parameters", "processes", "train_images", "epochs", "steps", "images_seen", "images_per_second_per_process", "train_seconds",
        "wall_seconds", "chosen_epoch", "resumed_from_step",
    ),
    "data": ("train_images",),
}  # fmt: skip
TEXTS = {
    "metrics": ("recipe", "device", "precision"),
    "data": ("name", "fingerprint"),
    "environment": ("gingham", "torch", "python", "system", "device", "hardware"),
}


def validate_metadata(metadata: Mapping[str, Any]) -> None:
    """See that what `metrics`, `data`, `environment` and `test_openings` have is of its kind; any of it may be missing, or null.

    >>> validate_metadata({"metrics": {"steps": "many"}, "data": {}, "environment": {}, "test_openings": []})
    Traceback (most recent call last):
    ValueError: steps in metrics is a str, a number from 0 up is needed
    """
    for part, keys in COUNTS.items():
        for key in keys:
            if (value := metadata[part].get(key)) is not None and not _is_number(value, 0):
                raise ValueError(f"{key} in {part} is {_shown(value)}, a number from 0 up is needed")
    for part, keys in TEXTS.items():
        for key in keys:
            if (value := metadata[part].get(key)) is not None and not isinstance(value, str):
                raise ValueError(f"{key} in {part} is {_shown(value)}, a text is needed")
    accuracy = metadata["metrics"].get("validation_accuracy")
    if accuracy is not None and not _is_number(accuracy, 0, 1):
        raise ValueError(f"validation_accuracy in metrics is {_shown(accuracy)}, a number from 0 to 1 is needed")
    for what, entries in (
        ("test_openings", metadata["test_openings"]),
        ("teachers in data", metadata["data"].get("teachers") or []),
    ):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{what} is no list of objects")


def _is_number(value: Any, low: float = -LARGEST, high: float = LARGEST) -> bool:
    return type(value) in (int, float) and low <= value <= high and (type(value) is float or abs(value) <= WHOLE)


def _shown(value: Any) -> str:
    if _is_number(value):
        return f"{value:.6g}"
    return "a number out of range" if type(value) in (int, float) else f"a {type(value).__name__}"


def validate_history_entry(entry: dict[str, Any], number: int) -> None:
    """See that an entry of the history, its `number`-th, has the numbers that curves are drawn from, if it is of a step or an epoch.

    Looks at the validation split that an epoch's entry lacks are set to None.

    >>> validate_history_entry({"step": 1, "learning_rate": 0.1, "accuracy": 0.5}, 1)
    Traceback (most recent call last):
    ValueError: line 1 has no number for loss
    """
    step, epoch = ("step", "loss", "accuracy", "learning_rate"), ("epoch", "step", "train_loss", "train_accuracy")
    wanted = step if "learning_rate" in entry else epoch if "epoch" in entry else ()
    if bad := [key for key in wanted if not _is_number(entry.get(key))]:
        raise ValueError(f"line {number} has no number for {bad[0]}")
    evaluations = [entry.get(key) for key in ("validation_loss", "validation_accuracy")] if "epoch" in entry else [None]
    if not (all(value is None for value in evaluations) or all(_is_number(value) for value in evaluations)):
        raise ValueError(f"line {number} has no numbers for validation_loss and validation_accuracy")
    if "epoch" in entry:
        entry.setdefault("validation_loss", None)
        entry.setdefault("validation_accuracy", None)
