"""Trainings that start with the weights of another run, whose classes may differ."""

from dataclasses import replace

import pytest
import torch

import gingham
from gingham.io import tensors_sha256
from gingham.models.registry import build_classifier
from gingham.training.initial_weights import copy_shared_weights
from helpers import fit
from pretrained_files import tiny_recipe

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture(params=["pretrained", "article", "fast"])
def start(request, photo_folder, quadrants, tiny_weights):
    """A run with a pretrained or another network, and its data."""
    if request.param == "pretrained":
        data = gingham.load_data(str(photo_folder), 12, size=32)
        return fit(tiny_recipe(), data, weights=tiny_weights), data
    data = gingham.load_data(str(quadrants), 40)
    recipe = gingham.RECIPES[request.param].replace(epochs=1, batch_size=32, validation_images=40)
    return fit(recipe, data), data


def new_model(run, classes):
    torch.manual_seed(5)
    recipe = run.recipe
    return build_classifier(recipe.network, classes, run.model.input_shape, recipe.mean, recipe.std).eval()


def test_classes_in_another_order_keep_their_logits(start):
    run, data = start
    classes = run.model.classes[::-1]
    model = new_model(run, classes)
    copy_shared_weights(run, model)
    model.tta = run.model.tta
    expected = run.model.logits(data.train.images[:20]) * float(run.model.temperature)
    assert torch.allclose(model.logits(data.train.images[:20]), expected.flip(1), rtol=1e-4, atol=1e-4)


def test_new_classes_keep_their_own_weights_and_missing_ones_are_left_out(start):
    run, _ = start
    kept, missing = run.model.classes[1], run.model.classes[0]
    model, untouched = new_model(run, ("new", kept, "newer")), new_model(run, ("new", kept, "newer"))
    copy_shared_weights(run, model)
    assert missing not in model.classes
    before, after, own = (m.network.state_dict() for m in (run.model, model, untouched))
    outputs = [name for name in after if after[name].shape != before[name].shape]
    assert outputs
    for name, tensor in after.items():
        if name in outputs:
            assert torch.equal(tensor[1], before[name][1])
            assert torch.equal(tensor[[0, 2]], own[name][[0, 2]])
        else:
            assert torch.equal(tensor, before[name])


def test_a_training_can_start_with_a_run_and_says_so(start):
    run, data = start
    checksum = tensors_sha256(run.model.state_dict())
    recipe = run.recipe.replace(learning_rate=0.0, ema_decay=0.0, optimizer="sgd")  # Muon scales filters in each step
    again = fit(recipe, data, start=run)
    names = [name for name, _ in run.model.network.named_parameters()]
    assert all(torch.equal(again.model.network.get_parameter(k), run.model.network.get_parameter(k)) for k in names)
    origin = {"run": run.recipe.name, "seed": 0, "weights_sha256": checksum}
    assert again.data["origin"] == origin
    assert again.origin_name == f"a run of {run.recipe.name} with seed 0"


def test_a_run_of_another_network_is_refused(start):
    run, data = start
    network = "small" if run.recipe.network != "small" else "medium"
    recipe = gingham.RECIPES["fast"].replace(network=network, epochs=1, validation_images=12)
    with pytest.raises(
        gingham.ModelError, match=r"of the run to start from does not fit .*train with the same network"
    ) as e:
        fit(recipe, data, start=run)
    assert "\n" not in str(e.value)


def test_a_run_of_grey_images_does_not_fit_colours(quadrants):
    data = gingham.load_data(str(quadrants), 40)
    recipe = gingham.RECIPES["fast"].replace(epochs=1, batch_size=32, validation_images=40)
    run = fit(recipe, data)
    colours = replace(data.train, images=data.train.images.expand(-1, 3, -1, -1))
    with pytest.raises(gingham.ModelError, match="images of the same number of channels"):
        gingham.fit(recipe, colours, progress=False, options=gingham.FitOptions(start=run))
