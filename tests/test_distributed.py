"""What processes that train together share out and tell each other; real ones are in stress/distributed.py."""

import pytest
import torch
import torch.nn.functional as F

from gingham.data.augment import augment
from gingham.device import choose_device
from gingham.distributed import SINGLE_PROCESS, DistributedContext, from_env, init_distributed, is_restart
from gingham.errors import GinghamError
from gingham.recipe import Recipe


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_mean_of_weighted_shard_losses_is_the_batch_loss(count, size):
    losses = torch.rand(count, dtype=torch.float64)
    shares = [
        losses[DistributedContext(rank, size).shard(count)].mean() * DistributedContext(rank, size).weight(count)
        for rank in range(size)
    ]
    assert torch.stack(shares).mean() == pytest.approx(float(losses.mean()))
    assert all(
        len(losses[DistributedContext(rank, size).shard(count)]) for rank in range(size)
    )  # no process is without a picture


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("size", [2, 3])
def test_augmentation_does_not_depend_on_the_number_of_processes(size, flip):
    recipe = Recipe(flip=flip, shift_pixels=2, seed=5)
    images = torch.randint(256, (11, 1, 28, 28), dtype=torch.uint8)
    indices = torch.randperm(11)
    whole = augment(images, indices, recipe, 1, 9)
    for rank in range(size):
        part = DistributedContext(rank, size).shard(11)
        assert torch.equal(augment(images[part], indices[part], recipe, 1, 9, part, 11), whole[part])


def test_single_process_returns_every_input_unchanged():
    values, data = torch.rand(3), b"bytes"
    assert SINGLE_PROCESS.is_main
    assert SINGLE_PROCESS.add(values) is values
    assert SINGLE_PROCESS.any(True, False) == (True, False)
    assert SINGLE_PROCESS.broadcast_bytes(data) is data
    assert SINGLE_PROCESS.map_sharded(lambda pictures: pictures * 2, values).equal(values * 2)
    module = torch.nn.Linear(2, 2)
    assert SINGLE_PROCESS.wrap(module, unused=False) is module
    assert SINGLE_PROCESS.weight(7) == 1.0
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
    said = command("evaluate", "run", code=2).stderr
    assert said == "gingham: torchrun is for gingham train; start gingham evaluate by itself\n"


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(
        GinghamError, match="process 2 of this host has no GPU of its own, as there are 2; start as many"
    ):
        choose_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 5) == torch.device("cpu")
    with pytest.raises(GinghamError, match="has no GPU of its own"):
        choose_device("cuda", 0)


def test_loss_weight_is_exact_for_uneven_shards():
    # 5 pictures in two processes: 3 and 2, whose means count as 3/5 and 2/5.
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    whole = F.cross_entropy(logits, labels)
    halves = [
        F.cross_entropy(logits[rank::2], labels[rank::2]) * DistributedContext(rank, 2).weight(5) for rank in range(2)
    ]
    assert sum(halves) / 2 == pytest.approx(float(whole))
