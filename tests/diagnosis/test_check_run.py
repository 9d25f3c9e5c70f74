"""Problems that are planted in a training are found, and a training without them has no issue."""

import copy
import dataclasses
import json

import pytest
import torch

import gingham
from gingham import GinghamError, Split
from gingham.training.checks import check_losses
from helpers import make_dataset
from own_networks import Dead, Flat, Norms, Plain, TwiceSoftmax, Zero

ARTICLE = gingham.RECIPES["article"].replace(validation_images=60, batch_size=5, epochs=9, learning_rate=0.02)
SMALL_BATCHES = ARTICLE.replace(batch_size=2, epochs=3.6)  # as many steps, for what needs many to be judged


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return gingham.load_data(str(make_dataset(tmp_path_factory.mktemp("data") / "quadrants", train=360)), validation=60)


def fit_and_check(recipe, data, capsys, network=None, train=None, validation=None):
    """Return the issues after a training, and the warnings printed during it."""
    train, validation = train or data.train, validation or data.validation
    run = gingham.fit(recipe, train, validation, options=gingham.FitOptions(network=network))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    issues = gingham.check_run(run, train, validation)
    json.dumps([issue.to_dict() for issue in issues], allow_nan=False)
    assert all(issue.evidence and issue.fix and "\n" not in issue.fix for issue in issues)
    return issues, warnings


def codes(issues):
    return [issue.code for issue in issues]


@pytest.mark.slow
def test_a_good_run_has_no_issue(data, capsys):
    assert fit_and_check(ARTICLE, data, capsys) == ([], [])
    assert fit_and_check(ARTICLE, data, capsys, Plain) == ([], [])
    assert fit_and_check(gingham.RECIPES["fast-90"].replace(batch_size=32, epochs=3), data, capsys) == ([], [])


def test_dead_relus_are_named_with_their_layer(data, capsys):
    issues, warnings = fit_and_check(SMALL_BATCHES, data, capsys, Dead)
    assert "all ReLUs are dead in layer conv2 (the ReLU after it)" in [issue.title for issue in issues]
    assert any("dead in layer conv2" in line and "32 of its 32 channels (100%)" in line for line in warnings)
    assert "stuck-loss" not in codes(issues), "it is explained by the dead ReLUs"


def test_a_dead_layer_of_the_articles_network(data, capsys):
    run = gingham.fit(ARTICLE.replace(epochs=0.1), data.train, data.validation, progress=False)
    with torch.no_grad():
        run.model.network.conv7.weight.neg_().sub_(1)
    (issue,) = [issue for issue in gingham.check_run(run, data.train) if "dead" in issue.code]
    assert issue.title == "all ReLUs are dead in layer relu7"


def test_a_loss_stuck_at_ln_k(data, capsys):
    issues, warnings = fit_and_check(ARTICLE, data, capsys, Zero)
    assert codes(issues) == ["stuck-loss"]
    assert any("random guessing gives ln 4 = 1.386" in line for line in warnings)


def test_a_stuck_loss_is_reported_without_a_validation_split(data, capsys):
    gingham.fit(ARTICLE, data.train, options=gingham.FitOptions(network=Zero))
    assert "the loss is stuck at ln 4" in capsys.readouterr().err


def test_double_softmax(data, capsys):
    issues, warnings = fit_and_check(SMALL_BATCHES, data, capsys, TwiceSoftmax)
    assert "double-softmax" in codes(issues)
    assert any("softmax is applied twice" in line for line in warnings)


@pytest.mark.parametrize(
    "changes", [{"mean": 0.0, "std": 1 / 255}, {"mean": 0.0, "std": 1.0}, {"mean": 3.0, "std": 0.5}]
)
def test_unnormalized_pixels(data, capsys, changes):
    issues, warnings = fit_and_check(ARTICLE.replace(epochs=1, **changes), data, capsys, Flat)
    assert "unnormalized-pixels" in codes(issues)
    assert any("the pixels are not normalised" in line for line in warnings)


