import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import gingham
from gingham.io import locked
from helpers import make_dataset


def values(done):
    assert done.stdout.count("\n") == 1, "exactly one JSON value"
    return json.loads(done.stdout)


TRAIN = ("train", "--recipe", "article")
SMALL = ("--set", "batch_size=32", "--set", "validation_images=40")


@pytest.fixture
def trained(command, quadrants):
    done = command(*TRAIN, "--data", quadrants, "--epochs", 2, *SMALL, "--json")
    return values(done)


def test_train_writes_a_run_and_says_what_it_did(command, trained):
    wanted = {"run", "recipe", "seed", "device", "precision", "parameters", "train_images", "epochs", "steps", "train_seconds",
              "wall_seconds", "validation_accuracy", "resumed_from_step"}  # fmt: skip
    assert wanted <= set(trained)
    assert trained["run"] == "runs/article-0"
    assert (trained["recipe"], trained["seed"], trained["train_images"], trained["steps"]) == ("article", 0, 260, 18)
    assert 0 < trained["train_seconds"] < trained["wall_seconds"]
    folder = command.folder / "runs" / "article-0"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "history.jsonl", "curves.png"}


def test_a_finished_run_is_kept(command, trained, quadrants):
    before = (command.folder / "runs/article-0/model.safetensors").read_bytes()
    refused = command(*TRAIN, "--data", quadrants, code=2)
    assert "already holds a finished run; give another --out or --seed" in refused.stderr
    again = command(*TRAIN, "--data", quadrants, "--resume", "--json")
    assert values(again) == trained
    assert "nothing to resume" in again.stderr
    assert (command.folder / "runs/article-0/model.safetensors").read_bytes() == before


def test_resume_with_nothing_there_starts(command, quadrants):
    done = command(*TRAIN, "--data", quadrants, "--epochs", 0.1, "--resume", "--out", "deep/run", "--json")
    assert values(done)["resumed_from_step"] is None
    assert (command.folder / "deep/run/model.json").exists()


def test_train_prints_for_people(command, quadrants):
    done = command(*TRAIN, "--data", quadrants, "--epochs", 1, "--seed", 7)
    for text in ("runs/article-7", "45,944 parameters", "300 pictures", "train_seconds", "none held out"):
        assert text in done.stdout
    assert "gingham evaluate runs/article-7 --split test" in done.stdout
    assert "epoch 1/1" in done.stderr


def test_evaluate(command, trained):
    report = values(command("evaluate", "runs/article-0", "--json"))
    assert {
        "split",
        "accuracy",
        "loss",
        "correct",
        "total",
        "per_class",
        "confusion",
        "calibration_error",
        "test_openings",
    } <= set(report)
    assert (report["split"], report["total"], report["test_openings"]) == ("validation", 40, [])
    assert report["accuracy"] == trained["validation_accuracy"]
    for openings in (1, 2):
        report = values(command("evaluate", "runs/article-0", "--split", "test", "--json"))
        assert len(report["test_openings"]) == openings
    shown = command("evaluate", "runs/article-0", "--split", "test").stdout
    assert "of 80 test pictures right (95 % interval" in shown
    assert "opened 3 times by this run" in shown
    assert (command.folder / "runs/article-0/confusion-test.png").exists()


def test_evaluate_on_other_data(command, trained, tmp_path):
    other = make_dataset(tmp_path / "other", seed=5, train=20, test=40)  # too few to hold 40 out, but test needs none
    report = values(command("evaluate", "runs/article-0", "--data", other, "--split", "test", "--json"))
    assert report["total"] == 40


def test_data_that_changed_under_a_run_is_noticed(command, trained, quadrants):
    make_dataset(quadrants, seed=1)
    refused = command("evaluate", "runs/article-0", code=2)
    assert "has changed since runs/article-0 was trained on it" in refused.stderr


def test_a_run_that_held_nothing_out_says_so(command, quadrants):
    command(*TRAIN, "--data", quadrants, "--epochs", 0.1)
    refused = command("evaluate", "runs/article-0", code=2)
    assert "held no pictures out for validation" in refused.stderr
    assert "use --split test" in refused.stderr


def test_show(command, quadrants):
    metadata = values(command("show", quadrants, "--json"))
    assert {"images", "classes", "shape", "per_class", "mean", "std", "fingerprint", "file"} <= set(metadata)
    assert (metadata["images"], metadata["shape"], metadata["classes"]) == (380, [1, 28, 28], ["0", "1", "2", "3"])
    assert metadata["per_class"] == dict.fromkeys("0123", 95)
    assert metadata["duplicates"] == {"train": 0, "test": 0, "across": 0}
    assert metadata["file"] == "quadrants.png"
    with Image.open(command.folder / metadata["file"]) as sheet:
        assert sheet.format == "PNG"
    shown = command("show", quadrants, "--out", "sheets/one.png").stdout
    assert "300 train, 80 test, in 4 classes" in shown
    assert (command.folder / "sheets/one.png").exists()


