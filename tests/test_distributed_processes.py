"""Processes started by hand in place of torchrun: they meet, or say why they do not."""

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def trained(folder, *lines):
    """How processes end that each run `gingham train` with a line of their own: (exit code, stderr) of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank, line in enumerate(lines):
        said = {"RANK": rank, "WORLD_SIZE": len(lines), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in said.items()}}
        command = [sys.executable, "-m", "gingham", "train", *map(str, line)]
        started.append(
            subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
    return [(process.returncode, error) for process in started for _, error in [process.communicate(timeout=120)]]


def test_processes_started_by_hand_train_as_one_or_say_what_differs(quadrants, tmp_path):
    line = ["--data", quadrants, "--recipe", "article", "--epochs", 0.5, "--set", "validation_images=40", "--out", "run"]
    (first, _), (second, silent) = trained(tmp_path, line, line)
    assert (first, second, silent) == (0, 0, "")
    assert (tmp_path / "run" / "model.json").exists()

    other = [*line[:-1], "other", "--seed", 0], [*line[:-1], "other", "--seed", 1]
    (first, leads), (second, follows) = trained(tmp_path, *other)
    assert (first, second) == (2, 2)
    assert leads.splitlines()[-1].startswith(
        "gingham: another process has not the recipe and data of process 0; start every process"
    )
    assert follows.splitlines() == [
        (
            "gingham (process 1 of 2): process 1 of 2 has not the recipe and data of process 0; start every process with the same command "
            "on the same data"
        )
    ]
