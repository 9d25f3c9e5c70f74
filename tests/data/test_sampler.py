"""Epochs, their order and batches, and the hard images against a plain sort."""

import itertools

import pytest
import torch

import gingham
from gingham import Recipe
from gingham.data.sampler import Sampler

ARTICLE = gingham.RECIPES["article"]


def test_epoch_has_every_image_once_and_keeps_the_last_batch():
    batches = list(Sampler(ARTICLE, 60000).batches(0, 938))
    assert [len(batch) for batch in batches] == [64] * 937 + [32]
    assert sorted(torch.cat(batches).tolist()) == list(range(60000))
    later_batch = next(Sampler(ARTICLE, 60000).batches(938, 939))
    assert not torch.equal(later_batch, batches[0])
    for seed in (1, 4096, 2**31 - 1):  # torch's generator uses 32 bits of a seed
        assert not torch.equal(next(Sampler(ARTICLE.replace(seed=seed), 60000).batches(0, 1)), batches[0])


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 11])
def test_order_can_resume_at_any_step(start):
    recipe = ARTICLE.replace(batch_size=7)
    batches = list(Sampler(recipe, 33).batches(0, 15))
    assert all(torch.equal(a, b) for a, b in zip(Sampler(recipe, 33).batches(start, 15), batches[start:], strict=True))


@pytest.mark.parametrize(("epochs", "steps"), [(3, 15), (1, 5), (0.5, 2), (0.001, 1), (2.6, 13)])
def test_steps_of_epochs_over_all_images(epochs, steps):
    sampler = Sampler(Recipe(epochs=epochs, batch_size=7), 33)
    assert (sampler.steps, sampler.epochs(sampler.steps)) == (steps, pytest.approx(steps / 5))
    assert [sampler.position(step) for step in (0, 4, 5, 9, 10)] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]


# Of 100 images: the 30 hardest and 14 of the other 70.
HARD = Recipe(epochs=3, batch_size=10, hard_share=0.3, easy_share=0.2, seed=5)


def test_later_epochs_take_the_hardest_and_some_other_images():
    sampler = Sampler(HARD, 100)
    assert (sampler.first_epoch_steps, sampler.later_epoch_steps, sampler.steps) == (10, 5, 20)
    assert [sampler.position(step) for step in (9, 10, 14, 15, 19)] == [(0, 9), (1, 0), (1, 4), (2, 0), (2, 4)]
    assert [sampler.epochs(steps) for steps in (5, 10, 12, 20)] == [0.5, 1, 1.4, 3]

    losses = torch.randperm(100).float()
    first = []
    for batch in sampler.batches(0, 10):
        first.append(batch)
        sampler.record(batch, losses[batch])
    assert sorted(torch.cat(first).tolist()) == list(range(100))
    assert torch.equal(sampler.losses, losses)

    second = list(sampler.batches(10, 15))
    assert [len(batch) for batch in second] == [10, 10, 10, 10, 4]
    second_indices = set(torch.cat(second).tolist())
    hardest = set(sorted(range(100), key=lambda i: -losses[i])[:30])
    assert len(second_indices) == 44
    assert hardest < second_indices
    third_indices = set(torch.cat(list(sampler.batches(15, 20))).tolist())
    assert hardest < third_indices
    assert third_indices != second_indices, "other easy images"


def test_hard_images_are_mixed_with_the_others():
    sampler = Sampler(HARD.replace(batch_size=22), 100)
    sampler.record(torch.arange(100), torch.arange(100).float())
    batches = list(sampler.batches(sampler.first_epoch_steps, sampler.first_epoch_steps + 2))
    assert all(3 <= (batch < 70).sum() <= 11 for batch in batches)


def test_hard_epochs_can_resume_from_order_and_losses():
    uninterrupted, losses = Sampler(HARD, 100), torch.rand(20, 100)
    expected = []
    for step, batch in enumerate(uninterrupted.batches(0, 20)):
        expected.append(batch)
        uninterrupted.record(batch, losses[step, batch])
    for stop in (4, 10, 12, 15, 19):
        interrupted = Sampler(HARD, 100)
        for step, batch in enumerate(interrupted.batches(0, stop)):
            interrupted.record(batch, losses[step, batch])
        resumed = Sampler(HARD, 100)
        resumed.order, resumed.losses = interrupted.order.clone(), interrupted.losses.clone()
        batches = []
        for step, batch in enumerate(resumed.batches(stop, 20), stop):
            batches.append(batch)
            resumed.record(batch, losses[step, batch])
        assert all(torch.equal(a, b) for a, b in zip(batches, expected[stop:], strict=True))


def test_zero_shares_still_take_one_image():
    sampler = Sampler(Recipe(epochs=2, hard_share=0, easy_share=0), 10)
    assert sampler.epoch_size(1) == 1
    assert [len(batch) for batch in itertools.islice(sampler.batches(0, 2), 2)] == [10, 1]


def test_blocks_are_read_together_within_a_window(monkeypatch):
    monkeypatch.setattr("gingham.data.sampler.BLOCKS_PER_WINDOW", 4)
    sampler = Sampler(Recipe(epochs=1, batch_size=20), 103, block=5)
    order = torch.cat(list(sampler.batches(0, sampler.steps)))
    assert sorted(order.tolist()) == list(range(103))
    for window in order[:100].split(20):
        blocks = (window // 5).unique()
        assert len(blocks) <= 5, "four whole blocks, and in some windows part of the short last one"
    first = (order[:20] // 5).unique()
    assert (first.diff() > 1).any(), "blocks from all over the file"
    assert order[:20].tolist() != sorted(order[:20].tolist())
