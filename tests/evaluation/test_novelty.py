"""Novelty scores after training: what they keep, what they reject, and where they are saved."""

import copy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import gingham
from gingham.data.augment_photos import simulate_photos
from gingham.data.sampler import evenly_spaced
from gingham.evaluation.metrics import area_under_roc
from gingham.evaluation.novelty import KEPT, NUM_VALIDATION, fit_mixture, fit_novelty
from gingham.models.registry import build_classifier
from gingham.runs.run import halve
from helpers import fit
from own_networks import Plain
from pretrained_files import tiny_recipe

FAST = gingham.RECIPES["fast-85"]


@pytest.fixture(scope="session")
def trained(fashion_mnist):
    """A run of the recipe fast-85 on 6,000 images of Fashion-MNIST, without a validation split in the training."""
    train = part(fashion_mnist.train, slice(0, 6000))
    return gingham.fit(FAST.replace(epochs=3), train, part(fashion_mnist.validation, slice(None)), progress=False)


def part(split, indices, name=None):
    return gingham.Split(
        name or split.name,
        split.images[indices],
        split.labels[indices],
        split.classes,
        split.dataset,
        split.fingerprint,
    )


def blank(count=20):
    return (
        torch.arange(count, dtype=torch.float).mul(255 / (count - 1)).byte()[:, None, None, None].repeat(1, 1, 28, 28)
    )


def noise(count=50):
    return torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def shuffled(images):
    """Return images with their pixels in a random order, the same for all."""
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    return images.flatten(1)[:, order].view_as(images)


def test_the_share_of_validation_images_that_is_kept_is_that_of_the_threshold(trained, fashion_mnist):
    images = fashion_mnist.validation.images[evenly_spaced(len(fashion_mnist.validation), NUM_VALIDATION)]
    kept = 1 - float(trained.model.predict(images).novel.double().mean())
    assert kept == pytest.approx(KEPT, abs=0.001)


def test_as_many_simulated_photos_of_garments_are_kept(trained, fashion_mnist):
    """By the threshold for photos, whose images are not those that it was fitted to."""
    images, labels = fashion_mnist.validation.images[:1000], fashion_mnist.validation.labels[:1000]
    photos = simulate_photos(images, labels, fashion_mnist.classes, gingham.Recipe(photo_share=1.0), step=7)
    scores, (_, threshold) = trained.model.predict(photos).novelty, trained.model.thresholds(for_photos=True)
    assert float((scores <= threshold).double().mean()) == pytest.approx(KEPT, abs=0.02)


def test_a_model_of_other_things_has_the_same_threshold_for_photos(small_run):
    run, _ = small_run
    assert run.model.thresholds() == run.model.thresholds(for_photos=True)


def test_images_of_other_things_are_rejected(trained, fashion_mnist):
    images = fashion_mnist.validation.images[:500]
    inside = trained.model.predict(images).novelty
    others = {"noise": noise(), "blank": blank()[1:], "negatives": 255 - images, "shuffled": shuffled(images)}
    for name, other in others.items():
        predictions = trained.model.predict(other)
        assert predictions.novel.double().mean() > 0.9, name
        assert area_under_roc(inside, predictions.novelty) > 0.99, name
    upside_down = trained.model.predict(images.flip(2))
    assert area_under_roc(inside, upside_down.novelty) > 0.6, "still garments, but in another direction"


def test_a_saved_run_gives_the_same_scores(trained, fashion_mnist, tmp_path):
    run, images = copy.deepcopy(trained), fashion_mnist.validation.images[:200]
    expected = run.model.predict(images)
    loaded = gingham.load(gingham.save(run, tmp_path / "run")).model
    predictions = loaded.predict(images)
    assert torch.equal(predictions.novelty, expected.novelty)
    assert torch.equal(predictions.novel, expected.novel)
    assert loaded.novelty.stages == run.model.novelty.stages
    run.folder = None
    halved = gingham.load(gingham.save(run, tmp_path / "halved", halved=True)).model.predict(images)
    assert (halved.novelty - expected.novelty).abs().max() < 0.1
    assert (halved.novel != expected.novel).double().mean() <= 0.01
    run.model.load_state_dict(halve(run.model.state_dict()))
    assert torch.equal(run.model.predict(images).novelty, halved.novelty)


