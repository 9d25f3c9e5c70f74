"""The totals of a network, and the errors for networks that do not fit the image."""

import copy
import math

import pytest
import torch
from torch import nn

import gingham
from gingham import Classifier, ModelError, summarize


def test_article_network_totals_match_hand_computed_ones():
    summary = summarize(gingham.NETWORKS["article"](1, 10), (1, 28, 28))
    flops = 2 * (
        26**2 * 16 * 9
        + 24**2 * 32 * 16 * 9
        + 22**2 * 64 * 32 * 9
        + 11**2 * 32 * 64
        + 9**2 * 32 * 32 * 9
        + 7**2 * 32 * 32 * 9
        + 7**2 * 10 * 32
        + 10 * 10 * 49
    )
    assert summary.flops == flops == sum(layer.flops for layer in summary.layers)
    assert summary.parameter_bytes == 4 * 48884
    assert summary.input_bytes == 4 * 784
    floats = sum(
        2 * math.prod(s)
        for s in ((16, 26, 26), (32, 24, 24), (64, 22, 22), (32, 11, 11), (32, 9, 9), (32, 7, 7), (10, 7, 7))
    )
    assert summary.activation_bytes == 4 * (floats + 64 * 11 * 11 + 10 + 10)
    assert summary.memory_bytes == summary.input_bytes + summary.activation_bytes + summary.parameter_bytes


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.tied = nn.Conv2d(2, 2, 3, padding=1)
        self.tied.weight = self.conv.weight
        self.scale = nn.Parameter(torch.ones(2, 1, 1))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.tied(self.conv(self.conv(x))) * self.scale


def test_shared_weights_count_once():
    summary = summarize(Shared(), (2, 8, 8))
    assert summary.parameters == sum(p.numel() for p in Shared().parameters()) == 36 + 2 + 2 + 2 + 12
    assert [layer.parameters for layer in summary.layers] == [38, 0, 2, 2]
    assert [layer.name for layer in summary.layers] == ["conv", "conv#2", "tied", "mul"]
    assert "12 of them not used in this forward pass" in summary.table()
    assert summary.receptive_field == 7


def test_frozen_parameters_are_not_counted_as_trainable():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    network[0].requires_grad_(False)
    summary = summarize(network, (1, 8, 8))
    assert summary.trainable_parameters == 38
    assert [layer.trainable_parameters for layer in summary.layers] == [0, 38]


def test_summarize_does_not_change_the_network():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = copy.deepcopy(network.state_dict())
    summarize(network, (1, 8, 8))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


def test_too_small_input_is_an_error_that_names_the_layer():
    with pytest.raises(ModelError, match=r"1x20x20 is too small for conv8 \(Conv2d\), which got an input of 10x3x3"):
        summarize(gingham.NETWORKS["article"](1, 10), (1, 20, 20))
    pools = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(4), nn.MaxPool2d(4))
    with pytest.raises(ModelError, match=r"1x8x8 is too small for 2 \(MaxPool2d\), which got an input of 2x1x1"):
        summarize(pools, (1, 8, 8))


def test_wrong_linear_size_is_an_error_with_the_right_size():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(100, 10))
    with pytest.raises(
        ModelError, match=r"reaches 2 \(Linear\) with 2704 features, but the layer takes 100; .*Linear\(2704, 10\)"
    ):
        summarize(network, (1, 28, 28))


def test_wrong_channels_are_an_error_with_the_right_number():
    with pytest.raises(
        ModelError,
        match=r"reaches conv1 \(Conv2d\) with 3 channels, but the layer takes 1; "
        r"make it Conv2d\(3, 16, ...\), or give images of 1x28x28",
    ):
        summarize(gingham.NETWORKS["article"](1, 10), (3, 28, 28))


def test_failing_network_is_an_error_with_its_message():
    class Broken(nn.Module):
        def forward(self, _):
            raise RuntimeError("no\nluck")

    with pytest.raises(ModelError, match=r"failed \(no luck\)"):
        summarize(nn.Sequential(Broken()), (1, 8, 8))


def test_the_model_of_a_run_is_summarized_by_its_network_and_shape():
    model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), ("a", "b"), (3, 8, 8))
    summary = summarize(model)
    assert summary.input_shape == (3, 8, 8)
    assert [layer.name for layer in summary.layers] == [
        layer.name for layer in summarize(model.network, (3, 8, 8)).layers
    ]
