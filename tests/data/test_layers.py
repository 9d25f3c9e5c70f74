"""The geometry of layers against plain arithmetic, and random draws."""

import pytest
import torch

from gingham.data.layers import RandomDraws, rotation, scaling, warp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_warp_matches_a_loop_over_pixels():
    """A quarter turn and a shift by whole pixels, against the nearest source pixel."""
    layers = torch.rand(1, 2, 9, 9, generator=generator())
    quarter = rotation(torch.tensor([torch.pi / 2]))
    warped = warp(layers, quarter, torch.tensor([[2 / 9, 0.0]]))
    for row in range(9):
        for column in range(9):
            x, y = (column - 4) / 4.5, (row - 4) / 4.5
            source_x, source_y = -y + 2 / 9, x
            source_column, source_row = round(source_x * 4.5 + 4), round(source_y * 4.5 + 4)
            inside = 0 <= source_column < 9 and 0 <= source_row < 9
            expected = layers[0, :, source_row, source_column] if inside else torch.zeros(2)
            assert torch.allclose(warped[0, :, row, column], expected, atol=1e-4)


def test_scaling_divides_the_size_of_an_object():
    layers = torch.zeros(1, 2, 24, 24)
    layers[:, :, 6:18, 6:18] = 1
    smaller = warp(layers, scaling(torch.tensor([2.0]), torch.tensor([3.0])))[0, 1] > 0.5
    assert (int(smaller.any(dim=0).sum()), int(smaller.any(dim=1).sum())) == (6, 4)


def test_warp_leaves_an_empty_batch():
    empty = torch.zeros(0, 2, 9, 7)
    assert warp(empty, rotation(torch.zeros(0))).shape == (0, 2, 9, 7)


def test_draws_are_those_of_the_generator_and_in_range():
    draws, again = (RandomDraws(1000, generator(), torch.device("cpu")) for _ in range(2))
    numbers = draws.uniform(-2, 3, dims=2)
    assert numbers.shape == (1000, 1, 1)
    assert torch.equal(numbers, again.uniform(-2, 3, dims=2))
    assert ((numbers >= -2) & (numbers <= 3)).all()
    assert float(draws.chance(0.3).double().mean()) == pytest.approx(0.3, abs=0.06)
    noise = draws.noise((20, 30), (4, 4))
    assert noise.shape == (1000, 1, 20, 30)
    assert 0.5 < float(noise.var()) < 1.2
