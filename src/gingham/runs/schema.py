"""The values that a run's `model.json` and `history.jsonl` may contain, as tables of rules.

Tables and reports calculate with these values, so a file with values of other types is an error when it is loaded, not
when it is shown.
"""

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gingham.data.decode import GREY_BITS
from gingham.errors import RunError
from gingham.io import parse_json
from gingham.text import is_plain_name

MAX_NUMBER, MAX_INTEGER = 3.5e38, 2**53  # the range of float32, and that of the integers exact in float64


class Rule(NamedTuple):
    """The values that are allowed, in words and as a function."""

    allowed: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> bool:
    return type(value) in (int, float) and low <= value <= high and (type(value) is float or abs(value) <= MAX_INTEGER)


def _are_classes(value: Any) -> bool:
    is_list = isinstance(value, list) and all(isinstance(name, str) and is_plain_name(name) for name in value)
    return is_list and 0 < len(value) == len(set(value)) <= 10_000


def _is_shape(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) == 3 and all(isinstance(side, int) for side in value)
    return is_list and all(0 < side <= limit for side, limit in zip(value, (64, 4096, 4096), strict=True))


def _is_novelty(value: Any) -> bool:
    stages = value.get("stages") if isinstance(value, dict) else []
    is_list = isinstance(stages, list) and all(isinstance(name, str) for name in stages)
    return value is None or (isinstance(value, dict) and is_list)


NUMBER = Rule("a number", _is_number)
AMOUNT = Rule("a number of at least 0", lambda value: _is_number(value, 0))
SHARE = Rule("a number from 0 to 1", lambda value: _is_number(value, 0, 1))
TEXT = Rule("text", lambda value: isinstance(value, str))
BITS = Rule("10, 12, 14 or 16", lambda value: type(value) is int and value in GREY_BITS)
OBJECT = Rule("an object", lambda value: isinstance(value, dict))
OBJECTS = Rule("a list of objects", lambda value: isinstance(value, list) and all(map(OBJECT.accepts, value)))

# All of these are required in model.json. The values inside a section may be missing or null.
METADATA = {
    "format": Rule("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    "recipe": OBJECT,
    "classes": Rule("a list of 1 to 10000 different printable names", _are_classes),
    "input_shape": Rule("a list of up to 64 channels, and height and width up to 4096", _is_shape),
    **dict.fromkeys(("data", "metrics", "environment"), OBJECT),
    "test_openings": OBJECTS,
    "novelty": Rule("null, or an object with the names of layers as stages", _is_novelty),
}
COUNTS = ("parameters", "processes", "train_images", "epochs", "steps", "images_seen", "chosen_epoch")
TIMES = ("train_seconds", "wall_seconds", "images_per_second_per_process", "resumed_from_step")
SECTIONS = {
    "metrics": {
        **dict.fromkeys((*COUNTS, *TIMES), AMOUNT),
        **dict.fromkeys(("recipe", "device", "precision"), TEXT),
        "validation_accuracy": SHARE,
    },
    "data": {
        "train_images": AMOUNT,
        "background": NUMBER,
        "object_share": SHARE,
        "grey_bits": BITS,
        "teachers": OBJECTS,
        "origin": OBJECT,
        **dict.fromkeys(("name", "fingerprint"), TEXT),
    },
    "environment": dict.fromkeys(("gingham", "torch", "python", "system", "device", "hardware"), TEXT),
}
STEP = dict.fromkeys(("step", "loss", "accuracy", "learning_rate"), NUMBER)
EPOCH = dict.fromkeys(("epoch", "step", "train_loss", "train_accuracy"), NUMBER)
EVALUATION = dict.fromkeys(("validation_loss", "validation_accuracy"), NUMBER)
SAMPLE = dict.fromkeys(("sample_loss", "sample_accuracy"), NUMBER)  # on some training images, with the same weights


class FormatError(RunError):
    """A file has another format. It is not damaged, so an earlier file must not replace it."""


def require_format(path: Path, version: Any, known: int, remedy: str) -> None:
    """Raise a FormatError if the file at `path` declares an older or newer format than the `known` one."""
    if isinstance(version, int) and version != known:
        reason = f"newer than {known}, the newest that this version of gingham reads; update gingham"
        if version < known:
            reason = f"from before the release 0.1.0, which is no longer supported; {remedy}"
        raise FormatError(f"{path} is of format {version}, {reason}")


def validate_metadata(metadata: Mapping[str, Any]) -> None:
    """Raise a ValueError unless the values of a `model.json` are what METADATA and SECTIONS allow.

    >>> validate_metadata({"format": 2, "recipe": []})
    Traceback (most recent call last):
    ValueError: recipe is [], but must be an object
    """
    _require(metadata, METADATA)
    for section, rules in SECTIONS.items():
        present = {key: rule for key, rule in rules.items() if metadata[section].get(key) is not None}
        _require(metadata[section], present, f" in {section}")


def parse_history_entry(line: str, number: int) -> dict[str, Any]:
    """Return the history entry on line `number`, of a step or an epoch. Metrics that an epoch does not have are None.

    >>> parse_history_entry('{"step": 1, "learning_rate": 0.1, "accuracy": 0.5}', 1)
    Traceback (most recent call last):
    ValueError: loss is missing in line 1

    Raises
        ValueError: it is not a JSON object, or lacks a number that the curves need.
    """
    entry = parse_json(line)
    if not isinstance(entry, dict):
        raise ValueError(f"line {number} is not a JSON object")
    rules = STEP if "learning_rate" in entry else {}
    if "epoch" in entry:
        entry = {**entry, **{key: entry.get(key) for key in (*EVALUATION, *SAMPLE)}}
        rules = {**rules, **EPOCH}
        for group in (EVALUATION, SAMPLE):
            rules |= group if any(entry[key] is not None for key in group) else {}
    _require(entry, rules, f" in line {number}")
    return entry


def _require(values: Mapping[str, Any], rules: Mapping[str, Rule], where: str = "") -> None:
    for key, rule in rules.items():
        if key not in values:
            raise ValueError(f"{key} is missing{where}")
        if not rule.accepts(values[key]):
            raise ValueError(f"{key}{where} is {reprlib.repr(values[key])}, but must be {rule.allowed}")
