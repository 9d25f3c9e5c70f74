"""Tests of the comparison of a killed and resumed run with an undisturbed one."""

from stress.kill import differences


def test_differing_run_is_reported(tmp_path):
    for name, step in (("reference", 1), ("run", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(bytes(step))
        (tmp_path / name / "history.jsonl").write_text(f'{{"step": {step}, "loss": 0.5}}\n')
    assert differences(tmp_path / "reference", tmp_path / "reference") == []
    assert differences(tmp_path / "run", tmp_path / "reference") == [
        "model.safetensors differs",
        "history.jsonl differs",
        "the history does not have each step once",
    ]
