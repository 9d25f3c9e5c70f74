"""The short form of `make stress`: every check with as few cases as CI has time for."""

import pytest

from stress import abusing, fuzzing, killing, spreading, starving

CHECKS = [check for part in (killing, spreading, starving, fuzzing, abusing) for check in part.CHECKS]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_nothing_is_lost(check):
    outcome = check.run(check.short)
    assert outcome.lost == []
    assert outcome.tried >= check.short or "not tried" in outcome.figures


def test_a_run_that_differs_is_told(tmp_path):
    for name, step in (("whole", 1), ("run", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(step))
        (tmp_path / name / "history.jsonl").write_text(f'{{"step": {step}, "loss": 0.5}}\n')
    assert killing.differences(tmp_path / "whole", tmp_path / "whole") == []
    assert killing.differences(tmp_path / "run", tmp_path / "whole") == [
        "model.safetensors differs",
        "history.jsonl differs",
        "the history does not have each step once",
    ]