def test_show_one_batch_as_the_loop_sees_it(command, fashion_mnist_folder):
    batch = values(command("show", "--batch", 64, "--json"))["batch"]
    assert batch["shape"] == [64, 1, 28, 28]
    assert (batch["dtype"], batch["range"]) == ("uint8", [0, 255])
    assert batch["normalised_dtype"] == "float32"
    assert batch["normalised_range"] == pytest.approx([(0 - 0.286) / 0.353, (1 - 0.286) / 0.353], abs=1e-4)
    assert len(batch["labels"]) == 64
    shown = command("show", "--batch", 64).stdout
    assert "float32 (64, 1, 28, 28), from -0.810 to 2.023" in shown
    assert (command.folder / "fashion-mnist-batch.png").exists()


def test_show_fashion_mnist(command, fashion_mnist_folder):
    metadata = values(command("show", "--json"))
    assert (metadata["images"], metadata["splits"]) == (70000, {"train": 60000, "test": 10000})
    assert metadata["mean"] == pytest.approx(0.2860, abs=1e-4)
    assert "T-shirt/top" in command("show").stdout


def test_summary(command):
    table = values(command("summary", "article", "--json"))
    assert (table["parameters"], table["receptive_field"]) == (48884, 28)
    convolutions = [layer for layer in table["layers"] if layer["kind"] == "Conv2d"]
    assert [layer["output_shape"][-1] for layer in convolutions] == [26, 24, 22, 11, 9, 7, 7, 1]
    shown = command("summary", "article").stdout
    assert "conv8  out floor((7 + 0 − 1·6 − 1) / 1) + 1 = 1" in shown
    assert max(map(len, shown.splitlines()[:20])) <= 80
    assert "= 8 + 1·(3 − 1) × 2 = 12 of 28 pixels" in command("summary", "article", "--explain", "conv5").stdout


@pytest.mark.parametrize(("name", "field"), [("alexnet", 195), ("vgg16", 212)])
def test_summary_of_the_zoo_is_the_published_one(command, name, field):
    assert values(command("summary", f"torchvision:{name}", "--json"))["receptive_field"] == field


def test_summary_of_a_run_and_a_class_of_ones_own(command, trained):
    assert values(command("summary", "runs/article-0", "--json"))["parameters"] == trained["parameters"]
    (command.folder / "mine.py").write_text(
        "from torch import nn\nclass Net(nn.Conv2d):\n  def __init__(self): super().__init__(1, 2, 3)\n"
    )
    assert values(command("summary", "mine:Net", "--input", "1x9x9", "--json"))["layers"][0]["output_shape"] == [2, 7, 7]


