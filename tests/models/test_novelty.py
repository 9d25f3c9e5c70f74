"""Novelty scores: the distances against SciPy, the statistics against NumPy, and what networks they are found in."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.spatial.distance
import torch
from torch import nn

import gingham
from gingham.errors import ModelError
from gingham.evaluation.novelty import fit_novelty
from gingham.models.networks import article
from gingham.models.novelty import (
    GaussianMixture,
    Novelty,
    capture_statistics,
    find_stages,
    layer_statistics,
    watch_stages,
)
from gingham.models.registry import build_classifier
from helpers import fresh_model
from own_networks import Flat, NoParameters, Norms

RECIPE = gingham.RECIPES["fast"].replace(network="small", precision="float32")


def random_mixture(features=12, centres=5, axes=3, seed=0):
    """Return the parameters of a mixture, float64, and the mixture, float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    directions = torch.linalg.qr(normal(features, axes))[0]
    variances, rest = 1 + normal(axes).abs() * 5, torch.tensor(0.7, dtype=torch.float64)
    parameters = normal(features), 0.5 + normal(features).abs(), normal(centres, features), directions, variances, rest
    return parameters, GaussianMixture.from_parameters(*(tensor.float() for tensor in parameters))


@pytest.mark.parametrize(("features", "centres", "axes"), [(12, 5, 3), (4, 1, 4), (30, 20, 1)])
def test_distances_are_those_of_scipy_with_the_full_covariance(features, centres, axes):
    (shift, scale, middles, directions, variances, rest), mixture = random_mixture(features, centres, axes)
    covariance = rest * torch.eye(features, dtype=torch.float64)
    covariance += directions @ torch.diag(variances - rest) @ directions.T
    inverse = np.linalg.inv(covariance.numpy())
    points = torch.randn(20, features, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    standard = ((points - shift) / scale).numpy()
    expected = [
        min(scipy.spatial.distance.mahalanobis(point, middle, inverse) ** 2 for middle in middles.numpy())
        for point in standard
    ]
    distances = mixture(points.float())
    assert distances.shape == (20,)
    assert np.allclose(distances.numpy(), np.log(expected), atol=1e-4)


def test_a_centre_itself_has_a_finite_distance_below_all_others():
    (shift, scale, middles, *_), mixture = random_mixture()
    at_centres = mixture((middles * scale + shift).float())
    assert at_centres.isfinite().all()
    assert float(at_centres.max()) < float(mixture((middles * scale + shift + 0.1 * scale).float()).min())


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (7, 4), (1, 5), (2, 1)])
def test_layer_statistics_are_those_of_numpy_for_each_channel(size):
    activations = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0)).relu() * 2 - 0.3
    statistics = layer_statistics(activations)
    assert statistics.shape == (3, 6 * 4)
    height, width = size
    for image, row in zip(activations.double().numpy(), statistics.numpy(), strict=True):
        quadrants, deviation, skewness = row[:16].reshape(4, 4), row[16:20], row[20:]
        for k, channel in enumerate(image):
            parts = [
                channel[rows, columns].mean()
                for rows in (slice(0, -(-height // 2)), slice(height // 2, None))
                for columns in (slice(0, -(-width // 2)), slice(width // 2, None))
            ]
            assert np.allclose(quadrants[:, k], parts, atol=1e-5)
            assert deviation[k] == pytest.approx(channel.std(), abs=1e-3)
            third = np.mean((channel - channel.mean()) ** 3)
            assert skewness[k] == pytest.approx(np.cbrt(abs(third)), abs=0.02)  # cube roots magnify rounding


def test_layer_statistics_do_not_depend_on_the_memory_layout_and_keep_vectors():
    activations = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    other = activations.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(layer_statistics(activations), layer_statistics(other), atol=0.01)  # as above
    assert layer_statistics(activations.bfloat16()).dtype == torch.float32
    assert torch.equal(layer_statistics(activations.flatten(1)), activations.flatten(1))


def sizes_of_stages(network, example):
    """Return the names of the layers that `find_stages` returns, with the sizes of their outputs."""
    sizes, stages = {}, find_stages(network, example)
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: sizes.update({name: tuple(output.shape[2:])})
        )
        for name in stages
    ]
    network(example)
    for handle in handles:
        handle.remove()
    return [(name, sizes[name]) for name in stages]


def test_the_stages_of_a_convolutional_network_are_the_last_layers_at_its_lowest_resolutions():
    example = torch.zeros(1, 1, 28, 28)
    names = dict(sizes_of_stages(article(), example))
    assert list(names.values()) == [(11, 11), (9, 9), (7, 7)]
    small = fresh_model(RECIPE).eval().network
    sizes = [size for _, size in sizes_of_stages(small, example)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes) == 3


@pytest.mark.parametrize(
    ("network", "stages"),
    [
        (Flat(), ("3",)),
        (Norms(), ("features.2", "out")),
        (NoParameters(), ()),
        (nn.Sequential(nn.Conv2d(1, 4, 28), nn.Flatten()), ()),
        (nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ("1",)),
    ],
    ids=["MLP", "one resolution and linear layers", "no layers", "one position", "no linear layer"],
)
def test_the_last_linear_layer_joins_the_stages_if_there_are_few_resolutions(network, stages):
    assert find_stages(network.eval(), torch.zeros(1, 1, 28, 28)) == stages


def test_linear_layers_that_do_not_run_are_no_stages():
    class Unused(Flat):
        def __init__(self):
            super().__init__()
            self.add_module("spare", nn.Linear(3, 3))

        def forward(self, x):
            for layer in list(self)[:4]:
                x = layer(x)
            return x

    assert find_stages(Unused().eval(), torch.zeros(1, 1, 28, 28)) == ("3",)


def test_a_layer_that_runs_at_two_resolutions_is_one_stage():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 1, 3), nn.Linear(24 * 24, 2)

        def forward(self, x):
            return self.linear(self.conv(self.conv(x)).flatten(1))

    assert find_stages(Twice().eval(), torch.zeros(1, 1, 28, 28)) == ("conv", "linear")


def random_split(count=60, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return gingham.Split("train", images, torch.arange(count) % classes, tuple("abcdefghij"[:classes]), "x", "f")


@pytest.fixture(scope="module")
def scored():
    """A model with random weights and a novelty score, and images."""
    model, split = fresh_model(RECIPE), random_split()
    fit_novelty(model, split)
    return model, random_split(33, seed=1).images


def test_fitting_a_score_changes_neither_the_network_nor_its_mode_and_random_numbers():
    model = fresh_model(RECIPE)
    next(model.network.children()).eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fit_novelty(model, random_split())
    assert torch.equal(torch.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "also of BatchNorm"
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"novelty"}
    assert [module.training for module in model.modules() if module not in set(model.novelty.modules())] == modes
    assert len(model.novelty.stages) == 3


def test_a_score_changes_no_prediction(scored):
    model, images = scored
    plain = fresh_model(RECIPE)
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "novelty" not in name})
    predictions, without = model.predict(images), plain.predict(images)
    assert torch.equal(predictions.probabilities, without.probabilities)
    assert torch.equal(without.novelty, torch.zeros(33))
    assert not without.novel.any()
    assert without.novel.shape == (33,)


def test_scores_depend_neither_on_the_batch_size_nor_on_other_images(scored):
    model, images = scored
    scores = model.predict(images).novelty
    assert scores.shape == (33,)
    assert scores.dtype == torch.float32
    for size in (1, 7, 32):
        assert torch.allclose(model.predict(images, size).novelty, scores, atol=1e-4)
    assert torch.allclose(model.predict(images.flip(0)).novelty.flip(0), scores, atol=1e-4)
    logits, novelty = model.score(images)
    assert torch.equal(logits, model.logits(images))
    assert torch.equal(novelty, scores)


def test_the_score_is_the_sum_of_standardised_terms(scored):
    model, images = scored
    with capture_statistics() as statistics, torch.no_grad():
        logits = model.eval()(images)
    novelty = model.novelty
    terms = [layer(statistics[name]) for layer, name in zip(novelty.layers, novelty.stages, strict=True)]
    terms = torch.stack([*terms, -logits.amax(dim=1)], dim=1)
    expected = ((terms - novelty.term_mean) / novelty.term_std).sum(dim=1)
    assert torch.allclose(model.predict(images).novelty, expected, atol=1e-4)


def test_predictions_are_novel_above_the_threshold(scored):
    model, images = copy.deepcopy(scored[0]), scored[1]
    scores = model.predict(images).novelty
    model.novelty.threshold.fill_(scores.median())
    predictions = model.predict(images)
    assert torch.equal(predictions.novel, scores > scores.median())
    assert 0 < int(predictions.novel.sum()) < 33
    model.novelty.photo_threshold.fill_(12.5)
    assert model.thresholds()[1] == float(scores.median())
    assert model.thresholds(for_photos=True)[1] == 12.5


def test_flip_tta_scores_the_image_itself():
    recipe = RECIPE.replace(tta="flip")
    model = fresh_model(recipe)
    fit_novelty(model, random_split())
    images = random_split(5, seed=1).images
    with capture_statistics() as statistics, torch.no_grad():
        model.eval()(images)
    single = fresh_model(recipe.replace(tta="none")).eval()
    watch_stages(single.network, model.novelty.stages)
    with capture_statistics() as expected, torch.no_grad():
        single(images)
    for name in model.novelty.stages:
        assert torch.allclose(statistics[name], expected[name], atol=1e-5)


def test_statistics_are_captured_only_inside_the_block(scored):
    model, images = scored
    with capture_statistics() as outer, torch.no_grad():
        pass
    model.predict(images)
    assert outer == {}
    with capture_statistics() as outer, torch.no_grad():
        with capture_statistics() as inner:
            model(images[:2])
        assert outer == {}
        assert set(inner) == set(model.novelty.stages)


def test_threads_that_score_at_once_get_the_scores_of_one(scored):
    model, _ = scored
    model.eval()
    batches = [random_split(20, seed=seed).images for seed in range(24)]
    expected = [model.predict(batch).novelty for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda batch: model.predict(batch).novelty, batches))
    for actual, alone in zip(scores, expected, strict=True):
        assert torch.allclose(actual, alone, atol=1e-4)


def test_a_copy_of_a_model_scores_by_itself(scored):
    model, images = scored
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.network.parameters():
            parameter.zero_()
    assert not torch.allclose(twin.predict(images).novelty, model.predict(images).novelty)
    fit_novelty(twin, random_split(seed=2))
    assert twin.predict(images).novelty.isfinite().all()


def test_scores_of_other_layers_are_an_error(scored):
    model, images = copy.deepcopy(scored[0]), scored[1]
    novelty = model.novelty
    model.set_novelty(Novelty(novelty.stages[::-1], list(novelty.layers)))
    with pytest.raises(ModelError, match=r"features for the novelty score, not .*; restore model\.json from"):
        model.predict(images)


def test_scores_that_are_not_finite_are_an_error(scored):
    model, images = copy.deepcopy(scored[0]), scored[1]
    model.novelty.layers[0].scale.fill_(1e-38)
    with pytest.raises(ModelError, match="predictions are not finite numbers"):
        model.predict(images)


def test_a_layer_called_with_a_keyword_argument_is_scored():
    class Keyword(nn.Module):
        def __init__(self, classes=10):
            super().__init__()
            self.linear = nn.Linear(784, classes)

        def forward(self, x):
            return self.linear(input=x.flatten(1))

    model = build_classifier("own:Keyword", list("abcdefghij"), (1, 28, 28), (0.5,), (0.5,), "none", Keyword)
    fit_novelty(model, random_split())
    assert model.novelty.stages == ("linear",)
    assert model.predict(random_split(3).images).novelty.unique().numel() == 3