@pytest.mark.parametrize(("name", "images", "epochs"), [("article", 600, 1), ("fast-85", 3000, 4)])
def test_without_a_validation_split_the_threshold_keeps_as_many_new_images(name, images, epochs, fashion_mnist):
    recipe = gingham.RECIPES[name].replace(epochs=epochs, validation_images=0)
    model = gingham.fit(recipe, part(fashion_mnist.train, slice(0, images)), progress=False).model
    kept = 1 - float(model.predict(fashion_mnist.validation.images[:1000]).novel.double().mean())
    assert 0.94 <= kept < 1
    if name != "article":  # whose features are hardly trained
        assert model.predict(noise()).novel.double().mean() > 0.9


def test_the_order_of_the_images_does_not_change_the_threshold():
    """Each half must have all classes, also if the labels alternate; otherwise its images would all be novel."""
    random = np.random.default_rng(0)
    labels = torch.arange(200) % 2
    pixels = random.integers(0, 60, (200, 1, 28, 28)) + np.where(labels == 1, 150, 0)[:, None, None, None]
    alternating = gingham.Split("train", torch.from_numpy(pixels.astype(np.uint8)), labels, ("a", "b"), "x", "f")
    model = build_classifier("article", "ab", (1, 28, 28), (0.5,), (0.5,), "none")
    thresholds = []
    for order in (torch.arange(200), labels.argsort(stable=True)):
        fit_novelty(model, part(alternating, order))
        thresholds.append(float(model.novelty.threshold))
    assert thresholds[0] == pytest.approx(thresholds[1], abs=0.01)


def test_a_model_with_activations_that_are_not_finite_gets_no_score(trained, fashion_mnist):
    model = copy.deepcopy(trained.model)
    model.novelty = None
    next(model.network.parameters()).data.fill_(torch.nan)
    fit_novelty(model, part(fashion_mnist.train, slice(0, 100)), part(fashion_mnist.validation, slice(0, 50)))
    assert model.novelty is None
    assert model.thresholds() == (float(model.threshold), torch.inf)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("validated", [False, True])
