import pytest
import torch
from torch import nn

from gingham.models.networks import NETWORKS, MeanPool, Residual, article
from gingham.models.registry import build_classifier
from helpers import reference_article


def test_article_network_matches_the_reference():
    torch.manual_seed(3)
    network = article().eval()
    torch.manual_seed(3)
    reference = reference_article().eval()  # the same draws in the same order: PyTorch's default initialisation
    x = torch.rand(5, 1, 28, 28)
    assert torch.equal(network(x), reference(x))
    assert sum(p.numel() for p in network.parameters()) == 48884
    assert all(p.requires_grad for p in network.parameters())


def test_every_network_can_be_built():
    for name in NETWORKS:
        assert build_classifier(name, list("0123456789"), (1, 28, 28)).predict(
            torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
        ).probabilities.shape == (2, 10)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"article"}))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 45, 61)])
def test_residual_networks_accept_any_image_size(name, shape):
    model = build_classifier(name, list("abcde"), shape)
    assert model.logits(torch.zeros(3, *shape, dtype=torch.uint8)).shape == (3, 5)


def test_residual_block_adds_layers_to_its_input():
    block = Residual(torch.nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x + block.layers(x))


def test_mean_pool_averages_positions_and_keeps_the_memory_format_of_gradients():
    x = torch.rand(4, 8, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    pooled = MeanPool()(x)
    assert torch.allclose(pooled, nn.AdaptiveAvgPool2d(1)(x).flatten(1))
    gradients = []
    activations = x * 1.0
    activations.register_hook(gradients.append)
    MeanPool()(activations).square().sum().backward()
    assert torch.allclose(gradients[0], (2 * pooled / 15)[:, :, None, None].expand_as(x))
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
