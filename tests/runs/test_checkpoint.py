import json
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from gingham.errors import GinghamError, RunError
from gingham.io import sha256, write_tensors
from gingham.runs.checkpoint import (
    has_checkpoint,
    has_unverified_checkpoint,
    load_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)


def save(folder, step):
    save_checkpoint(folder, step, {"x": torch.arange(3.0) + step}, {"step": step})


@pytest.fixture
def folder(tmp_path):
    """A run folder with saved checkpoints after 3, 6 and 9 steps."""
    for step in (3, 6, 9):
        save(tmp_path, step)
    return tmp_path


def test_the_last_two_checkpoints_are_kept_and_the_last_is_loaded(folder):
    loaded = load_checkpoint(folder)
    assert torch.equal(loaded.tensors["x"], torch.arange(3.0) + 9)
    assert loaded.metadata == {"step": 9}
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (6, 9) for suffix in ("json", "safetensors")
    ]


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated state": (
        "safetensors",
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        "bytes, not 151 as in its manifest",
    ),
    "flipped bit": ("safetensors", flip_bit, "the SHA-256 of step-00000009.safetensors is not the one in its manifest"),
    "empty state": ("safetensors", lambda path: path.write_bytes(b""), "has 0 bytes"),
    "missing state": ("safetensors", lambda path: path.unlink(), "No such file"),
    "truncated manifest": ("json", lambda path: path.write_text(path.read_text()[:-9]), "is not valid JSON"),
    "empty manifest": ("json", lambda path: path.write_text(""), "is not valid JSON"),
    "manifest of another step": (
        "json",
        lambda path: path.write_text((path.parent / "step-00000006.json").read_text()),
        "SHA-256",
    ),
    "manifest without keys": ("json", lambda path: path.write_text("{}"), "bytes, not None as in its manifest"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_detected_and_the_previous_one_is_used(folder, name):
    suffix, damage, reason = DAMAGE[name]
    damage(folder / "checkpoint" / f"step-00000009.{suffix}")
    assert load_checkpoint(folder).metadata == {"step": 6}
    _, [message] = read_checkpoint(folder)
    assert "step-00000009 is damaged" in message
    assert reason in message
    # After a resume from step 6, the next checkpoint replaces the damaged one, never the last intact one.
    save(folder, 8)
    assert {path.stem for path in (folder / "checkpoint").iterdir()} == {"step-00000006", "step-00000008"}


def test_a_pipe_instead_of_a_state_does_not_block(folder):
    state = folder / "checkpoint" / "step-00000009.safetensors"
    state.unlink()
    os.mkfifo(state)
    manifest = {"format": 2, "bytes": 0, "sha256": ""}
    state.with_suffix(".json").write_text(json.dumps(manifest))
    assert load_checkpoint(folder).metadata == {"step": 6}


def test_only_damaged_checkpoints_is_an_error_that_says_how_to_start_over(folder):
    for path in (folder / "checkpoint").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(
        RunError, match=r"no checkpoint in .* is intact: .*step-00000009 is damaged .*; remove .* to start over"
    ):
        load_checkpoint(folder)


def test_a_state_without_a_manifest_is_ignored(folder):
    (folder / "checkpoint" / "step-00000012.safetensors").write_bytes(b"half of a")
    assert load_checkpoint(folder).metadata == {"step": 9}
    (folder / "checkpoint" / ".step-00000015.safetensors.x7.safetensors").write_bytes(b"killed while writing")
    save(folder, 13)
    assert {path.stem for path in (folder / "checkpoint").iterdir()} == {"step-00000009", "step-00000013"}


@pytest.fixture
def small_files():
    """Let no file be over 2,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_resume_is_suggested_for_a_full_disk_only_if_there_is_a_checkpoint(folder, tmp_path, small_files):
    large = {"x": torch.zeros(1000)}
    for begun in (
        lambda: save_checkpoint(folder, 12, large, {}),
        lambda: write_tensors(folder / "x.safetensors", large),
    ):
        with pytest.raises(GinghamError, match=r"cannot write .* \(.*\); free some disk space, then resume the run$"):
            begun()
    with pytest.raises(GinghamError, match=r"cannot write .* \(.*\); free some disk space$"):
        save_checkpoint(tmp_path / "new", 12, large, {})


def test_has_unverified_checkpoint_is_true_only_for_states_without_any_manifest(folder):
    assert not has_unverified_checkpoint(folder)
    for path in (folder / "checkpoint").glob("*.json"):
        path.unlink()
    assert has_unverified_checkpoint(folder)
    assert not has_checkpoint(folder)
    assert not has_unverified_checkpoint(folder.parent)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, r"of format 3, newer than 2, .*update gingham"),
        (1, r"of format 1, from before the release 0.1.0, .*to start over"),
    ],
)
def test_another_format_is_an_error_and_the_previous_checkpoint_is_not_used(folder, version, message):
    path = folder / "checkpoint" / "step-00000009.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(RunError, match=message):
        load_checkpoint(folder)


def test_a_whole_file_that_is_no_checkpoint_is_an_error(folder):
    state = folder / "checkpoint" / "step-00000009.safetensors"
    save_file({"x": torch.zeros(1)}, state)
    manifest = {"format": 2, "bytes": state.stat().st_size, "sha256": sha256(state)}
    state.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"contains no checkpoint of gingham .*remove it to start over"):
        load_checkpoint(folder)


def test_a_full_disk_leaves_the_previous_checkpoint_whole(folder, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gingham.io.os.fsync", fail)
    with pytest.raises(GinghamError, match="No space left on device"):
        save(folder, 12)
    monkeypatch.undo()
    assert load_checkpoint(folder).metadata == {"step": 9}


def test_remove_checkpoints_removes_no_other_files(folder):
    (folder / "checkpoint" / "notes.txt").write_text("mine")
    assert has_checkpoint(folder)
    remove_checkpoints(folder)
    assert [path.name for path in (folder / "checkpoint").iterdir()] == ["notes.txt"]
    assert not has_checkpoint(folder)
    with pytest.raises(RunError, match="there is no checkpoint"):
        load_checkpoint(folder)
