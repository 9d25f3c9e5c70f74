"""A short form of the kills that `make stress` does."""

import pytest

from stress.killing import CHECKS, differences

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_a_killed_training_ends_as_if_nothing_had_been(check):
    outcome = check.run(check.short)
    assert outcome.lost == []
    assert outcome.tried == check.short


def test_a_run_that_differs_is_told(tmp_path):
    for name, step in (("whole", 1), ("run", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(step))
        (tmp_path / name / "history.jsonl").write_text(f'{{"step": {step}, "loss": 0.5}}\n')
    assert differences(tmp_path / "whole", tmp_path / "whole") == []
    assert differences(tmp_path / "run", tmp_path / "whole") == [
        "model.safetensors differs",
        "history.jsonl differs",
        "the history does not have each step once",
    ]
