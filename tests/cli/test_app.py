import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import gingham

USER_ERRORS = {
    "command": (["trian"], "No such command 'trian'"),
    "option": (["train", "--sed", "1"], "No such option: --sed; did you mean --seed?"),
    "option far from all": (["train", "--gpu"], "No such option: --gpu; --help lists all options\n"),
    "field as option": (
        ["train", "--learning_rate", "0.1"],
        "No such option: --learning_rate; it is a field of the recipe: give --set learning_rate=0.1\n",
    ),
    "field as option with =": (["trials", "--batch-size=64"], "give --set batch_size=64\n"),
    "initials of a field": (["train", "--lr", "0.5"], "give --set learning_rate=0.5\n"),
    "seed of trials": (["trials", "--seed", "3"], "No such option: --seed; did you mean --seeds?"),
    "field without a value": (["train", "--lr"], "give --set learning_rate=VALUE\n"),
    "argument as option": (["show", "--data", "my shoes"], "give it without --data: gingham show 'my shoes'\n"),
    "recipe as argument": (["train", "fast-85"], "argument(s) (fast-85); give it as --recipe fast-85\n"),
    "data as argument": (["train", "mnist"], "argument(s) (mnist); give it as --data mnist\n"),
    "unknown argument": (["train", "x"], "(x); --help lists all arguments\n"),
    "recipe as run": (["evaluate", "fast-85"], "train one with gingham train --recipe fast-85\n"),
    "recipe": (["train", "--recipe", "articel"], "unknown recipe 'articel'; did you mean 'article'?"),
    "field": (
        ["train", "--set", "lerning_rate=1"],
        ("unknown recipe field 'lerning_rate'; did you mean 'learning_rate'?"),
    ),
    "value": (["train", "--set", "learning_rate=fast"], "learning_rate got 'fast'; allowed: a number from 0 to 10000"),
    "no equals": (["train", "--set", "learning_rate"], "write FIELD=VALUE"),
    "epochs": (["train", "--epochs", "0"], "epochs got 0.0; allowed: a number above 0"),
    "seed": (
        ["train", "--seed", "one"],
        "Invalid value for '--seed': Input should be a valid integer, unable to parse string as an integer; got 'one'",
    ),
    "number": (["train", "--epochs", "abc"], "; got 'abc'\n"),
    "data": (["train", "--data", "fasion-mnist"], "unknown dataset 'fasion-mnist'; did you mean 'fashion-mnist'?"),
    "device": (["train", "--device", "tpu"], "there is no device 'tpu' on this machine; allowed: auto, cpu"),
    "no run": (["evaluate", "runs/nothing"], "there is no folder runs/nothing"),
    "no argument": (["evaluate"], "Missing argument 'run'"),
    "split": (["evaluate", "runs/nothing", "--split", "tset"], "'--split': 'tset' is not one of 'validation', 'test'"),
    "model": (["summary", "articel"], "unknown model 'articel'"),
    "zoo": (["summary", "torchvision:vgg17"], "torchvision has no model 'vgg17'; did you mean 'vgg1"),
    "input": (["summary", "article", "--input", "28"], "--input got '28'; write CHANNELSxHEIGHTxWIDTH"),
    "small input": (
        ["summary", "article", "--input", "1x20x20"],
        ("too small for conv8 (Conv2d), which got an input of 10x3x3"),
    ),
    "layer": (["summary", "article", "--explain", "conv9"], "no layer 'conv9' in article; did you mean 'conv8'?"),
    "batch": (["show", "--batch", "0"], "Invalid value for '--batch'"),
    "folder": (["show", "."], "found no training images in"),
    "long name": (["evaluate", "x" * 300], "(File name too long); check the free space, the path"),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_user_errors_print_one_line_and_exit_with_2(command, name):
    arguments, message = USER_ERRORS[name]
    assert message in command(*arguments, code=2).stderr
    assert list(command.folder.iterdir()) == []


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
        RuntimeError("could not create a primitive"),
    ],
)
def test_all_out_of_memory_errors_print_one_line(train, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("gingham.training.step.EagerStep.__call__", fail)
    assert "out of memory or threads" in train("--out", "failed", "--epochs", 1, code=2).stderr

    def fail_with_cause(*arguments, **options):
        try:
            fail()
        except (MemoryError, RuntimeError) as cause:
            raise ValueError("a library's error message") from cause

    monkeypatch.setattr("gingham.training.step.EagerStep.__call__", fail_with_cause)
    assert "out of memory or threads" in train("--out", "failed", "--epochs", 1, code=2).stderr


def test_a_bug_is_not_reported_as_out_of_memory(train, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr("gingham.training.step.EagerStep.__call__", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train("--out", "failed")


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_not_an_error(command, closed):
    line = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "gingham", "summary", "article"]
    done = subprocess.run(line, cwd=command.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_result_that_cannot_be_printed_is_an_error(command):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    with Path("/dev/full").open("w") as full:
        line = [sys.executable, "-m", "gingham", "--version"]
        done = subprocess.run(line, cwd=command.folder, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "gingham: cannot use a file or the output (No space left on device); check the free space, the path and "
        "its permissions\n"
    )


def test_commands_work_as_a_separate_process(command, quadrants, run_json):
    options = ("--recipe", "article", "--data", quadrants, "--epochs", 0.1, "--set", "batch_size=32")
    metrics = run_json("train", *options, "--set", "validation_images=40", process=True)
    assert metrics["train_seconds"] < metrics["wall_seconds"] < 120
    unknown = command("train", "--set", "lerning_rate=1", code=2, process=True)
    assert "unknown recipe field 'lerning_rate'" in unknown.stderr
    assert "No such option: --sed" in command("train", "--sed", 1, code=2, process=True).stderr


def test_help_lists_commands_and_options(command):
    assert command().stdout == command("--help").stdout
    for name in ("train", "evaluate", "show", "summary"):
        assert name in command("--help").stdout
        assert "--json" in command(name, "--help").stdout
    assert command("--version").stdout == f"{gingham.__version__}\n"


EXITING = """import sys
from torch import nn

class AtOnce(nn.Module):
    def __init__(self, channels, classes):
        sys.exit({code})

class InForward(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()

    def forward(self, x):
        sys.exit({code})
"""


@pytest.mark.parametrize("code", ["1", "0", "", "'no GPU here'"])
@pytest.mark.parametrize("network", ["AtOnce", "InForward"])
def test_a_network_that_ends_the_program_is_an_error(command, train, network, code):
    name = f"exiting{zlib.crc32(code.encode())}"
    (command.folder / f"{name}.py").write_text(EXITING.format(code=code))
    stderr = train("--epochs", 1, "--model", f"{name}:{network}", "--out", "run", code=2).stderr
    assert "a module of your own ended the program (sys.exit(" in stderr


def test_a_closed_pipe_is_not_an_error(command):
    line = f"{sys.executable} -m gingham summary article | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=command.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_shells_complete_commands_options_and_recipes(tmp_path):
    def complete(line):
        words = line.split(" ")
        environment = {**os.environ, "_GINGHAM_COMPLETE": "complete_bash"}
        environment |= {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        command = [sys.executable, "-c", "import sys\nsys.argv[0] = 'gingham'\nfrom gingham.cli.app import run\nrun()"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("gingham ev") == ["evaluate"]
    assert "--recipe" in complete("gingham train --re")
    assert complete("gingham train --recipe fast-9") == ["fast-90", "fast-92", "fast-94"]


def test_the_script_for_a_shell_is_printed(command):
    done = command("--show-completion", "bash")
    assert "COMPLETE=complete_bash" in done.stdout
    assert done.stderr == ""
