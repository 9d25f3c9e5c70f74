import sys
from pathlib import Path

import pytest

import gingham
from gingham.cli.export import NEIGHBOURS_HELP
from gingham.deploy.export import require_exportable
from gingham.inference.neighbours import GALLERY_SIZE
from helpers import make_dataset, train_arguments


def test_export_writes_a_file_and_prints_its_comparison(quadrants, command, run_json):
    command(*train_arguments(quadrants, 0.1))
    result = run_json("export", "small.onnx", "--run", "run", "--int8")
    assert {"file", "opset", "max_difference", "agreement", "accuracy", "accuracy_int8", "interval"} <= set(result)
    assert "neighbours" not in result
    done = command("export", "small.onnx", "--run", "run", "--int8")
    assert done.stdout.startswith("small.onnx: ")
    assert "classifies 40 of 40 validation images as the model does" in done.stdout
    assert "8 bits cost " in done.stdout
    assert len(run_json("evaluate", "run")["test_openings"]) == 0
    make_dataset(quadrants, seed=5)
    assert "has changed since run was trained on it" in command("export", "other.onnx", "--run", "run", code=2).stderr
    assert not (command.folder / "other.onnx").exists()
    command("export", "other.onnx", "--run", "run", "--data", quadrants)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.pt"], "model.pt has the suffix .pt; allowed: .onnx, .html; name it model.onnx or page.html"),
        (["model"], "model has no suffix; allowed: .onnx, .html"),
        (["page.html", "--int8"], "int8 is for .onnx files"),
        (["model.onnx", "--run", "nowhere"], "there is no folder nowhere"),
        (["model.onnx", "--model", "a:B"], "--model is for a run with a network of your own; give --run too"),
        (["page.html", "--neighbours", "-1"], "--neighbours"),
        (["model.onnx", "--neighbours", "3"], "neighbours is for .html files; leave it out: an ONNX file contains no"),
        (["model.onnx", "--neighbours", "0", "--int8"], "neighbours is for .html files"),
    ],
)
def test_user_errors_of_export_say_what_to_do(command, arguments, message):
    assert message in command("export", *arguments, code=2).stderr
    assert not list(command.folder.iterdir())


def test_a_file_that_gingham_did_not_export_is_not_overwritten(command):
    (command.folder / "notes.html").write_text("my own")
    assert "notes.html already exists and was not exported by gingham" in command("export", "notes.html", code=2).stderr
    assert (command.folder / "notes.html").read_text() == "my own"


def test_a_file_that_cannot_be_read_is_not_overwritten(tmp_path, monkeypatch):
    file = tmp_path / "secret.onnx"
    file.write_bytes(b"gingham")

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for a user: root may read everything
    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(gingham.GinghamError, match=r"secret\.onnx already exists and was not exported by gingham"):
        require_exportable(file, int8=False, neighbours=None)


def test_the_help_names_the_default_of_neighbours():
    assert f"by default {GALLERY_SIZE}." in NEIGHBOURS_HELP


def test_a_missing_package_is_an_error_with_its_name(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    stderr = command("export", "model.onnx", code=2).stderr
    assert stderr == "gingham: exporting needs the package onnxscript; run pip install 'gingham[export]'\n"
