import copy
import itertools
import math

import pytest
import torch

from gingham import Recipe
from gingham.training.optimizer import build_optimizer, lr_at, orthogonalize


@pytest.mark.parametrize("step", [0, 1, 37, 99])
def test_schedules_equal_their_closed_form(step):
    base = Recipe(learning_rate=0.2)
    assert lr_at(step, 100, base) == 0.2
    assert lr_at(step, 100, base.replace(schedule="linear")) == pytest.approx(0.2 * (100 - step) / 100)
    assert lr_at(step, 100, base.replace(schedule="cosine")) == pytest.approx(
        0.1 * (1 + math.cos(math.pi * step / 100))
    )


def test_schedules_start_at_the_maximum_and_fall():
    for schedule in ("linear", "cosine"):
        rates = [lr_at(step, 50, Recipe(schedule=schedule)) for step in range(50)]
        assert rates[0] == 0.01
        assert all(later < earlier for earlier, later in itertools.pairwise(rates))
        assert rates[-1] > 0


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_the_textbook_update(nesterov):
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


def test_frozen_weights_do_not_change():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert sum(len(group["params"]) for group in build_optimizer(layer, Recipe()).param_groups) == 1


def test_warmup_rises_linearly_to_the_maximum():
    recipe = Recipe(learning_rate=1.0, warmup=0.2, schedule="linear")
    rates = [lr_at(step, 100, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(0.6)
    assert rates[20] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 80)
    assert lr_at(0, 1, recipe.replace(warmup=1)) > 0


def test_orthogonalized_matrix_keeps_its_singular_vectors():
    torch.manual_seed(0)
    for shape in ((12, 40), (40, 12), (16, 16)):
        matrix = torch.randn(shape) @ torch.diag(torch.linspace(0.3, 1, shape[1]))
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        core = u.T @ orthogonalize(matrix, iterations=5) @ v.T
        assert core.diagonal().min() > 0.6
        assert core.diagonal().max() < 1.3
        assert (core - torch.diag(core.diagonal())).abs().max() < 1e-3


def test_matrices_of_a_batch_are_orthogonalized_each_on_its_own():
    matrices = torch.randn(3, 12, 40, generator=torch.Generator().manual_seed(0))
    matrices[1, :, 30:] = 0  # as narrower matrices are filled
    together = orthogonalize(matrices)
    for k, columns in enumerate((40, 30, 40)):
        assert torch.allclose(together[k, :, :columns], orthogonalize(matrices[k, :, :columns]), atol=1e-5)
    assert not together[1, :, 30:].any()
    assert torch.allclose(orthogonalize(matrices.mT), together.mT, atol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_equals_sgd_except_for_filters(nesterov):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 9, 2))
    recipe = Recipe(
        optimizer="muon", learning_rate=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov, filter_lr_scale=0
    )
    ours = build_optimizer(network, recipe)
    for group in ours.param_groups:
        group["lr"] = recipe.learning_rate * group["scale"]
    twin = copy.deepcopy(network)
    theirs = torch.optim.SGD(
        [
            {"params": [twin[2].weight], "weight_decay": 0.01},
            {"params": [twin[0].bias, twin[2].bias]},
        ],
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
    )
    images = torch.randn(8, 1, 5, 5)
    for _ in range(5):
        for model, optimizer in ((network, ours), (twin, theirs)):
            optimizer.zero_grad()
            with torch.no_grad():
                norm = model[0].weight.norm()
                model[0].weight.mul_(2 / norm)  # Muon scales filters to √out = 2; do the same in both networks
            (model(images) ** 2).sum().backward()
            optimizer.step()
    for mine, other in zip(list(network.parameters())[1:], list(twin.parameters())[1:], strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_muon_filters_take_orthogonal_steps_and_keep_their_norm():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 8, 3, bias=False)
    settings = {"learning_rate": 0.1, "momentum": 0.5, "nesterov": True, "filter_lr_scale": 0.4}
    optimizer = build_optimizer(layer, Recipe(optimizer="muon", **settings))
    (group,) = optimizer.param_groups
    group["lr"] = 0.1 * group["scale"]
    before = layer.weight.detach().clone()
    velocity = torch.zeros_like(before)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(4, 3, 6, 6)).square().sum().backward()
        gradient = layer.weight.grad.clone()
        velocity = 0.5 * velocity + gradient
        step = orthogonalize((gradient + 0.5 * velocity).flatten(1)).view_as(before)
        before = before * (8**0.5 / before.norm()) - 0.04 * step
        optimizer.step()
        assert torch.allclose(layer.weight, before, atol=1e-5)
