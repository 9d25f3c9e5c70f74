"""The commands that measure: what they train, keep, and write down."""

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
def place(tmp_path, monkeypatch):
    """A folder that results and records go to in place of the repository's."""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "records").mkdir()
    (tmp_path / "records/README.md").write_text(f"before\n{records.START}\n{records.END}\nafter\n")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setenv("GINGHAM_COMMIT", COMMIT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, program, *words):
    monkeypatch.setattr(sys, "argv", [program.__name__, *map(str, words)])
    program.main()


@pytest.mark.slow
def test_seeds_are_trained_once_then_measured_and_answer_together(place, monkeypatch, fashion_mnist_folder):
    words = (SHORT, "--seeds", 2, "--seeds-a-process", 2, "--title", "short")
    with pytest.raises(SystemExit, match="minutes are over; what is done is kept in"):
        run(monkeypatch, time_to_accuracy, *words, "--minutes", 1e-6)
    run(monkeypatch, time_to_accuracy, *words)
    (file,) = place.glob("benchmarks/results/short-*.json")
    (row,) = json.loads(file.read_text())["rows"]
    work = place / "runs/time-to-accuracy" / COMMIT[:12]
    told = [json.loads((work / f"{SHORT}-{seed}.json").read_text()) for seed in (0, 1)]
    assert row["accuracies"] == [one["validation_accuracy"] for one in told]
    assert row["mean"] == pytest.approx(statistics.mean(row["accuracies"]))
    assert 0.3 < row["mean"] < 0.9
    assert all(0 < one["train_seconds"] < one["wall_seconds"] for one in told)
    text = file.with_suffix(".md").read_text()
    assert f"| `{SHORT}` | {row['mean']:.2%} ± {row['std']:.2%} |" in text
    assert "as 2 seeds share a process" in text

    def fails(*_, **__):
        raise AssertionError("it trained again")

    monkeypatch.setattr(subprocess, "Popen", fails)
    run(monkeypatch, time_to_accuracy, *words)
    assert len(list(place.glob("benchmarks/results/short-*-2.md"))) == 1, "the first one of the day stays"

    run(monkeypatch, ensemble, *(work / f"{SHORT}-{seed}" for seed in (0, 1)))
    (file,) = place.glob("benchmarks/results/ensemble-*.md")
    assert "| 1 of 2 runs together |" in file.read_text()
    assert f"| 2 runs of `fast-85`, each alone | {row['mean']:.2%} ± {row['std']:.2%} |" in file.read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["fast", "--seeds", "1"], "a spread needs at least 2 seeds"),
        (["fast", "--seeds", "9", "--record", "--split", "test"], "a record 10 and --split test"),
        (["fast", "--seeds", "10", "--record"], "a record 10 and --split test"),
        (["fast:epochs=3", "--seeds", "10", "--record", "--split", "test"], "a record is of a recipe as it is"),
    ],
)
def test_what_is_no_record_is_refused_before_anything_is_trained(place, monkeypatch, capsys, words, said):
    with pytest.raises(SystemExit):
        run(monkeypatch, time_to_accuracy, *words)
    assert said in capsys.readouterr().err


def test_a_record_keeps_every_answer_and_overwrites_none(place):
    answers = [torch.tensor([1, 2, 3]), torch.tensor([3, 2, 1])]
    said = {
        "target": 0.9, "accuracies": [0.9, 0.92], "train_seconds": [1.0, 2.0], "wall_seconds": [3.0, 4.0], "commit": COMMIT, "command": "x",
        "environment": {"hardware": "an abacus", "torch": "2"}, "recipe": {"name": "short"}, "extra": {"members": 3},
    }  # fmt: skip
    folders = [records.write_record("short", **said, predictions=answers) for _ in range(2)]
    assert folders[1].name == f"{folders[0].name}-2"
    for folder in folders:
        assert np.load(folder / "predictions.npz")["predicted"].tolist() == [[1, 2, 3], [3, 2, 1]]
        assert json.loads((folder / "record.json").read_text())["members"] == 3
    table = (place / "records/README.md").read_text()
    assert table.startswith("before\n")
    assert table.count("| 91.00% ± 1.41% |") == 2