def test_shuffled_labels(data, capsys):
    shuffled = dataclasses.replace(
        data.train, labels=data.train.labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    )
    issues, warnings = fit_and_check(SMALL_BATCHES, data, capsys, train=shuffled)
    assert "the labels of the train images do not belong to them" in [issue.title for issue in issues]
    assert any("do not belong to them" in line for line in warnings)


@pytest.mark.slow
def test_shuffled_validation_labels(data, capsys):
    shuffled = dataclasses.replace(
        data.validation, labels=data.validation.labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    )
    issues, _ = fit_and_check(ARTICLE, data, capsys, validation=shuffled)
    assert "the labels of the validation images do not belong to them" in [issue.title for issue in issues]


@pytest.mark.parametrize("rate", [1e-7, 0.0])
def test_a_learning_rate_far_too_low(data, capsys, rate):
    issues, warnings = fit_and_check(ARTICLE.replace(learning_rate=rate, epochs=1), data, capsys, Flat)
    assert codes(issues) == ["learning-rate-too-low"]
    assert any("far too low" in line for line in warnings)


def test_a_learning_rate_far_too_low_for_muon(data, capsys):
    recipe = gingham.RECIPES["fast-90"].replace(batch_size=8, epochs=3, learning_rate=1e-6)
    issues, _ = fit_and_check(recipe, data, capsys)
    assert codes(issues) == ["learning-rate-too-low"]


@pytest.mark.parametrize("name", ["article", "fast-90", "fast", "gpu-94"])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_learning_rate_of_a_short_run_is_not_judged(data, capsys, name, steps):
    recipe = gingham.RECIPES[name].replace(network="tiny" if name == "gpu-94" else gingham.RECIPES[name].network)
    recipe = recipe.replace(batch_size=6, epochs=steps / 50)
    issues, warnings = fit_and_check(recipe, data, capsys)
    assert "learning-rate-too-low" not in codes(issues)
    assert not any("far too low" in line for line in warnings)


def test_the_learning_rate_of_a_run_without_a_history_is_not_judged(data):
    run = gingham.fit(gingham.RECIPES["fast-90"].replace(epochs=0.1), data.train, data.validation, progress=False)
    run.history = []
    assert gingham.check_run(run, data.train, data.validation) == []


def test_a_learning_rate_far_too_high(data, capsys):
    recipe = gingham.RECIPES["fast-90"].replace(
        optimizer="sgd", momentum=0.9, batch_size=4, epochs=1, learning_rate=60.0, ema_decay=0
    )
    issues, warnings = fit_and_check(recipe, data, capsys)
    assert "learning-rate-too-high" in codes(issues)
    assert any("far too high" in line for line in warnings)
    with pytest.raises(GinghamError, match=r"has not been finite since step .* try a lower learning rate"):
        gingham.fit(ARTICLE.replace(learning_rate=9999), data.train, data.validation, progress=False)


def test_a_high_loss_in_the_first_steps_alone_is_no_issue(data, capsys):
    recipe = gingham.RECIPES["article"]
    losses = torch.full((60,), 0.3)
    losses[:10] = 3.0
    assert list(check_losses(recipe, data.train, losses, over=False)) == []
    losses[-10:] = 2.9
    assert [issue.code for issue in check_losses(recipe, data.train, losses, over=False)] == ["learning-rate-too-high"]


