import itertools
import math

import pytest
import torch

from gingham import Recipe
from gingham.optimization import build_optimizer, lr_at


@pytest.mark.parametrize("step", [0, 1, 37, 99])
def test_schedules_are_their_closed_form(step):
    base = Recipe(learning_rate=0.2)
    assert lr_at(step, 100, base) == 0.2
    assert lr_at(step, 100, base.replace(schedule="linear")) == pytest.approx(0.2 * (100 - step) / 100)
    assert lr_at(step, 100, base.replace(schedule="cosine")) == pytest.approx(0.1 * (1 + math.cos(math.pi * step / 100)))


def test_schedules_start_at_the_top_and_fall():
    for schedule in ("linear", "cosine"):
        rates = [lr_at(step, 50, Recipe(schedule=schedule)) for step in range(50)]
        assert rates[0] == 0.01
        assert all(later < earlier for earlier, later in itertools.pairwise(rates))
        assert rates[-1] > 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_textbooks(nesterov):
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1, bias=False)
    recipe = Recipe(learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    optimizer = build_optimizer(layer, recipe)
    weight, velocity = layer.weight.detach().clone(), torch.zeros(1, 3)
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.ones(1, 3)) ** 2).sum().backward()
        gradient = 2 * weight.sum() * torch.ones(1, 3) + 0.01 * weight
        velocity = 0.9 * velocity + gradient
        weight = weight - 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        optimizer.step()
        assert torch.allclose(layer.weight, weight, atol=1e-5)


def test_frozen_weights_stay():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert sum(len(group["params"]) for group in build_optimizer(layer, Recipe()).param_groups) == 1
