"""Tests of the benchmarks: what they train, save and report."""

import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from argparse import Namespace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import contention
import ensemble
import gingham
import gpu
import peers
import reading
import records
import startup
import step_time
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
def test_the_stages_for_a_gpu_can_be_rehearsed(root, fashion_mnist_folder):
    """On a machine that has only the packages that docs/gpu.md names, and Gingham not installed."""
    missing = ("platformdirs", "pi_heif", "timm", "jinja2", "fastapi", "playwright")
    (root / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {missing}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    program, out = ROOT / "benchmarks/gpu.py", root / "out"
    options = ["--rehearse", "--minutes", "5", "--data", fashion_mnist_folder, "--out", out]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{ROOT / 'src'}", "GINGHAM_COMMIT": COMMIT}
    subprocess.run([sys.executable, program, *options], env=environment, check=True, cwd=root)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    endings = {row["stage"]: row["status"] for row in rows if "status" in row}
    assert endings == dict.fromkeys(gpu.STAGES, "done") | {"compiled": endings["compiled"]}
    assert endings["compiled"] == "done" or shutil.which("g++") is None
    reported = subprocess.run([sys.executable, program, "--report", out], capture_output=True, text=True, check=True)
    assert "These are results of a rehearsal, so they are not written." in reported.stdout
    tested = [row for row in rows if "test_accuracy" in row]
    assert {row["stage"] for row in tested} == {"article", "gpu-94", "gpu-95", "gpu-96"}
    assert len({(row["recipe"], row["seed"]) for row in tested}) == len(tested), "a seed is tested once"


@pytest.fixture
def results(root):
    """Return a folder with the results of twelve seeds of a recipe on a GPU."""
    environment = {"hardware": "NVIDIA X, 700 W", "torch": "2.11"}
    rows = [
        {"environment": environment, "commit": COMMIT, "command": "python benchmarks/gpu.py", "is_rehearsal": False}
        | {"matrix_tflops": {"bfloat16": 700, "float32": 50}, "copy_bytes_per_second": 4e12}
    ]
    for seed in range(12):
        rows.append(
            {"recipe": "gpu-94:epochs=9", "seed": seed, "train_seconds": 0.5 + seed / 100, "wall_seconds": 1.0}
            | {"validation_accuracy": 0.94, "tflops": 70, "steps": 200, "precision": "bfloat16"}
        )
        packed = base64.b64encode(zlib.compress(bytes([seed] * 10_000))).decode()
        rows.append(
            {"recipe": "gpu-94:epochs=9", "seed": seed, "test_accuracy": 0.93 + seed / 1000, "predicted": packed}
        )
    rows += [{**rows[1], "seed": 12, "train_seconds": 9.0}]  # trained, and not evaluated
    rows.append({"status": "stopped at its time limit", "seconds": 60})
    (root / "out").mkdir()
    (root / "out/results.jsonl").write_text("".join(json.dumps({"stage": "gpu-94", **row}) + "\n" for row in rows))
    return root / "out"


def test_the_results_of_a_gpu_become_a_results_file_and_a_record(root, results, monkeypatch):
    run(monkeypatch, gpu, "--report", results, "--record")
    (text,) = (path.read_text() for path in root.glob("benchmarks/results/gpu-nvidia-x-700-w-*.md"))
    assert "| `gpu-94:epochs=9` | test | 93.55% ± 0.36%, 93.32% to 93.78% | 12 | 0.555 | 1.0 | 200 | 10% |" in text
    assert "| gpu-94 | 60 | stopped at its time limit |" in text
    (file,) = root.glob("records/*-gpu-94/record.json")
    record = json.loads(file.read_text())
    assert record["accuracies"] == [0.93 + seed / 1000 for seed in range(12)]
    assert record["train_seconds"] == [0.5 + seed / 100 for seed in range(12)]
    assert record["recipe"] == gingham.RECIPES["gpu-94"].replace(epochs=9).to_dict()
    assert np.load(file.with_name("predictions.npz"))["predicted"][:, 0].tolist() == list(range(12))


def test_a_peer_trains_until_it_has_converged_or_its_time_is_over(monkeypatch):
    points = []
    clock = peers.Clock(points)
    accuracies = iter([0.5, 0.7, 0.6, 0.7, 0.69, 0.9])
    for epoch in range(1, 5):
        clock.lap(epoch, lambda: next(accuracies))
    with pytest.raises(peers.Finished):
        clock.lap(5, lambda: next(accuracies))
    assert [point["test_accuracy"] for point in points] == [0.5, 0.7, 0.6, 0.7, 0.69], "three were no better than 0.7"
    assert points[0]["train_seconds"] < points[-1]["train_seconds"]
    monkeypatch.setattr(peers.Clock, "limit", 0.0)
    with pytest.raises(peers.Finished):
        peers.Clock(points := []).lap(1, lambda: 0.5)
    assert len(points) == 1, "the evaluation of the last epoch is kept"


def test_separate_runs_of_a_peer_double_their_epochs(monkeypatch):
    def lengths(accuracies, seconds):
        points = []
        for epochs, accuracy in zip(peers.doubling(points), accuracies, strict=False):
            points.append({"epochs": epochs, "train_seconds": seconds * epochs, "test_accuracy": accuracy})
        return [point["epochs"] for point in points]

    monkeypatch.setattr(peers.Clock, "limit", 100.0)
    assert lengths([0.1, 0.2, 0.3, 0.4, 0.5], seconds=10) == [1, 2, 4, 8]
    assert lengths([0.1, 0.2, 0.15, 0.4], seconds=10) == [1, 2, 4], "longer was no better"


def test_peers_are_compared_by_the_seconds_to_the_accuracy_of_each_recipe():
    def points(*pairs):
        return [{"epochs": 1, "train_seconds": seconds, "test_accuracy": accuracy} for seconds, accuracy in pairs]

    outcomes = {"fast-85": [points((1, 0.85)), points((3, 0.87))], "fast-90": [points((5, 0.90)), points((5, 0.90))]}
    outcomes["peer"] = [points((10, 0.80), (20, 0.86), (30, 0.91)), points((40, 0.88))]
    header, _, row = peers.time_table(outcomes).splitlines()
    assert header == "| name | `fast-85`: 86.00% in 2.0 s | `fast-90`: 90.00% in 5.0 s |"
    assert row == "| peer | 30 s, 15 times | 30 s, 6 times (1 of 2) |"


def test_slow_peers_are_trained_once_and_finished_ones_are_not_trained_again(root, monkeypatch):
    work = root / "runs/peers" / COMMIT[:12]
    work.mkdir(parents=True)
    trained = {"fast-85-0": 1, "fast-85-1": 1, "article-0": 90, "article-1": 110, "pytorch-examples-0": 300}
    for file, seconds in trained.items():
        point = {"epochs": 1, "train_seconds": seconds, "test_accuracy": 0.85}
        (work / f"{file}-10-minutes.json").write_text(json.dumps({"points": [point]}))
    run(monkeypatch, peers, "fast-85", "article", "pytorch-examples", "--rounds", 2)
    (file,) = root.glob("benchmarks/results/peers-*.json")
    outcomes = json.loads(file.read_text())["outcomes"]
    assert [len(outcomes[name]) for name in ("fast-85", "article", "pytorch-examples")] == [2, 2, 1]
    assert "| article | 100 s, 100 times |" in file.with_suffix(".md").read_text()
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize("program", [contention, peers, reading, startup, step_time])
@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x"])
def test_rounds_are_a_number_of_at_least_one(monkeypatch, capsys, program, number):
    with pytest.raises(SystemExit):
        run(monkeypatch, program, f"--rounds={number}")
    assert f"--rounds: got {number}; it takes a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("program", [contention, startup])
def test_a_command_that_fails_during_a_measurement_says_why(program):
    with pytest.raises(SystemExit, match=r"train --recipe nosuch .* failed\n.*unknown recipe 'nosuch'"):
        records.run(lambda: program.measure("nosuch", 1))


@pytest.mark.parametrize("name", ["fast-85", "article"])
def test_recipes_or_peers_alone_are_drawn_too(tmp_path, name):
    point = {"epochs": 1, "train_seconds": 700, "test_accuracy": 0.85}
    peers.draw({name: [[point]]}, tmp_path / "peers.png", "a processor")
    assert (tmp_path / "peers.png").exists()


def test_the_best_settings_are_those_within_the_seconds():
    def runs(accuracy, seconds):
        return [SimpleNamespace(metrics={"validation_accuracy": accuracy, "train_seconds": seconds})]

    trained = {"short": runs(0.93, 0.4), "long": runs(0.94, 0.7), "slow": runs(0.95, 0.9), "none": []}
    assert gpu.choose(trained, 0.8) == "long"
    assert gpu.choose(trained, 0.3) == "short", "none is fast enough, so the fastest"
    with pytest.raises(RuntimeError, match="not enough time for a single seed"):
        gpu.choose({"none": []}, 0.8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --out DIR"),
        (("--out", "out", "--record"), "give --out DIR"),
        (("--out", "out", "--recipe", "fast-85"), "takes settings of gpu-94, gpu-95, gpu-96"),
        (("--out", "out", "--recipe", "gpu-94:epoch=3"), "no field 'epoch'|unknown recipe field 'epoch'"),
        (("--out", "out", "--seeds", "-1"), "--seeds is -1"),
        (("--out", "out", "--rehearse", "--data", "nowhere"), "nowhere, which is not a folder"),
        (("--report", "nowhere"), "there is no nowhere/results.jsonl"),
    ],
)
def test_wrong_arguments_end_a_gpu_measurement_before_it_starts(root, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, gpu, *arguments)
    assert re.search(message, f"{capsys.readouterr().err} {stop.value}")
    assert not (root / "out").exists()


def test_a_stage_that_fails_or_takes_too_long_does_not_stop_the_next_one(root, monkeypatch):
    def fail(session):
        raise RuntimeError("no kernel image\nand much more")

    stages = {"fails": gpu.Stage(fail, 60), "hangs": gpu.Stage(lambda session: time.sleep(60), 6)}
    stages["works"] = gpu.Stage(lambda session: session.write(result=1), 60)
    monkeypatch.setattr(gpu, "STAGES", stages)
    assert not gpu.run_all(Namespace(out=root, only=None, minutes=1))
    rows = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    assert [row.get("status") or row.get("result") or row["error"] for row in rows] == [
        "RuntimeError: no kernel image and much more",
        "failed",
        "stopped at its time limit",
        1,
        "done",
    ]


@pytest.mark.slow
def test_a_commit_equals_itself_to_the_bit(fashion_mnist_folder):
    line = [sys.executable, "benchmarks/same_bits.py", "HEAD", "HEAD", "--only", "packaged model"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    name, base, head, verdict = (cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|"))
    assert (name, verdict) == ("packaged model", "equal")
    assert base == head
    assert len(base) == 16