def test_a_validation_loss_that_rises_and_falls_again_is_no_overfitting(capsys):
    random = torch.Generator().manual_seed(0)
    images, labels = 0.75 * torch.randint(256, (300, 1, 28, 28), generator=random), torch.arange(300) % 4
    for label in range(4):
        images[labels == label, :, 7 * label : 7 * label + 7] += 16
    train, validation = (
        Split(name, images[part].to(torch.uint8), labels[part], tuple("abcd"), "stripes", "1")
        for name, part in (("train", slice(200)), ("validation", slice(200, 300)))
    )
    recipe = gingham.RECIPES["fast-90"].replace(batch_size=16, epochs=10, hard_share=1, ema_decay=0)
    run = gingham.fit(recipe, train, validation)
    evaluations = [entry for entry in run.history if "epoch" in entry]
    losses = [entry["validation_loss"] for entry in evaluations]
    rises = [loss / min(losses[:index]) for index, loss in enumerate(losses) if index]
    assert max(rises) > 1.15, "the loss rises while the learning rate is high"
    assert evaluations[-1]["validation_accuracy"] > 0.8
    assert "warning" not in capsys.readouterr().err
    assert gingham.check_run(run, train, validation) == []


def test_only_a_lasting_rise_of_the_validation_loss_is_overfitting(data, trained):
    run = trained
    (end,) = [entry for entry in run.history if "epoch" in entry]
    steps = [entry for entry in run.history if "epoch" not in entry]

    def check(losses, patience=0):
        run.recipe = run.recipe.replace(patience=patience)
        accuracies = {"train_accuracy": 0.9, "validation_accuracy": 0.5}
        run.history = steps + [{**end, **accuracies, "epoch": n, "validation_loss": x} for n, x in enumerate(losses, 1)]
        return [code for code in codes(gingham.check_run(run, data.train, data.validation)) if code == "over-fitting"]

    assert check([0.9, 0.5, 0.7, 0.8, 0.9]) == ["over-fitting"]
    assert check([0.9, 0.5, 0.7, 0.51, 0.9]) == [], "the last rise may be chance"
    assert check([0.9, 0.5, 0.7, 0.8, 0.9], patience=3) == [], "the run keeps the best weights"


def planted(run, losses, **last):
    """Give a run a history with these losses of steps and four evaluations, the last one with the changes in `last`."""
    entry = next(entry for entry in run.history if "epoch" in entry)
    entry = {**entry, "train_accuracy": 0.99, "validation_accuracy": 0.97, "validation_loss": 0.1}
    steps = [{**run.history[0], "step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    run.history = [*steps, *({**entry, "epoch": epoch} for epoch in (1, 2, 3)), {**entry, "epoch": 4, **last}]
    return run


@pytest.fixture(scope="module")
def shared_run(data):
    return gingham.fit(ARTICLE.replace(network="tiny", epochs=1), data.train, data.validation, progress=False)


@pytest.fixture
def trained(shared_run):
    return copy.deepcopy(shared_run)


FALLING = [1.4 * 0.98**step for step in range(200)]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({}, []),
        ({"train_accuracy": 1.0, "validation_accuracy": 0.76}, ["over-fitting"]),
        ({"train_accuracy": 1.0, "validation_accuracy": 0.9}, []),
        ({"train_accuracy": 0.91, "validation_accuracy": 0.7}, []),  # the network is still learning
    ],
)
def test_only_a_large_gap_alone_is_overfitting(data, trained, last, expected):
    issues = gingham.check_run(planted(trained, FALLING, **last), data.train, data.validation)
    assert codes(issues) == expected
    assert all("collect more training images, or augment" in issue.fix for issue in issues)


def test_a_loss_that_jumps_and_stays_high(data, trained):
    def check(losses):
        return codes(gingham.check_run(planted(trained, losses), data.train, data.validation))

    assert check([*FALLING, *[0.8] * 100]) == ["loss-jump"]
    assert check([*FALLING, *[0.8] * 20, *FALLING[100:]]) == [], "the loss falls again"
    assert check([*FALLING, *[0.06] * 100]) == [], "the jump is small"
    # Losses of hard images cannot be compared with earlier ones, but the validation loss can.
    trained.recipe = trained.recipe.replace(hard_share=0.3)
    assert check([*FALLING[:60], *[0.8] * 200]) == []
    for entry in planted(trained, FALLING).history[-3:]:
        entry |= {"validation_loss": 0.5, "validation_accuracy": 0.85, "train_accuracy": 0.8}
    assert codes(gingham.check_run(trained, data.train, data.validation)) == ["loss-jump"]


