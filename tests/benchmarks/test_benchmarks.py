"""Tests of the benchmarks: what they train, save and report."""

import json
import statistics
import subprocess
import sys

import numpy as np
import pytest
import torch

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import ensemble
import records
import time_to_accuracy

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHORT = "fast-85:epochs=0.03"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return a folder for results and records instead of the repository."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "records").mkdir()
    (tmp_path / "records/README.md").write_text(f"before\n{records.START}\n{records.END}\nafter\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("GINGHAM_COMMIT", COMMIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, arguments)])
    program.main()


@pytest.mark.slow
def test_seeds_are_trained_once_and_can_form_an_ensemble(root, monkeypatch, fashion_mnist_folder):
    arguments = (SHORT, "--seeds", 2, "--seeds-a-process", 2, "--title", "short")
    with pytest.raises(SystemExit, match="minutes are over; finished seeds are saved in"):
        run(monkeypatch, time_to_accuracy, *arguments, "--minutes", 1e-6)
    run(monkeypatch, time_to_accuracy, *arguments)
    (file,) = root.glob("benchmarks/results/short-*.json")
    (row,) = json.loads(file.read_text())["rows"]
    work = root / "runs/time-to-accuracy" / COMMIT[:12]
    outcomes = [json.loads((work / f"{SHORT}-{seed}.json").read_text()) for seed in (0, 1)]
    assert row["accuracies"] == [outcome["validation_accuracy"] for outcome in outcomes]
    assert row["mean"] == pytest.approx(statistics.mean(row["accuracies"]))
    assert 0.3 < row["mean"] < 0.9
    assert all(0 < outcome["train_seconds"] < outcome["wall_seconds"] for outcome in outcomes)
    text = file.with_suffix(".md").read_text()
    assert f"| `{SHORT}` | {row['mean']:.2%} ± {row['std']:.2%} |" in text
    assert "since 2 seeds share a process" in text

    def fail(*_, **__):
        raise AssertionError("it trained again")

    monkeypatch.setattr(subprocess, "Popen", fail)
    run(monkeypatch, time_to_accuracy, *arguments)
    assert len(list(root.glob("benchmarks/results/short-*-2.md"))) == 1, "the first one of the day stays"

    runs = [work / f"{SHORT}-{seed}" for seed in (0, 1)]
    run(monkeypatch, ensemble, *runs)
    assert not list(root.glob("benchmarks/results/ensemble-*.md"))
    run(monkeypatch, ensemble, *runs, "--out", root / "benchmarks/results")
    (file,) = root.glob("benchmarks/results/ensemble-*.md")
    assert "| ensembles of 2 runs: 1 |" in file.read_text()
    assert f"| 2 single runs of `fast-85` | {row['mean']:.2%} ± {row['std']:.2%} |" in file.read_text()


def test_a_missing_run_ends_a_benchmark_with_one_sentence(root, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks/ensemble.py", "runs/nothing", "runs/nothing"])
    with pytest.raises(SystemExit, match=r"^ensemble.py: there is no folder runs/nothing; give a run folder"):
        records.run(ensemble.main)


def test_the_example_exits_with_one_sentence_if_the_model_is_missing(tmp_path):
    pytest.importorskip("onnxruntime")
    line = [sys.executable, ROOT / "examples/onnx_predict.py", "model.onnx", "coat.png"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "there is no file model.onnx; write one with: gingham export model.onnx\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fast", "--seeds", "1"], "a spread needs at least 2 seeds"),
        (["fast", "--seeds", "9", "--record", "--split", "test"], "a record 10 and --split test"),
        (["fast", "--seeds", "10", "--record"], "a record 10 and --split test"),
        (["fast:epochs=3", "--seeds", "10", "--record", "--split", "test"], "a record needs an unchanged recipe"),
    ],
)
def test_invalid_record_is_refused_before_training(root, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, time_to_accuracy, *arguments)
    assert message in capsys.readouterr().err


def test_record_saves_predictions_and_overwrites_no_other(root):
    predictions = [torch.tensor([1, 2, 3]), torch.tensor([3, 2, 1])]
    values = {
        "target": 0.9,
        "accuracies": [0.9, 0.92],
        "train_seconds": [1.0, 2.0],
        "wall_seconds": [3.0, 4.0],
        "commit": COMMIT,
        "command": "x",
        "environment": {"hardware": "an abacus", "torch": "2"},
        "recipe": {"name": "short"},
        "extra": {"members": 3},
    }
    folders = [records.write_record("short", **values, predictions=predictions) for _ in range(2)]
    assert folders[1].name == f"{folders[0].name}-2"
    for folder in folders:
        assert np.load(folder / "predictions.npz")["predicted"].tolist() == [[1, 2, 3], [3, 2, 1]]
        assert json.loads((folder / "record.json").read_text())["members"] == 3
    table = (root / "records/README.md").read_text()
    assert table.startswith("before\n")
    assert table.count("| 91.00% ± 1.41% |") == 2


@pytest.mark.slow
def test_a_commit_equals_itself_to_the_bit(fashion_mnist_folder):
    line = [sys.executable, "benchmarks/same_bits.py", "HEAD", "HEAD", "--only", "packaged model"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    name, base, head, verdict = (cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|"))
    assert (name, verdict) == ("packaged model", "equal")
    assert base == head
    assert len(base) == 16
