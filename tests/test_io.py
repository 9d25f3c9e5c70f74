import os
import stat
import subprocess
import sys

import pytest
import torch

import gingham
from gingham import GinghamError, RunError
from gingham.io import atomic_write, is_run_folder, locked, read_json, write_json, write_tensors, write_text
from gingham.runs.checkpoint import save_checkpoint
from helpers import locked_by_another


def test_writing_replaces_a_file_and_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "one")
    write_text(tmp_path / "deep" / "a.txt", "two")
    assert (tmp_path / "deep" / "a.txt").read_text() == "two"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        fail(temporary)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_kill_during_a_write_leaves_the_file_unchanged(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    script = f"""
import os, signal
from pathlib import Path
from gingham.io import atomic_write
with atomic_write(Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert path.read_text() == "old"


def test_a_lock_excludes_others_until_its_process_dies(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from gingham.io import locked
with locked(Path({str(tmp_path)!r}), wait=False):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    refused = pytest.raises(GinghamError, match="another gingham is writing to")
    with locked_by_another(tmp_path), refused, locked(tmp_path, wait=False):
        pass
    with locked(tmp_path, wait=False), locked(tmp_path, wait=False):  # again by the same thread
        pass
    with locked_by_another(tmp_path):
        pass
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(GinghamError, match=r"cannot write .*lock"), locked(tmp_path / "file", wait=False):
        pass


def test_a_folder_that_the_lock_creates_is_removed_unless_something_is_written(tmp_path):
    with locked(tmp_path / "new" / "run", wait=False):
        assert (tmp_path / "new" / "run").exists()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "new" / "run", wait=False):
        write_text(tmp_path / "new" / "note.txt", "x")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["note.txt"]
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", wait=False):
        pass
    assert (tmp_path / "mine").exists()


def test_written_files_have_default_permissions(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    write_tensors(tmp_path / "a.safetensors", {"weights": torch.ones(3)})
    (tmp_path / "plain").write_text("x")
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.txt", "a.safetensors")] == [expected] * 2


def test_an_unwritable_path_is_an_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(GinghamError, match=r"cannot write .*a\.txt \(.*\); choose a writable folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_disk_that_becomes_read_only_during_a_write_is_an_error(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(GinghamError, match=r"cannot write .*notes.txt \(Read-only file system\); choose a writable"):
        write_text(tmp_path / "notes.txt", "words")


def test_json_round_trip(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None, 0.1]})
    assert read_json(tmp_path / "a.json") == {"é": [1, None, 0.1]}


def test_writing_nan_as_json_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[1, 2]", "contains a JSON list, not an object"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        (b'{"a": 1e999}', "1e999 is not a JSON number"),
        (b'{"a": "\\ud800"}', "is not valid JSON .*surrogates not allowed"),
    ],
)
def test_malformed_json_is_an_error_of_one_line(tmp_path, content, message):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_json_is_an_error_and_surrogate_pairs_are_read(tmp_path):
    with pytest.raises(RunError, match="cannot read"):
        read_json(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot read"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RunError, match="it is not a regular file"):
        read_json(tmp_path / "pipe")
    (tmp_path / "pair.json").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_json(tmp_path / "pair.json") == {"a": "\U0001f600"}


def test_a_run_folder_is_known_by_the_content_of_its_manifest(tmp_path, small_run):
    run, data = small_run
    gingham.save(run, tmp_path / "run")
    save_checkpoint(tmp_path / "unfinished", 3, {}, {})
    recipe = gingham.RECIPES["article"].replace(epochs=0.1, batch_size=32)
    gingham.trials(recipe, data, [0], tmp_path / "trials", progress=False)
    for name in ("run", "unfinished", "trials"):
        assert is_run_folder(tmp_path / name)
    assert is_run_folder(tmp_path / "trials", "trials.json")
    assert not is_run_folder(tmp_path / "run", "trials.json")
    for name in ("model.json", "trials.json", "checkpoint/step-1.json"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        write_text(tmp_path / "other" / name, '{"modelTopology": {}}')
        write_text(tmp_path / "damaged" / name, '{"recipe": {')
    for name in ("classes", "other", "damaged", "missing"):
        assert not is_run_folder(tmp_path / name)