def test_a_run_at_chance_level(data, trained):
    """Two thirds of the images are of one class, so the loss is not stuck at ln K."""
    rows = torch.cat([(data.train.labels == 1).nonzero().flatten(), torch.arange(40)])
    images, labels = data.train.images[rows], data.train.labels[rows]
    validation = dataclasses.replace(data.validation, images=images, labels=labels)
    share = float((labels == 1).double().mean())
    last = {"train_accuracy": share, "validation_accuracy": share}
    (issue,) = gingham.check_run(planted(trained, [0.9] * 600, **last), data.train, validation)
    assert issue.code == "chance-level"
    assert issue.evidence.endswith(f"{share:.1%} are 1")
    assert "check the labels" in issue.fix
    (issue,) = gingham.check_run(planted(trained, [0.9] * 60, **last), data.train, validation)
    assert issue.fix == "train for more steps"


@pytest.mark.slow
def test_overfitting(capsys, tmp_path):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (260, 1, 28, 28), dtype=torch.uint8, generator=random)
    labels = torch.arange(260) % 4
    images[:, :, :8] = (
        (images[:, :, :8].float() * 0.75 + 16 * labels[:, None, None, None]).clamp(max=255).to(torch.uint8)
    )
    # Some labels are wrong. A network that memorises them is confident of wrong classes, so the validation loss doubles
    # on any machine.
    wrong = torch.rand(260, generator=random) < 0.4
    labels = torch.where(wrong, labels[torch.randperm(260, generator=random)], labels)
    names = tuple("abcd")
    train, validation = (
        Split(name, images[part], labels[part], names, "faint", "1")
        for name, part in (("train", slice(60)), ("validation", slice(60, 260)))
    )
    recipe = gingham.RECIPES["fast-90"].replace(
        batch_size=16, epochs=80, hard_share=1, label_smoothing=0, network="medium"
    )
    run = gingham.fit(recipe.replace(learning_rate=0.3), train, validation)
    assert any("the network over-fits" in line for line in capsys.readouterr().err.splitlines())
    assert "over-fitting" in codes(gingham.check_run(run, train, validation))


def test_a_last_batch_of_one_under_batchnorm(data, capsys):
    recipe = gingham.RECIPES["fast-90"].replace(epochs=1, batch_size=23)  # 300 = 13 * 23 + 1
    issues, warnings = fit_and_check(recipe, data, capsys)
    assert codes(issues) == ["single-image-batch"]
    assert warnings[0].startswith("warning: a batch of one image goes through BatchNorm")
    assert "--set batch_size=24" in warnings[0]
    with pytest.raises(GinghamError, match="more than 1 value per channel"):
        gingham.fit(
            recipe.replace(network="article", optimizer="sgd", hard_share=1),
            data.train,
            progress=False,
            options=gingham.FitOptions(network=Norms),
        )


@pytest.mark.slow
def test_checking_a_run_does_not_change_its_model(data):
    run = gingham.fit(ARTICLE, data.train, data.validation, progress=False)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    expected = run.model.predict(data.test.images).probabilities
    gingham.check_run(run, data.train, data.validation)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.model.state_dict().items())
    assert torch.equal(run.model.predict(data.test.images).probabilities, expected)
    assert run.test_openings == []


@pytest.mark.slow
def test_runs_on_fashion_mnist_have_no_issue(fashion_mnist, capsys):
    for recipe in (gingham.RECIPES["article"].replace(epochs=0.1), gingham.RECIPES["fast-85"]):
        run = gingham.fit(recipe, fashion_mnist.train, fashion_mnist.validation)
        assert "warning" not in capsys.readouterr().err
    assert gingham.check_run(run, fashion_mnist.train, fashion_mnist.validation) == []