WRONG = {
    "command": (["trian"], "No such command 'trian'"),
    "option": (["train", "--sed", "1"], "No such option: --sed"),
    "recipe": (["train", "--recipe", "articel"], "unknown recipe 'articel'; did you mean 'article'?"),
    "field": (["train", "--set", "lerning_rate=1"], "unknown recipe field 'lerning_rate'; did you mean 'learning_rate'?"),
    "value": (["train", "--set", "learning_rate=fast"], "learning_rate got 'fast'; allowed: a number from 0 to 10000"),
    "no equals": (["train", "--set", "learning_rate"], "write FIELD=VALUE"),
    "epochs": (["train", "--epochs", "0"], "epochs got 0.0; allowed: a number above 0"),
    "seed": (["train", "--seed", "one"], "Invalid value for '--seed'"),
    "data": (["train", "--data", "fasion-mnist"], "unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?"),
    "device": (["train", "--device", "tpu"], "no device 'tpu' here; allowed: auto, cpu"),
    "no run": (["evaluate", "runs/nothing"], "there is no folder runs/nothing"),
    "no argument": (["evaluate"], "Missing argument 'run'"),
    "split": (["evaluate", "runs/nothing", "--split", "tset"], "--split got 'tset'; allowed: validation, test"),
    "model": (["summary", "articel"], "unknown model 'articel'"),
    "zoo": (["summary", "torchvision:vgg17"], "torchvision has no model 'vgg17'; did you mean 'vgg1"),
    "input": (["summary", "article", "--input", "28"], "--input got '28'; write CHANNELSxHEIGHTxWIDTH"),
    "small input": (["summary", "article", "--input", "1x20x20"], "too small: it ran out at conv8 (Conv2d), which got 10x3x3"),
    "layer": (["summary", "article", "--explain", "conv9"], "no layer 'conv9' in article; did you mean 'conv8'?"),
    "batch": (["show", "--batch", "0"], "Invalid value for '--batch'"),
    "folder": (["show", "."], "holds no class folders with pictures in them; put the pictures of each class"),
    "long name": (["evaluate", "x" * 300], "(File name too long); check that there is room, the path"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_the_user_can_mend_is_one_line_and_exit_2(command, name):
    arguments, message = WRONG[name]
    assert message in command(*arguments, code=2).stderr
    assert list(command.folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said_before_training(command, quadrants):
    (command.folder / "runs").write_text("a file in the way")
    assert "cannot write" in command(*TRAIN, "--data", quadrants, "--epochs", 0.1, code=2).stderr


def test_a_figure_that_cannot_be_written_costs_no_result(command, trained):
    Image.new("RGB", (5, 5), "red").save(command.folder / "runs/article-0/confusion-test.png")
    done = command("evaluate", "runs/article-0", "--split", "test", "--json")
    assert values(done)["total"] == 80
    assert values(done)["file"] is None
    assert "no figure: " in done.stderr


def test_a_folder_in_use_is_said_before_training(command, quadrants):
    (command.folder / "busy").mkdir()
    with locked(command.folder / "busy", wait=False):
        refused = command(*TRAIN, "--data", quadrants, "--out", "busy", "--epochs", 0.1, code=2)
    assert "another gingham is writing into busy" in refused.stderr
    command(*TRAIN, "--data", quadrants, "--out", "busy", "--epochs", 0.1)


def test_a_run_that_another_finishes_meanwhile_is_kept(command, trained, quadrants, monkeypatch):
    """It has looked into the folder, and reads its data, while the other finishes."""
    load_data = importlib.import_module("gingham.data.load_data").load_data

    def slowly(*arguments, **options):
        found = load_data(*arguments, **options)
        shutil.copytree(command.folder / "runs/article-0", command.folder / "shared")
        return found

    monkeypatch.setattr("gingham.data.load_data.load_data", slowly)
    said = command(*TRAIN, "--data", quadrants, "--out", "shared", "--epochs", 0.1, code=2).stderr
    assert "shared was finished by another gingham just now" in said
    assert not (command.folder / "shared/checkpoint").exists()


def test_a_clock_that_jumps_is_no_time_spent(command, quadrants, monkeypatch):
    jumps = itertools.cycle([3e8, -9e8, 5e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    trained = values(command(*TRAIN, "--data", quadrants, "--epochs", 0.1, "--json"))
    assert 0 < trained["train_seconds"] < trained["wall_seconds"] < 3600


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
    ],
)
def test_want_of_memory_is_one_sentence_however_it_is_said(command, quadrants, monkeypatch, error):
    def starve(*arguments, **options):
        raise error

    monkeypatch.setattr("gingham.training.fit.train_step", starve)
    assert "out of memory or threads" in command(*TRAIN, "--data", quadrants, "--out", "starved", "--epochs", 1, code=2).stderr

    def convert(*arguments, **options):
        try:
            starve()
        except (MemoryError, RuntimeError) as cause:
            raise ValueError("a library's own way of saying so") from cause

    monkeypatch.setattr("gingham.training.fit.train_step", convert)
    assert "out of memory or threads" in command(*TRAIN, "--data", quadrants, "--out", "starved", "--epochs", 1, code=2).stderr


def test_a_bug_is_no_want_of_memory(command, quadrants, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("gingham.training.fit.train_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        command(*TRAIN, "--data", quadrants, "--out", "failed")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(command, closed):
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "gingham", "summary", "article"]
    done = subprocess.run(line, cwd=command.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_result_that_cannot_be_printed_is_said(command):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "gingham", "summary", "article"]
        done = subprocess.run(line, cwd=command.folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "gingham: cannot use a file or the output (No space left on device); check that there is room, the path and its permissions\n"
    )


def test_a_full_stderr_ends_no_training(command, quadrants):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "gingham", *TRAIN, "--data", str(quadrants), "--epochs", "1", "--json"]
        done = subprocess.run(line, cwd=command.folder, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["epochs"] == 1


def test_a_run_saved_from_python_can_be_looked_at(command, small_run):
    run, _ = small_run
    gingham.save(run, command.folder / "runs/article-0")
    assert values(command(*TRAIN, "--resume", "--json"))["wall_seconds"] is None
    assert "train_seconds, - wall_seconds" in command(*TRAIN, "--resume").stdout


def test_as_a_process_of_its_own(command, quadrants):
    trained = values(command(*TRAIN, "--data", quadrants, "--epochs", 0.5, *SMALL, "--json", process=True))
    assert trained["train_seconds"] < trained["wall_seconds"] < 120
    assert "there is no folder nowhere" in command("evaluate", "nowhere", code=2, process=True).stderr
    assert "No such option: --sed" in command("train", "--sed", 1, code=2, process=True).stderr


def test_no_arguments_and_help(command):
    assert command().stdout == command("--help").stdout
    for name in ("train", "evaluate", "show", "summary"):
        assert name in command("--help").stdout
        assert "--json" in command(name, "--help").stdout
    assert command("--version").stdout == f"{gingham.__version__}\n"


def test_ctrl_c_is_130_and_says_how_to_go_on(command, quadrants, tmp_path):
    arguments = [*TRAIN, "--data", quadrants, "--epochs", 500, "--set", "checkpoint_seconds=0", "--out", "run"]
    line = [sys.executable, "-m", "gingham", *map(str, arguments)]

    def listen():  # a shell's background jobs, such as a CI's, start with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(line, cwd=command.folder, stderr=subprocess.PIPE, text=True, preexec_fn=listen)  # noqa: PLW1509
    deadline = time.monotonic() + 60
    while not list(command.folder.glob("run/checkpoint/step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; go on with the same command and --resume" in error
    assert "Traceback" not in error


def test_a_reader_that_has_had_enough_is_no_error(command):
    line = f"{sys.executable} -m gingham summary article | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=command.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_trials_compare_and_diagnose(command, quadrants):
    for out, extra in (("a", ()), ("b", ("--set", "learning_rate=1e-9"))):
        done = command("trials", "--recipe", "article", "--data", quadrants, "--epochs", 2, *SMALL, "--seeds", 2, "--out", out, *extra,
                       "--json")  # fmt: skip
        found = values(done)
        assert {"accuracies", "mean", "std", "interval"} <= set(found)
        assert len(found["accuracies"]) == 2
        assert "seed 1 (2 of 2)" in done.stderr
    shown = command(
        "trials", "--recipe", "article", "--data", quadrants, "--epochs", 2, *SMALL, "--seeds", 2, "--out", "a"
    ).stdout
    assert "mean and standard deviation over 2 seeds (0 to 1)" in shown
    found = values(command("compare", "a", "b", "--json"))
    assert {"difference", "interval", "p_value", "verdict"} <= set(found)
    assert command("compare", "a/seed-0", "b/seed-0").stdout.count("\n") == 1
    for name in ("a/seed-0", "b/seed-0", quadrants):
        for issue in values(command("diagnose", name, "--json")):
            assert {"code", "title", "evidence", "fix"} <= set(issue)
    assert "the learning rate is far too low" in command("diagnose", "b/seed-0").stdout
    assert (
        "of 40 validation pictures are in the training data too"
        in command("diagnose", "a/seed-0", "--split", "validation").stdout
    )
    assert gingham.load(command.folder / "a/seed-0").test_openings == []
    command("diagnose", "a/seed-0", "--split", "test")
    assert len(gingham.load(command.folder / "a/seed-0").test_openings) == 1
    assert "--split is for a run" in command("diagnose", quadrants, "--split", "test", code=2).stderr
    assert "--split got 'train'" in command("compare", "a", "b", "--split", "train", code=2).stderr
    assert "is a single run and" in command("compare", "a", "b/seed-0", code=2).stderr
    assert "--set got a seed" in command("trials", "--set", "seed=3", code=2).stderr


def test_pictures_of_what_the_doctor_found(command, quadrants):
    images = quadrants / "t10k-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[16:800] = (quadrants / "train-images-idx3-ubyte").read_bytes()[16:800]
    images.write_bytes(content)
    (issue,) = values(command("diagnose", quadrants, "--json"))
    assert issue["pictures"] == [[["train", 0], ["test", 0]]]
    with Image.open(command.folder / issue["file"]) as figure:
        assert figure.width > 500


def test_train_with_tensorboard(command, quadrants):
    command(*TRAIN, "--data", quadrants, "--epochs", 1, "--track", "tensorboard")
    assert any((command.folder / "runs/article-0/tensorboard").glob("events*"))
    assert "allowed: tensorboard" in command(*TRAIN, "--data", quadrants, "--track", "x", "--out", "y", code=2).stderr
