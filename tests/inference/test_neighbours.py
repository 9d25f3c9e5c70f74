import pytest
import torch

from gingham.inference.neighbours import features
from gingham.models.registry import build_classifier


@pytest.mark.parametrize(
    ("network", "tta", "width"), [("tiny", "flip", 64), ("tiny", "none", 64), ("article", "none", 10)]
)
def test_features_are_the_inputs_of_the_last_linear_layer_or_the_logits(network, tta, width):
    """With flip TTA they are those of the image itself, not of its mirror image."""
    model = build_classifier(network, [str(k) for k in range(10)], (1, 28, 28), tta=tta)
    images = torch.randint(256, (1203, 1, 28, 28), dtype=torch.uint8)
    vectors = features(model, images)
    assert vectors.shape == (1203, width)
    model.eval()
    alone = [features(model, image[None])[0] for image in images[[0, 700, 1202]]]
    assert torch.allclose(vectors[[0, 700, 1202]], torch.stack(alone), atol=1e-4)
    if network == "tiny":
        with torch.no_grad():
            pixels = (images[:5].float() / 255 - model.mean) / model.std
            expected = model.network[:-1](pixels)
        assert torch.allclose(vectors[:5], expected, atol=1e-4)