def test_few_training_images_are_no_error(count, validated):
    images = noise(count)
    split = gingham.Split("train", images, torch.arange(count) % 2, ("a", "b"), "x", "f")
    validation = part(split, slice(0, 2), "validation") if validated else None
    model = build_classifier("article", "ab", (1, 28, 28), (0.5,), (0.5,), "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_novelty(model, split, validation)
    assert (model.novelty is None) == (count < 4)
    assert model.predict(images).novelty.isfinite().all()


def test_equal_images_and_empty_classes_give_no_warnings():
    images = noise(400)
    images[:350] = 0
    split = gingham.Split("train", images, torch.arange(400) // 350 * 2, ("a", "b", "c"), "x", "f")
    model = build_classifier("article", "abc", (1, 28, 28), (0.5,), (0.5,), "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_novelty(model, split)
    assert model.predict(noise(5)).novelty.isfinite().all()


def test_a_mixture_finds_the_clusters_of_each_class():
    """Two classes of two clusters each: their middles are near, the points between them and far away are not."""
    generator = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0], [10, 0], [0, 10], [10, 10]])
    cluster = torch.arange(800) % 4
    features = middles[cluster] + torch.randn(800, 2, generator=generator) * 0.3
    mixture = fit_mixture(features, cluster // 2)
    inside = mixture(features).quantile(0.98)
    assert (mixture(middles) < inside).all()
    assert (mixture(torch.tensor([[5.0, 5], [5, 0], [-5, -5], [10, 5], [30, 30]])) > inside).all()
    again = fit_mixture(features, cluster // 2)
    assert all(torch.equal(first, second) for first, second in zip(mixture.buffers(), again.buffers(), strict=True))


def test_constant_features_are_no_error():
    features = torch.cat([torch.ones(100, 3), torch.randn(100, 2)], dim=1)
    distances = fit_mixture(features, torch.zeros(100, dtype=torch.long))(features)
    assert distances.isfinite().all()


class TwoProcesses:
    """Stands for the first of two processes: it records that images are shared and tensors are sent."""

    def __init__(self):
        self.shared, self.sent = [], []

    def map_sharded(self, function, images):
        self.shared.append(len(images))
        return torch.cat([function(shard) for shard in torch.tensor_split(images, 2)])

    def broadcast(self, tensors):
        self.sent.extend(tensors)


def test_processes_share_the_images_and_get_the_same_score(trained, fashion_mnist):
    one, two = copy.deepcopy(trained.model), copy.deepcopy(trained.model)
    train, validation = part(fashion_mnist.train, slice(0, 800)), part(fashion_mnist.validation, slice(0, 300))
    fit_novelty(one, train, validation)
    context = TwoProcesses()
    fit_novelty(two, train, validation, context)
    assert context.shared == [800, 300]
    assert len(context.sent) == len(list(two.novelty.buffers()))
    images = fashion_mnist.validation.images[:100]
    assert torch.allclose(one.predict(images).novelty, two.predict(images).novelty, atol=1e-2)


def write_colours(folder, count=30, size=20):
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = np.array(colour) + random.normal(0, 25, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{k}.png")
    return folder


def test_a_run_on_a_folder_of_colour_images_rejects_other_colours(tmp_path):
    data = gingham.load_data(str(write_colours(tmp_path / "colours")), 12)
    run = fit(FAST.replace(epochs=10, batch_size=8, validation_images=12), data)
    assert len(run.model.novelty.stages) == 3
    random = np.random.default_rng(1)
    side = run.model.input_shape[1:]
    green = (np.array([30, 200, 30])[:, None, None] + random.normal(0, 25, (20, 3, *side))).clip(0, 255)
    assert run.model.predict(torch.from_numpy(green.astype(np.uint8))).novel.all()
    assert not run.model.predict(data.test.images).novel.all()


def test_a_pretrained_network_rejects_photos_of_other_things(photo_folder, tiny_weights, empty_cache, tmp_path):
    data = gingham.load_data(str(photo_folder), 12, size=32)
    run = fit(tiny_recipe(epochs=3), data, weights=tiny_weights)
    assert run.model.novelty.stages == ("classifier",), "features are computed once, so other layers are not available"
    others = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inside = run.model.predict(data.validation.images)
    assert area_under_roc(inside.novelty, run.model.predict(others).novelty) > 0.95
    loaded = gingham.load(gingham.save(run, tmp_path / "run"))
    assert torch.equal(loaded.model.predict(others).novelty, run.model.predict(others).novelty)
    # The score was fitted to features, which the images themselves give too.
    features = run.model.features(data.validation.images)
    assert torch.allclose(run.model.score(features)[1], inside.novelty, atol=1e-3)
    with torch.no_grad():
        run.model.network.classifier.weight.mul_(7)
    assert torch.equal(run.model.predict(data.validation.images).novelty, inside.novelty), "logits are left out"


def test_a_run_of_an_own_network_is_saved_with_its_score(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=0.5, validation_images=40)
    run = fit(recipe, data, network=Plain)
    expected = run.model.predict(data.test.images).novelty
    loaded = gingham.load(gingham.save(run, tmp_path / "run"), Plain)
    assert torch.equal(loaded.model.predict(data.test.images).novelty, expected)


def test_area_under_roc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    inside, outside = (torch.randint(20, (count,), generator=generator).float() for count in (70, 30))
    labels = [0] * 70 + [1] * 30
    assert area_under_roc(inside, outside + 3) == pytest.approx(roc_auc_score(labels, [*inside, *(outside + 3)]))
    assert area_under_roc(inside, outside) == pytest.approx(1 - area_under_roc(outside, inside))
