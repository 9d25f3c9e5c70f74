"""Every illness is planted, and has to be found; a healthy training has none."""

import dataclasses
import json

import pytest
import torch

import gingham
from gingham import GinghamError, Split
from helpers import make_dataset
from own_networks import Dead, Norms, Plain, TwiceSoftmax, Zero

ARTICLE = gingham.RECIPES["article"].replace(validation_images=60, batch_size=5, epochs=9, learning_rate=0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return gingham.load_data(str(make_dataset(tmp_path_factory.mktemp("data") / "quadrants", train=360)), validation=60)


def diagnosed(recipe, data, capsys, network=None, train=None, validation=None):
    """What the doctor finds after a training, and what was said during it."""
    train, validation = train or data.train, validation or data.validation
    run = gingham.fit(recipe, train, validation, network=network)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    found = gingham.check_run(run, train, validation)
    json.dumps([issue.to_dict() for issue in found], allow_nan=False)
    assert all(issue.evidence and issue.fix and "\n" not in issue.fix for issue in found)
    return [issue.title for issue in found], said


@pytest.mark.slow
def test_a_healthy_run_has_no_finding(data, capsys):
    assert diagnosed(ARTICLE, data, capsys) == ([], [])
    assert diagnosed(ARTICLE, data, capsys, Plain) == ([], [])
    assert diagnosed(gingham.RECIPES["fast-90"].replace(batch_size=32, epochs=3), data, capsys) == ([], [])


def test_dead_relus_are_named_with_their_layer(data, capsys):
    found, said = diagnosed(ARTICLE, data, capsys, Dead)
    assert "all ReLUs are dead in layer conv2 (the ReLU after it)" in found
    assert any("dead in layer conv2" in line and "32 of its 32 channels (100%)" in line for line in said)
    assert not any("stuck" in issue for issue in found), "its cause is known"


def test_a_dead_layer_of_the_articles_network(data, capsys):
    run = gingham.fit(ARTICLE, data.train, data.validation, progress=False)
    with torch.no_grad():
        run.model.network.conv7.weight.neg_().sub_(1)
    (issue,) = [one for one in gingham.check_run(run, data.train) if "dead" in one.title]
    assert issue.title == "all ReLUs are dead in layer relu7"


def test_a_loss_stuck_at_ln_k(data, capsys):
    found, said = diagnosed(ARTICLE, data, capsys, Zero)
    assert found == ["the loss is stuck at ln 4"]
    assert any("guessing gives ln 4 = 1.386" in line for line in said)


def test_a_stuck_loss_is_told_where_nothing_is_held_out(data, capsys):
    gingham.fit(ARTICLE, data.train, network=Zero)
    assert "the loss is stuck at ln 4" in capsys.readouterr().err


def test_softmax_twice(data, capsys):
    found, said = diagnosed(ARTICLE, data, capsys, TwiceSoftmax)
    assert "softmax is applied twice" in found
    assert any("softmax is applied twice" in line for line in said)


@pytest.mark.parametrize("changes", [{"mean": 0.0, "std": 1 / 255}, {"mean": 0.0, "std": 1.0}, {"mean": 3.0, "std": 0.5}])
def test_pixels_that_are_not_normalised(data, capsys, changes):
    found, said = diagnosed(ARTICLE.replace(epochs=1, **changes), data, capsys)
    assert "the pixels are not normalised" in found
    assert any("the pixels are not normalised" in line for line in said)


def test_shuffled_labels(data, capsys):
    mixed = dataclasses.replace(
        data.train, labels=data.train.labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    )
    found, said = diagnosed(ARTICLE, data, capsys, train=mixed)
    assert "the labels of the train pictures do not belong to them" in found
    assert any("do not belong to them" in line for line in said)


@pytest.mark.slow
def test_shuffled_validation_labels(data, capsys):
    mixed = dataclasses.replace(
        data.validation, labels=data.validation.labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    )
    found, _ = diagnosed(ARTICLE, data, capsys, validation=mixed)
    assert "the labels of the validation pictures do not belong to them" in found


@pytest.mark.parametrize("rate", [1e-7, 0.0])
def test_a_rate_far_too_low(data, capsys, rate):
    found, said = diagnosed(ARTICLE.replace(learning_rate=rate, epochs=1), data, capsys)
    assert found == ["the learning rate is far too low"]
    assert any("far too low" in line for line in said)


def test_a_rate_far_too_low_for_muon(data, capsys):
    assert diagnosed(gingham.RECIPES["fast-90"].replace(batch_size=8, epochs=3, learning_rate=1e-6), data, capsys)[0] == [
        "the learning rate is far too low"
    ]


def test_a_rate_far_too_high(data, capsys):
    recipe = gingham.RECIPES["fast-90"].replace(optimizer="sgd", momentum=0.9, batch_size=4, epochs=1, learning_rate=60.0)
    found, said = diagnosed(recipe, data, capsys)
    assert "the learning rate is far too high" in found
    assert any("far too high" in line for line in said)
    with pytest.raises(GinghamError, match=r"no longer finite since step .* try a lower one"):
        gingham.fit(ARTICLE.replace(learning_rate=9999), data.train, data.validation, progress=False)


@pytest.mark.slow
def test_over_fitting(capsys, tmp_path):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (260, 1, 28, 28), dtype=torch.uint8, generator=random)
    labels = torch.arange(260) % 4
    images[:, :, :8] = (images[:, :, :8].float() * 0.75 + 16 * labels[:, None, None, None]).clamp(max=255).to(torch.uint8)
    # Some labels are wrong: who learns them by heart is sure of wrong answers, and the validation loss doubles on any processor.
    wrong = torch.rand(260, generator=random) < 0.4
    labels = torch.where(wrong, labels[torch.randperm(260, generator=random)], labels)
    names = tuple("abcd")
    train, validation = (
        Split(name, images[part], labels[part], names, "faint", "1")
        for name, part in (("train", slice(60)), ("validation", slice(60, 260)))
    )
    recipe = gingham.RECIPES["fast-90"].replace(batch_size=16, epochs=80, hard_share=1, label_smoothing=0, network="medium")
    run = gingham.fit(recipe.replace(learning_rate=0.3), train, validation)
    assert any("the network over-fits" in line for line in capsys.readouterr().err.splitlines())
    assert "the network over-fits" in [issue.title for issue in gingham.check_run(run, train, validation)]


