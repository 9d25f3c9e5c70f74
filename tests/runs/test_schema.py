import json

import pytest

import gingham
from gingham import RunError

METADATA = {
    "a text instead of a number": (
        {"metrics": {"parameters": "x"}},
        "parameters in metrics is 'x', but must be a number of at least 0",
    ),
    "a negative number": (
        {"metrics": {"train_seconds": -3}},
        "train_seconds in metrics is -3, but must be a number of at least 0",
    ),
    "an accuracy above 1": (
        {"metrics": {"validation_accuracy": 93}},
        "validation_accuracy in metrics is 93, but must be a number from 0 to 1",
    ),
    "a number instead of a text": ({"environment": {"hardware": 3}}, "hardware in environment is 3, but must be text"),
    "test openings of another type": ({"test_openings": [1]}, r"test_openings is \[1\], but must be a list of objects"),
    "teachers of another type": (
        {"data": {"teachers": ["x"]}},
        r"teachers in data is \['x'\], but must be a list of objects",
    ),
    "a number out of range": (
        {"metrics": {"steps": 10**30}},
        "steps in metrics is 10{30}, but must be a number of at least 0",
    ),
}
HISTORY = {
    "a step without a loss": ('{"step": 1, "accuracy": 1, "learning_rate": 0.1}', "loss is missing in line 1"),
    "an epoch that is a text": (
        '{"epoch": "one", "step": 3, "train_loss": 1, "train_accuracy": 1}',
        "epoch in line 1 is 'one', but must be a number",
    ),
    "a sample loss without an accuracy": (
        '{"epoch": 1, "step": 3, "train_loss": 1, "train_accuracy": 1, "sample_loss": 1}',
        "sample_accuracy in line 1 is None, but must be a number",
    ),
    "a validation loss without an accuracy": (
        '{"epoch": 1, "step": 3, "train_loss": 1, "train_accuracy": 1, "validation_loss": 1}',
        "validation_accuracy in line 1 is None, but must be a number",
    ),
}


def assert_not_loaded(folder, message):
    with pytest.raises(RunError, match=message) as caught:
        gingham.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", METADATA)
def test_wrong_metadata_is_an_error(saved_run, name):
    folder, _, _ = saved_run
    changes, message = METADATA[name]
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert_not_loaded(folder, message)


@pytest.mark.parametrize("name", HISTORY)
def test_a_wrong_history_entry_is_an_error(saved_run, name):
    folder, _, _ = saved_run
    text, message = HISTORY[name]
    (folder / "history.jsonl").write_text(text)
    assert_not_loaded(folder, message)
