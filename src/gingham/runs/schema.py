"""The types of the values that a run stores beside its recipe, in `model.json` and `history.jsonl`.

Tables and reports calculate with these values, so a file with other types is rejected when it is loaded, not when it is
shown.
"""

from collections.abc import Mapping
from typing import Any

MAX_NUMBER, MAX_INTEGER = 3.5e38, 2**53  # the range of float32, and that of the integers exact in float64
NUMBER_KEYS = {
    "metrics": (
        "parameters", "processes", "train_images", "epochs", "steps", "images_seen", "images_per_second_per_process", "train_seconds",
        "wall_seconds", "chosen_epoch", "resumed_from_step",
    ),
    "data": ("train_images",),
}  # fmt: skip
TEXT_KEYS = {
    "metrics": ("recipe", "device", "precision"),
    "data": ("name", "fingerprint"),
    "environment": ("gingham", "torch", "python", "system", "device", "hardware"),
}


def validate_metadata(metadata: Mapping[str, Any]) -> None:
    """Check the types in `metrics`, `data`, `environment` and `test_openings`. Any value may be missing or null.

    >>> validate_metadata({"metrics": {"steps": "many"}, "data": {}, "environment": {}, "test_openings": []})
    Traceback (most recent call last):
    ValueError: steps in metrics is a str, a number from 0 up is needed
    """
    for section, keys in NUMBER_KEYS.items():
        for key in keys:
            if (value := metadata[section].get(key)) is not None and not _is_number(value, 0):
                raise ValueError(f"{key} in {section} is {_describe(value)}, a number from 0 up is needed")
    for section, keys in TEXT_KEYS.items():
        for key in keys:
            if (value := metadata[section].get(key)) is not None and not isinstance(value, str):
                raise ValueError(f"{key} in {section} is {_describe(value)}, a text is needed")
    accuracy = metadata["metrics"].get("validation_accuracy")
    if accuracy is not None and not _is_number(accuracy, 0, 1):
        raise ValueError(f"validation_accuracy in metrics is {_describe(accuracy)}, a number from 0 to 1 is needed")
    for name, entries in (
        ("test_openings", metadata["test_openings"]),
        ("teachers in data", metadata["data"].get("teachers") or []),
    ):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{name} is no list of objects")


def _is_number(value: Any, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> bool:
    return type(value) in (int, float) and low <= value <= high and (type(value) is float or abs(value) <= MAX_INTEGER)


def _describe(value: Any) -> str:
    if _is_number(value):
        return f"{value:.6g}"
    return "a number out of range" if type(value) in (int, float) else f"a {type(value).__name__}"


def validate_history_entry(entry: dict[str, Any], number: int) -> None:
    """Check that the history entry on line `number` has the numbers that curves need, if it describes a step or an epoch.

    Set the validation loss and accuracy that an epoch's entry lacks to None.

    >>> validate_history_entry({"step": 1, "learning_rate": 0.1, "accuracy": 0.5}, 1)
    Traceback (most recent call last):
    ValueError: line 1 has no number for loss
    """
    step, epoch = ("step", "loss", "accuracy", "learning_rate"), ("epoch", "step", "train_loss", "train_accuracy")
    required = step if "learning_rate" in entry else epoch if "epoch" in entry else ()
    if invalid := [key for key in required if not _is_number(entry.get(key))]:
        raise ValueError(f"line {number} has no number for {invalid[0]}")
    evaluations = [entry.get(key) for key in ("validation_loss", "validation_accuracy")] if "epoch" in entry else [None]
    if not (all(value is None for value in evaluations) or all(_is_number(value) for value in evaluations)):
        raise ValueError(f"line {number} has no numbers for validation_loss and validation_accuracy")
    if "epoch" in entry:
        entry.setdefault("validation_loss", None)
        entry.setdefault("validation_accuracy", None)