def test_a_last_batch_of_one_under_batchnorm(data, capsys):
    recipe = gingham.RECIPES["fast-90"].replace(epochs=1, batch_size=23)  # 300 = 13 times 23, and 1
    found, said = diagnosed(recipe, data, capsys)
    assert found == ["a batch of one picture goes through BatchNorm"]
    assert said[0].startswith("warning: a batch of one picture goes through BatchNorm")
    assert "--set batch_size=24" in said[0]
    with pytest.raises(GinghamError, match="BatchNorm cannot learn from one value a channel"):
        gingham.fit(recipe.replace(network="article", optimizer="sgd", hard_share=1), data.train, network=Norms, progress=False)


@pytest.mark.slow
def test_the_doctor_leaves_the_model_as_it_was(data):
    run = gingham.fit(ARTICLE, data.train, data.validation, progress=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    expected = run.model.predict(data.test.images).probabilities
    gingham.check_run(run, data.train, data.validation)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert torch.equal(run.model.predict(data.test.images).probabilities, expected)
    assert run.test_openings == []


@pytest.mark.slow
def test_healthy_runs_on_the_real_pictures(fashion_mnist, capsys):
    for recipe in (gingham.RECIPES["article"].replace(epochs=0.1), gingham.RECIPES["fast-85"]):
        run = gingham.fit(recipe, fashion_mnist.train, fashion_mnist.validation)
        assert "warning" not in capsys.readouterr().err
    assert gingham.check_run(run, fashion_mnist.train, fashion_mnist.validation) == []
