"""Distributed training in a single process and its errors; stress/distributed.py uses several processes."""

import pytest
import torch

from gingham.device import choose_device
from gingham.distributed import SINGLE_PROCESS, DistributedContext, from_env, init_distributed, is_restart
from gingham.errors import GinghamError


def test_single_process_returns_every_input_unchanged():
    values, data = torch.rand(3), b"bytes"
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.add(values) is values
    assert SINGLE_PROCESS.any(True, False) == (True, False)
    assert SINGLE_PROCESS.broadcast_bytes(data) is data
    assert SINGLE_PROCESS.map_sharded(lambda images: images * 2, values).equal(values * 2)
    module = torch.nn.Linear(2, 2)
    assert SINGLE_PROCESS.data_parallel(module, unused=False) is module
    SINGLE_PROCESS.require_same("recipe", "any")
    with SINGLE_PROCESS.main_first():
        pass


def test_context_is_read_from_torchruns_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert from_env() == SINGLE_PROCESS
    for name, value in (
        ("WORLD_SIZE", "4"),
        ("RANK", "3"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "host"),
        ("MASTER_PORT", "29500"),
    ):
        monkeypatch.setenv(name, value)
    assert from_env() == DistributedContext(3, 4, 1)
    assert not from_env().is_main
    assert not is_restart()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_restart()


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "x"), ("MASTER_ADDR", ""), ("MASTER_PORT", ""), ("WORLD_SIZE", "two")]
)
def test_contradictory_environment_is_a_clear_error(monkeypatch, command, name, value):
    for key, good in (
        ("WORLD_SIZE", "2"),
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "host"),
        ("MASTER_PORT", "29500"),
    ):
        monkeypatch.setenv(key, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(GinghamError, match=rf"{name}.*torchrun"), init_distributed():
        pass
    assert name in command("train", code=2).stderr


def test_other_commands_than_train_are_refused_under_torchrun(monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    stderr = command("evaluate", "run", code=2).stderr
    assert stderr == "gingham: torchrun is for gingham train; run gingham evaluate without it\n"


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(GinghamError, match="process 2 of this host has no GPU, because the host has 2; start as many"):
        choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 5) == torch.device("cpu")
    with pytest.raises(GinghamError, match="has no GPU, because the host has 0"):
        choose_device("cuda", 0)
