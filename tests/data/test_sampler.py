"""Epochs, their order and their batches; the hard pictures against a plain sort."""

import itertools

import pytest
import torch

import gingham
from gingham import Recipe
from gingham.data.sampler import Sampler

ARTICLE = gingham.RECIPES["article"]


def test_an_epoch_is_938_batches_and_the_last_of_32_is_kept():
    order = list(Sampler(ARTICLE, 60000).batches(0, 938))
    assert [len(batch) for batch in order] == [64] * 937 + [32]
    assert sorted(torch.cat(order).tolist()) == list(range(60000))
    second = next(Sampler(ARTICLE, 60000).batches(938, 939))
    assert not torch.equal(second, order[0])
    for seed in (1, 4096, 2**31 - 1):  # of a seed torch's generator takes 32 bits
        assert not torch.equal(next(Sampler(ARTICLE.replace(seed=seed), 60000).batches(0, 1)), order[0])


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 11])
def test_the_order_can_be_taken_up_anywhere(start):
    recipe = ARTICLE.replace(batch_size=7)
    whole = list(Sampler(recipe, 33).batches(0, 15))
    assert all(torch.equal(a, b) for a, b in zip(Sampler(recipe, 33).batches(start, 15), whole[start:], strict=True))


@pytest.mark.parametrize(("epochs", "steps"), [(3, 15), (1, 5), (0.5, 2), (0.001, 1), (2.6, 13)])
def test_steps_of_plain_epochs(epochs, steps):
    sampler = Sampler(Recipe(epochs=epochs, batch_size=7), 33)
    assert (sampler.steps, sampler.epochs(sampler.steps)) == (steps, pytest.approx(steps / 5))
    assert [sampler.position(step) for step in (0, 4, 5, 9, 10)] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]


HARD = Recipe(epochs=3, batch_size=10, hard_share=0.3, easy_share=0.2, seed=5)  # of 100: 30 hardest, 14 of the other 70


def test_later_epochs_take_the_hardest_and_some_of_the_others():
    sampler = Sampler(HARD, 100)
    assert (sampler.first_epoch_steps, sampler.later_epoch_steps, sampler.steps) == (10, 5, 20)
    assert [sampler.position(step) for step in (9, 10, 14, 15, 19)] == [(0, 9), (1, 0), (1, 4), (2, 0), (2, 4)]
    assert [sampler.epochs(done) for done in (5, 10, 12, 20)] == [0.5, 1, 1.4, 3]

    losses = torch.randperm(100).float()
    first = []
    for batch in sampler.batches(0, 10):
        first.append(batch)
        sampler.record(batch, losses[batch])
    assert sorted(torch.cat(first).tolist()) == list(range(100))
    assert torch.equal(sampler.losses, losses)

    second = list(sampler.batches(10, 15))
    assert [len(batch) for batch in second] == [10, 10, 10, 10, 4]
    taken = set(torch.cat(second).tolist())
    hardest = set(sorted(range(100), key=lambda i: -losses[i])[:30])
    assert len(taken) == 44
    assert hardest < taken
    third = set(torch.cat(list(sampler.batches(15, 20))).tolist())
    assert hardest < third
    assert third != taken, "other easy ones"


def test_hard_pictures_are_mixed_with_the_others():
    sampler = Sampler(HARD.replace(batch_size=22), 100)
    sampler.record(torch.arange(100), torch.arange(100).float())
    halves = list(sampler.batches(sampler.first_epoch_steps, sampler.first_epoch_steps + 2))
    assert all(3 <= (half < 70).sum() <= 11 for half in halves)


def test_hard_epochs_can_be_taken_up_from_order_and_losses():
    whole, losses = Sampler(HARD, 100), torch.rand(20, 100)
    expected = []
    for step, batch in enumerate(whole.batches(0, 20)):
        expected.append(batch)
        whole.record(batch, losses[step, batch])
    for stop in (4, 10, 12, 15, 19):
        before = Sampler(HARD, 100)
        for step, batch in enumerate(before.batches(0, stop)):
            before.record(batch, losses[step, batch])
        after = Sampler(HARD, 100)
        after.order, after.losses = before.order.clone(), before.losses.clone()
        rest = []
        for step, batch in enumerate(after.batches(stop, 20), stop):
            rest.append(batch)
            after.record(batch, losses[step, batch])
        assert all(torch.equal(a, b) for a, b in zip(rest, expected[stop:], strict=True))


def test_no_share_at_all_still_takes_a_picture():
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
    assert (first.diff() > 1).any(), "blocks from all over"
    assert order[:20].tolist() != sorted(order[:20].tolist())
