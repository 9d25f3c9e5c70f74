"""Tests of processes that are started without torchrun."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gingham.runs.checkpoint import save_checkpoint
from helpers import train_arguments

pytestmark = pytest.mark.slow


def train_in_processes(folder, *argument_lists):
    """Run `gingham train` in one process per argument list and return (exit code, stderr) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, arguments in enumerate(argument_lists):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(len(argument_lists)),
            "MASTER_ADDR": "127.0.0.1",
        }
        environment |= {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "gingham", "train", *map(str, arguments)]
        processes.append(
            subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        )
    return [(process.returncode, error) for process in processes for _, error in [process.communicate(timeout=120)]]


def test_processes_started_without_torchrun_train_together_or_report_what_differs(quadrants, tmp_path):
    arguments = train_arguments(quadrants, 0.5)[1:]
    (first, _), (second, second_stderr) = train_in_processes(tmp_path, arguments, arguments)
    assert (first, second, second_stderr) == (0, 0, "")
    assert (tmp_path / "run" / "model.json").exists()

    different = [*arguments[:-1], "other", "--seed", 0], [*arguments[:-1], "other", "--seed", 1]
    (first, first_stderr), (second, second_stderr) = train_in_processes(tmp_path, *different)
    assert (first, second) == (2, 2)
    assert first_stderr.splitlines()[-1].startswith(
        "gingham: another process does not use the same recipe and data as process 0; start every process"
    )
    assert second_stderr.splitlines() == [
        (
            "gingham (process 1 of 2): process 1 of 2 does not use the same recipe and data as process 0; start every "
            "process with the same command on the same data"
        )
    ]


def test_two_processes_weight_the_classes_as_one_does(tmp_path):
    random = np.random.default_rng(0)
    labels = np.sort(np.arange(240) % 4 * (np.arange(240) % 5 == 0))  # 204 images of class 0 and 12 of each other one
    images = (random.integers(0, 90, (240, 28, 28)) + 40 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    settings = ("--set", "class_balance=1", "--set", "batch_size=15", "--set", "cutmix=0.5")
    arguments = (*train_arguments(tmp_path / "few.npz", 3)[1:-1], "one", *settings)
    ((code, stderr),) = train_in_processes(tmp_path, arguments)
    assert code == 0, stderr
    arguments = ["two" if argument == "one" else argument for argument in arguments]
    assert [code for code, _ in train_in_processes(tmp_path, arguments, arguments)] == [0, 0]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        if name.startswith("network."):
            assert torch.allclose(one[name], two[name], atol=1e-4), name


def test_every_process_ends_with_the_error_of_a_damaged_checkpoint(quadrants, tmp_path):
    save_checkpoint(tmp_path / "run", 3, {}, {})
    (tmp_path / "run/checkpoint/step-00000003.safetensors").write_bytes(b"")
    arguments = [*train_arguments(quadrants, 0.5)[1:], "--resume"]
    ends = train_in_processes(tmp_path, arguments, arguments)
    assert [code for code, _ in ends] == [2, 2]
    first, second = (stderr.splitlines()[-1] for _, stderr in ends)
    assert first.startswith("gingham: no checkpoint in run/checkpoint is intact: ")
    assert second == first.replace("gingham:", "gingham (process 1 of 2):")
