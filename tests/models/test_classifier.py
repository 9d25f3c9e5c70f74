import numpy as np
import pytest
import torch

from gingham import ModelError
from gingham.models.registry import build_classifier


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_classifier("article", [f"class {k}" for k in range(10)], (1, 28, 28))


def make_images(count=9, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (count, 1, 28, 28)).astype(np.uint8))


def test_uint8_images_are_normalised_before_the_network(model):
    images = make_images()
    normalised = (images.double() / 255 - 0.5) / 0.5  # ToTensor, then Normalize with mean 0.5 and std 0.5
    assert torch.allclose(model(images).double(), model.network.double()(normalised), atol=1e-5)


def test_predictions_have_labels_probabilities_and_names(model):
    predictions = model.predict(make_images())
    assert predictions.labels.shape == (9,)
    assert predictions.labels.dtype == torch.int64
    assert predictions.probabilities.shape == (9, 10)
    assert torch.allclose(predictions.probabilities.sum(dim=1), torch.ones(9))
    assert torch.equal(predictions.labels, predictions.probabilities.argmax(dim=1))
    assert predictions.names == [f"class {k}" for k in predictions.labels]
    assert not predictions.unsure.any()
    assert len(predictions) == 9


def test_numpy_images_give_the_same_predictions(model):
    images = make_images()
    assert torch.equal(model.predict(images.numpy()).probabilities, model.predict(images).probabilities)


def test_batch_size_does_not_change_predictions(model):
    images = make_images(23)
    expected = model.predict(images).probabilities
    for size in (1, 7, 23):
        assert torch.allclose(model.predict(images, batch_size=size).probabilities, expected, atol=1e-6)
    assert len(model.predict(images[:0])) == 0


def test_predict_restores_the_mode_of_each_module():
    model = build_classifier("article", list("0123456789"), (1, 28, 28)).train()
    model.network.pool1.eval()  # as for a frozen BatchNorm
    model.predict(make_images())
    assert model.training
    assert model.network.conv1.training
    assert not model.network.pool1.training


def test_predict_restores_the_mode_of_the_model(model):
    for mode in (True, False):
        model.train(mode)
        model.predict(make_images())
        assert model.training is mode


def test_temperature_and_threshold_affect_predictions(model):
    before = model.predict(make_images())
    model.temperature.fill_(4.0)
    model.threshold.fill_(0.5)
    after = model.predict(make_images())
    assert torch.equal(before.labels, after.labels)
    assert (after.probabilities.max(dim=1).values < before.probabilities.max(dim=1).values).all()
    assert torch.equal(after.unsure, after.probabilities.max(dim=1).values < 0.5)
    assert after.unsure.any()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 28, 28),
        torch.zeros(2, 28, 28, dtype=torch.uint8),
        torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
    ],
)
def test_images_of_another_shape_or_dtype_are_an_error(model, images):
    with pytest.raises(ModelError, match=r"the model got .* it takes uint8 of shape \(N, 1, 28, 28\)"):
        model.predict(images)


def test_non_finite_probabilities_are_an_error():
    model = build_classifier("tiny", list("abc"), (1, 8, 8))
    with torch.no_grad():
        model.temperature.fill_(1e-45)
    with pytest.raises(ModelError, match="predictions are not finite numbers; restore its weights from a copy"):
        model.predict(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))


def test_colour_images_and_other_class_counts():
    model = build_classifier("article", list("abc"), (3, 28, 28), mean=(0.5, 0.4, 0.3), std=(0.2,))
    assert model.predict(torch.zeros(2, 3, 28, 28, dtype=torch.uint8)).probabilities.shape == (2, 3)
    assert model.mean.flatten().tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_tta_averages_mirror_images_and_shifted_ones():
    torch.manual_seed(0)
    model = build_classifier("tiny", list("0123456789"), (1, 28, 28), tta="flip")
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    model.tta = "none"
    expected = (model.logits(images) + model.logits(images.flip(3))) / 2
    model.tta = "flip"
    assert torch.allclose(model.logits(images), expected, atol=1e-5)
    assert torch.allclose(model.logits(images), model.logits(images.flip(3)), atol=1e-5)
    black = torch.nn.functional.pad(images, (1, 1, 1, 1))
    moved = [black[:, :, top : top + 28, left : left + 28] for top, left in ((0, 0), (2, 2))]
    expected = expected / 2 + (model.logits(moved[0]) + model.logits(moved[1])) / 4
    model.tta = "shift"
    assert torch.allclose(model.logits(images), expected, atol=1e-5)
    model.train()
    model.network.eval()  # BatchNorm in evaluation mode, the classifier in training mode: no flipped copy
    model.tta = "none"
    unflipped = model(images)
    for model.tta in ("flip", "shift"):
        assert torch.equal(model(images), unflipped)
