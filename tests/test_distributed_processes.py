"""Tests of processes that are started without torchrun."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gingham
from gingham.runs.checkpoint import save_checkpoint
from helpers import train_arguments
from pretrained_files import TINY

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
    first, second = (gingham.load(tmp_path / name).model for name in ("one", "two"))
    assert first.novelty.stages == second.novelty.stages
    predictions = [model.predict(torch.from_numpy(images)[:, None]) for model in (first, second)]
    assert torch.allclose(predictions[0].novelty, predictions[1].novelty, rtol=0.01, atol=0.05)
    assert (predictions[0].novel != predictions[1].novel).double().mean() < 0.02


def test_every_process_ends_with_the_error_of_a_damaged_checkpoint(quadrants, tmp_path):
    save_checkpoint(tmp_path / "run", 3, {}, {})
    (tmp_path / "run/checkpoint/step-00000003.safetensors").write_bytes(b"")
    arguments = [*train_arguments(quadrants, 0.5)[1:], "--resume"]
    ends = train_in_processes(tmp_path, arguments, arguments)
    assert [code for code, _ in ends] == [2, 2]
    first, second = (stderr.splitlines()[-1] for _, stderr in ends)
    assert first.startswith("gingham: no checkpoint in run/checkpoint is intact: ")
    assert second == first.replace("gingham:", "gingham (process 1 of 2):")


@pytest.mark.parametrize("name", ["frozen", "finetune"])
def test_two_processes_train_a_pretrained_network_as_one_does(name, photo_folder, tiny_weights, tmp_path, monkeypatch):
    settings = {"size": 32, "batch_size": 15, "validation_images": 11, "mixup": 0.5, "crop_size": 32}
    if name == "frozen":
        settings |= {"mixup": 0, "crop_size": 0}
    changes = [argument for key, value in settings.items() for argument in ("--set", f"{key}={value}")]
    arguments = ("--data", photo_folder, "--backbone", TINY, "--weights", tiny_weights, "--epochs", 2, *changes)
    arguments += ("--recipe", name, "--set", "precision=float32", "--out")
    for folder, count in (("one", 1), ("two", 2)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {folder}"))
        ends = train_in_processes(tmp_path, *[(*arguments, folder)] * count)
        assert [code for code, _ in ends] == [0] * count, ends
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    for key, tensor in one.items():
        if key.startswith("network."):
            assert torch.allclose(tensor, two[key], rtol=1e-3, atol=2e-3), key
    files = [sorted((tmp_path / f"cache of {folder}/gingham/features").iterdir()) for folder in ("one", "two")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    for first, second in zip(*files, strict=True):
        features = [load_file(file)["features"] for file in (first, second)]
        assert torch.allclose(*features, rtol=1e-3, atol=1e-4)
