"""Checkpoints: whole or recognised as torn, with the one before to go on from."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from gingham.errors import GinghamError, RunError
from gingham.runs.checkpoint import (
    has_checkpoint,
    has_unverified_checkpoint,
    load_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)


def keep(folder, step):
    save_checkpoint(folder, step, {"x": torch.arange(3.0) + step}, {"step": step})


@pytest.fixture
def kept(tmp_path):
    """A folder in which the states after 3, 6 and 9 steps were kept."""
    for step in (3, 6, 9):
        keep(tmp_path, step)
    return tmp_path


def test_the_last_two_are_kept_and_the_last_is_loaded(kept):
    loaded = load_checkpoint(kept)
    assert torch.equal(loaded.tensors["x"], torch.arange(3.0) + 9)
    assert loaded.metadata == {"step": 9}
    assert sorted(path.name for path in (kept / "checkpoint").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (6, 9) for suffix in ("json", "safetensors")
    ]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


TEARS = {
    "cut": ("safetensors", lambda path: path.write_bytes(path.read_bytes()[:-2]), "bytes, its manifest says"),
    "a bit": ("safetensors", flip, "the SHA-256 of step-00000009.safetensors is not the one in its manifest"),
    "empty": ("safetensors", lambda path: path.write_bytes(b""), "has 0 bytes"),
    "gone": ("safetensors", lambda path: path.unlink(), "No such file"),
    "manifest cut": ("json", lambda path: path.write_text(path.read_text()[:-9]), "is not whole JSON"),
    "manifest empty": ("json", lambda path: path.write_text(""), "is not whole JSON"),
    "manifest of another": ("json", lambda path: path.write_text((path.parent / "step-00000006.json").read_text()), "SHA-256"),
    "manifest with nothing in it": ("json", lambda path: path.write_text("{}"), "its manifest says None"),
}


@pytest.mark.parametrize("name", TEARS)
def test_a_torn_one_is_recognised_and_the_one_before_is_used(kept, name):
    suffix, tear, why = TEARS[name]
    tear(kept / "checkpoint" / f"step-00000009.{suffix}")
    assert load_checkpoint(kept).metadata == {"step": 6}
    _, [sentence] = read_checkpoint(kept)
    assert "step-00000009 is torn" in sentence
    assert why in sentence
    # Going on from step 6, the next one takes the torn one's place, and never that of the last good one.
    keep(kept, 8)
    assert {path.stem for path in (kept / "checkpoint").iterdir()} == {"step-00000006", "step-00000008"}


def test_a_pipe_in_its_place_is_not_waited_for(kept):
    state = kept / "checkpoint" / "step-00000009.safetensors"
    state.unlink()
    os.mkfifo(state)
    said = {"format": 2, "bytes": 0, "sha256": ""}
    state.with_suffix(".json").write_text(json.dumps(said))
    assert load_checkpoint(kept).metadata == {"step": 6}


def test_all_torn_is_an_error_that_names_the_way_out(kept):
    for path in (kept / "checkpoint").glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint in .* is whole: .*step-00000009 is torn .*; remove .* to start over"):
        load_checkpoint(kept)


def test_without_its_manifest_a_state_does_not_count(kept):
    (kept / "checkpoint" / "step-00000012.safetensors").write_bytes(b"half of a")
    assert load_checkpoint(kept).metadata == {"step": 9}
    (kept / "checkpoint" / ".step-00000015.safetensors.x7.safetensors").write_bytes(b"killed while writing")
    keep(kept, 13)
    assert {path.stem for path in (kept / "checkpoint").iterdir()} == {"step-00000009", "step-00000013"}


def test_states_without_any_manifest_are_told_from_none(kept):
    assert not has_unverified_checkpoint(kept)
    for path in (kept / "checkpoint").glob("*.json"):
        path.unlink()
    assert has_unverified_checkpoint(kept)
    assert not has_checkpoint(kept)
    assert not has_unverified_checkpoint(kept.parent)


@pytest.mark.parametrize(
    ("version", "message"),
    [(3, r"of format 3, newer than 2, .*update gingham"), (1, r"of format 1, from before the release 0.1.0, .*to start over")],
)
def test_another_format_is_no_damage(kept, version, message):
    path = kept / "checkpoint" / "step-00000009.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
    with pytest.raises(RunError, match=message):
        load_checkpoint(kept)


def test_what_is_whole_but_no_checkpoint_is_named(kept):
    state = kept / "checkpoint" / "step-00000009.safetensors"
    save_file({"x": torch.zeros(1)}, state)
    from gingham.io import sha256

    said = {"format": 2, "bytes": state.stat().st_size, "sha256": sha256(state)}
    state.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(RunError, match=r"holds no checkpoint of gingham .*remove it to start over"):
        load_checkpoint(kept)


def test_a_full_disk_leaves_the_one_before(kept, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gingham.io.os.fsync", full)
    with pytest.raises(GinghamError, match="No space left on device"):
        keep(kept, 12)
    monkeypatch.undo()
    assert load_checkpoint(kept).metadata == {"step": 9}


def test_removing_takes_nothing_else(kept):
    (kept / "checkpoint" / "notes.txt").write_text("mine")
    assert has_checkpoint(kept)
    remove_checkpoints(kept)
    assert [path.name for path in (kept / "checkpoint").iterdir()] == ["notes.txt"]
    assert not has_checkpoint(kept)
    with pytest.raises(RunError, match="there is no checkpoint"):
        load_checkpoint(kept)
