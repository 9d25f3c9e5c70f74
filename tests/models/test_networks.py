import numpy as np
import pytest
import torch
from torch import nn

from gingham import ModelError
from gingham.models.networks import NETWORKS, MeanPool, Residual, article
from gingham.models.registry import build_classifier
from helpers import reference_article


def test_the_articles_network_is_the_articles():
    torch.manual_seed(3)
    ours = article().eval()
    torch.manual_seed(3)
    theirs = reference_article().eval()  # the same draws in the same order: PyTorch's own initialisation
    x = torch.rand(5, 1, 28, 28)
    assert torch.equal(ours(x), theirs(x))
    assert sum(p.numel() for p in ours.parameters()) == 48884
    assert all(p.requires_grad for p in ours.parameters())


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_classifier("article", [f"class {k}" for k in range(10)], (1, 28, 28))


def pictures(count=9, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, 1, 28, 28)).astype(np.uint8))


def test_uint8_in_logits_out_as_the_article_normalises(model):
    x = pictures()
    by_hand = (x.double() / 255 - 0.5) / 0.5  # to tensor, then mean 0.5 and std 0.5
    assert torch.allclose(model(x).double(), model.network.double()(by_hand), atol=1e-5)


def test_predictions(model):
    predictions = model.predict(pictures())
    assert predictions.labels.shape == (9,)
    assert predictions.labels.dtype == torch.int64
    assert predictions.probabilities.shape == (9, 10)
    assert torch.allclose(predictions.probabilities.sum(dim=1), torch.ones(9))
    assert torch.equal(predictions.labels, predictions.probabilities.argmax(dim=1))
    assert predictions.names == [f"class {k}" for k in predictions.labels]
    assert not predictions.unsure.any()
    assert len(predictions) == 9


def test_numpy_pictures_are_taken_too(model):
    x = pictures()
    assert torch.equal(model.predict(x.numpy()).probabilities, model.predict(x).probabilities)


def test_the_batch_size_does_not_change_the_answers(model):
    x = pictures(23)
    whole = model.predict(x).probabilities
    for size in (1, 7, 23):
        assert torch.allclose(model.predict(x, batch_size=size).probabilities, whole, atol=1e-6)
    assert len(model.predict(x[:0])) == 0


def test_predicting_leaves_every_mode_alone():
    model = build_classifier("article", list("0123456789"), (1, 28, 28)).train()
    model.network.pool1.eval()  # as one freezes a BatchNorm
    model.predict(pictures())
    assert model.training
    assert model.network.conv1.training
    assert not model.network.pool1.training


def test_predicting_leaves_the_mode_alone(model):
    for mode in (True, False):
        model.train(mode)
        model.predict(pictures())
        assert model.training is mode


def test_temperature_and_threshold_are_inside(model):
    before = model.predict(pictures())
    model.temperature.fill_(4.0)
    model.threshold.fill_(0.5)
    after = model.predict(pictures())
    assert torch.equal(before.labels, after.labels)
    assert (after.probabilities.max(dim=1).values < before.probabilities.max(dim=1).values).all()
    assert torch.equal(after.unsure, after.probabilities.max(dim=1).values < 0.5)
    assert after.unsure.any()


@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(2, 1, 28, 28), torch.zeros(2, 28, 28, dtype=torch.uint8), torch.zeros(2, 3, 28, 28, dtype=torch.uint8)],
)
def test_other_pictures_are_refused(model, wrong):
    with pytest.raises(ModelError, match=r"the model got .* it takes uint8 of shape \(N, 1, 28, 28\)"):
        model.predict(wrong)


def test_networks_that_do_not_fit():
    with pytest.raises(ModelError, match="unknown network 'articel'; did you mean 'article'"):
        build_classifier("articel", ["a"], (1, 28, 28))
    with pytest.raises(ModelError, match="cannot take pictures of 1x20x20"):
        build_classifier("article", ["a"], (1, 20, 20))
    with pytest.raises(ModelError, match=r"turns one picture of 1x32x32 into \(1, 90\), where \(1, 10\) logits are needed"):
        build_classifier("article", list("0123456789"), (1, 32, 32))
    with pytest.raises(ModelError, match="mean has 3 numbers for pictures of 1 channels"):
        build_classifier("article", list("0123456789"), (1, 28, 28), mean=(0.1, 0.2, 0.3))


def test_answers_that_are_no_numbers_are_refused():
    model = build_classifier("tiny", list("abc"), (1, 8, 8))
    with torch.no_grad():
        model.temperature.fill_(1e-45)
    with pytest.raises(ModelError, match="answers are not finite numbers; restore its weights from a copy"):
        model.predict(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))


def test_colour_and_other_class_counts():
    model = build_classifier("article", list("abc"), (3, 28, 28), mean=(0.5, 0.4, 0.3), std=(0.2,))
    assert model.predict(torch.zeros(2, 3, 28, 28, dtype=torch.uint8)).probabilities.shape == (2, 3)
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_every_network_can_be_built():
    for name in NETWORKS:
        assert build_classifier(name, list("0123456789"), (1, 28, 28)).predict(pictures(2)).probabilities.shape == (2, 10)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"article"}))
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 45, 61)])
def test_residual_networks_take_pictures_of_any_size(name, shape):
    model = build_classifier(name, list("abcde"), shape)
    assert model.logits(torch.zeros(3, *shape, dtype=torch.uint8)).shape == (3, 5)


def test_a_residual_block_adds_to_its_input():
    block = Residual(torch.nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x + block.layers(x))


def test_mean_pool_is_the_mean_over_positions_and_its_gradient_keeps_the_memory_format():
    x = torch.rand(4, 8, 3, 5).to(memory_format=torch.channels_last).requires_grad_()
    pooled = MeanPool()(x)
    assert torch.allclose(pooled, nn.AdaptiveAvgPool2d(1)(x).flatten(1))
    came_back = []
    inner = x * 1.0
    inner.register_hook(came_back.append)
    MeanPool()(inner).square().sum().backward()
    assert torch.allclose(came_back[0], (2 * pooled / 15)[:, :, None, None].expand_as(x))
    assert came_back[0].is_contiguous(memory_format=torch.channels_last)


def test_two_views_are_the_mean_of_picture_and_mirror_image():
    torch.manual_seed(0)
    model = build_classifier("tiny", list("0123456789"), (1, 28, 28), tta="flip")
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    model.tta = "none"
    expected = (model.logits(images) + model.logits(images.flip(3))) / 2
    model.tta = "flip"
    assert torch.allclose(model.logits(images), expected, atol=1e-5)
    assert torch.allclose(model.logits(images), model.logits(images.flip(3)), atol=1e-5)
    model.train()
    model.network.eval()  # BatchNorm as it answers, the classifier as it trains: one view
    model.tta = "none"
    once = model(images)
    model.tta = "flip"
    assert torch.equal(model(images), once)
