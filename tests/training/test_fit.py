import json

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import DataError, GinghamError, Split
from gingham.data.sampler import Sampler
from gingham.models.registry import build_classifier
from helpers import ROOT, fit, make_dataset, reference_article

GOLDEN = ROOT / "tests/golden"
ARTICLE = gingham.RECIPES["article"]
FAST = gingham.RECIPES["fast"]
EVERYTHING = FAST.replace(network="tiny", flip="random", shift_pixels=2, ema_decay=0.9)  # all that has state or draws


def weights(run):
    return {name: tensor for name, tensor in run.model.state_dict().items() if name.startswith("network.")}


def test_loop_equals_the_articles_loop(fashion_mnist):
    """Compare twenty steps with those of the article: to tensor, normalise, zero, forward, NLL, backward, step."""
    few = Split("train", *(x[: 64 * 9 + 32] for x in (fashion_mnist.train.images, fashion_mnist.train.labels)),
                fashion_mnist.classes, "few", "")  # fmt: skip
    recipe = ARTICLE.replace(epochs=2, seed=3)
    run = gingham.fit(recipe, few, progress=False)

    torch.manual_seed(3)
    network = reference_article().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for order in Sampler(recipe, len(few)).batches(0, 20):
        images = (few.images[order].float() / 255 - 0.5) / 0.5
        optimizer.zero_grad()
        loss = F.nll_loss(network(images), few.labels[order])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = [entry["loss"] for entry in run.history if "learning_rate" in entry]
    assert ours == pytest.approx(losses, abs=2e-4)
    for mine, theirs in zip(weights(run).values(), network.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


def test_first_losses_equal_the_golden_run(tmp_path):
    # Depends on the numerics of init, order, normalisation, loss and SGD, which must not change by accident.
    data = gingham.load_data(str(make_dataset(tmp_path / "quadrants")), validation=40)
    recipe = ARTICLE.replace(epochs=1, batch_size=16, learning_rate=0.05, validation_images=40)
    run = fit(recipe, data)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry][:10]
    assert losses == pytest.approx(
        json.loads((GOLDEN / "run-0.1" / "expected.json").read_text())["first_losses"], abs=1e-4
    )


def test_article_network_learns(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=3, batch_size=8, learning_rate=0.03), data)
    assert run.metrics["validation_accuracy"] > 0.9


def test_same_seed_gives_the_same_bytes(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(epochs=0.5, batch_size=32)
    torch.manual_seed(1)
    first = fit(recipe, data)
    torch.manual_seed(2)
    expected = torch.rand(1)
    torch.manual_seed(2)
    second = fit(recipe, data)
    assert torch.equal(torch.rand(1), expected), "the caller's random generator does not change"
    other = fit(recipe.replace(seed=1), data)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert not torch.equal(weights(first)["network.conv1.weight"], weights(other)["network.conv1.weight"])


def test_run_records_the_number_of_images_held_out(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(network="tiny", epochs=0.1, validation_images=5000)
    assert fit(recipe, data).recipe.validation_images == 40
    assert gingham.fit(recipe, data.train, progress=False).recipe.validation_images == 0


def test_without_validation_split_there_is_no_validation_accuracy(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    run = gingham.fit(ARTICLE.replace(epochs=0.1), data.train, progress=False)
    assert run.metrics["validation_accuracy"] is None
    assert run.metrics["train_images"] == 300


@pytest.mark.parametrize("epochs", [0.001, 0.5, 1, 1.5, 2])
def test_fractional_epochs_take_their_share_of_steps(quadrants, epochs):
    data = gingham.load_data(str(quadrants), validation=0)
    seen = []
    recipe = ARTICLE.replace(network="tiny", epochs=epochs, batch_size=30)
    run = gingham.fit(
        recipe, data.train, progress=False, options=gingham.FitOptions(on_epoch=lambda model, epoch: seen.append(epoch))
    )
    assert run.metrics["steps"] == max(1, round(epochs * 10))
    assert seen == list(range(1, int(epochs) + 1))
    assert [entry["step"] for entry in run.history if "epoch" in entry][-1] == run.metrics["steps"]


def test_bfloat16_trains(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(ARTICLE.replace(epochs=0.3, precision="bfloat16", batch_size=32), data)
    exact = fit(ARTICLE.replace(epochs=0.3, precision="float32", batch_size=32), data)
    assert (run.metrics["precision"], exact.metrics["precision"]) == ("bfloat16", "float32")
    difference = abs(run.history[0]["loss"] - exact.history[0]["loss"])
    assert 0 < difference < 0.01, "less precise, but not by much"
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values())


def test_label_smoothing_and_schedules_are_used(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    base = ARTICLE.replace(epochs=0.2, batch_size=10)
    runs = {
        "plain": base, "smooth": base.replace(label_smoothing=0.2), "linear": base.replace(schedule="linear"),
        "nesterov": base.replace(nesterov=True), "decay": base.replace(weight_decay=0.1),
    }  # fmt: skip
    runs = {name: gingham.fit(recipe, data.train, progress=False) for name, recipe in runs.items()}
    last = {name: weights(run)["network.conv8.weight"] for name, run in runs.items()}
    for name in ("smooth", "linear", "nesterov", "decay"):
        assert not torch.equal(last[name], last["plain"]), name
    rates = [entry["learning_rate"] for entry in runs["linear"].history if "learning_rate" in entry]
    assert rates == pytest.approx([0.01 * (1 - k / 6) for k in range(6)])


def test_class_balance_trains_on_torchs_weighted_loss_and_records_the_plain_one(quadrants):
    whole = gingham.load_data(str(quadrants), validation=0).train
    rows = (whole.labels != 1) | (torch.arange(len(whole)) < 20)
    train = Split("train", whole.images[rows], whole.labels[rows], whole.classes, "few", "")
    recipe = ARTICLE.replace(epochs=0.2, batch_size=10, learning_rate=0.1, class_balance=1)
    run = gingham.fit(recipe, train, progress=False)

    torch.manual_seed(recipe.seed)
    network = build_classifier("article", whole.classes, (1, 28, 28)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    counts = torch.bincount(train.labels)
    losses = []
    for order in Sampler(recipe, len(train)).batches(0, run.metrics["steps"]):
        optimizer.zero_grad()
        logits, labels = network(train.images[order]), train.labels[order]
        losses.append(F.cross_entropy(logits, labels).item())
        (F.cross_entropy(logits, labels, len(train) / 4 / counts, reduction="sum") / len(order)).backward()
        optimizer.step()
    assert [entry["loss"] for entry in run.history if "learning_rate" in entry] == pytest.approx(losses, abs=1e-4)
    plain = gingham.fit(recipe.replace(class_balance=0), train, progress=False)
    for name, mine in weights(run).items():
        assert torch.allclose(mine, network.state_dict()[name], atol=1e-4), name
    assert not torch.equal(weights(run)["network.conv8.weight"], weights(plain)["network.conv8.weight"])


# The classes of the quadrants are each other's mirror images, so they cannot be learned with mirrored images.
STRAIGHT = FAST.replace(network="tiny", flip="none", tta="none")


def test_fast_recipe_learns(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    assert fit(STRAIGHT.replace(epochs=8, batch_size=16), data).metrics["validation_accuracy"] > 0.95


def test_later_epochs_take_the_hardest_images(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(FAST.replace(network="tiny", epochs=3, batch_size=32, hard_share=0.2, easy_share=0.125), data)
    # 260 images are 9 steps. Later epochs have 52 hard images and an eighth of the other 208, which are 3 steps.
    assert (run.metrics["steps"], run.metrics["images_seen"]) == (9 + 3 + 3, 260 + 78 + 78)
    assert [entry["step"] for entry in run.history if "epoch" in entry] == [9, 12, 15]
    ends = [entry for entry in run.history if "epoch" in entry]
    assert [entry["epoch"] for entry in ends] == [1, 2, 3]
    # 78 images after the last evaluation are too few for another, but the end of training has one.
    assert [entry["validation_accuracy"] is not None for entry in ends] == [True, False, True]
    assert [entry["sample_accuracy"] is not None for entry in ends] == [True, False, True]
    assert ends[-1]["validation_accuracy"] == run.metrics["validation_accuracy"]


def test_warm_up_does_not_change_the_weights(quadrants, monkeypatch):
    data = gingham.load_data(str(quadrants), validation=0)
    recipe = EVERYTHING.replace(epochs=1, batch_size=32)
    warm = gingham.fit(recipe, data.train, progress=False)
    monkeypatch.setattr("gingham.training.trainer.warm_up", lambda *_: (None, False))
    cold = gingham.fit(recipe, data.train, progress=False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(warm.model.state_dict().values(), cold.model.state_dict().values(), strict=True)
    )


def test_bfloat16_model_predicts_in_float32(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    run = fit(STRAIGHT.replace(epochs=4, batch_size=16, precision="bfloat16"), data)
    assert run.metrics["precision"] == "bfloat16"
    assert run.metrics["validation_accuracy"] > 0.9
    assert {tensor.dtype for tensor in weights(run).values() if tensor.is_floating_point()} == {torch.float32}
    assert run.model.logits(data.validation.images).dtype == torch.float32


# --- the test split is not used


def test_fit_refuses_the_test_split(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(DataError, match="fit got the test split as training data"):
        gingham.fit(ARTICLE, data.test)
    with pytest.raises(DataError, match="fit got the test split as validation data"):
        gingham.fit(ARTICLE, data.train, data.test)


def test_splits_of_two_datasets_are_an_error(quadrants, fashion_mnist):
    data = gingham.load_data(str(quadrants), validation=40)
    with pytest.raises(DataError, match="take both from the same dataset"):
        gingham.fit(ARTICLE, data.train, fashion_mnist.validation)
    make_dataset(quadrants, seed=9)
    with pytest.raises(DataError, match="or from another version of it; take both from the same dataset"):
        gingham.fit(ARTICLE, data.train, gingham.load_data(str(quadrants), validation=40).validation)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "low"), [("fast-85", 0.84), ("fast-90", 0.885), ("fast-92", 0.91)])
def test_fast_recipes_reach_their_accuracy(fashion_mnist, name, low):
    run = fit(gingham.RECIPES[name], fashion_mnist)
    assert low < run.metrics["validation_accuracy"] < low + 0.05


@pytest.mark.slow
def test_article_recipe_reaches_its_accuracy(fashion_mnist_folder):
    """One epoch over all 60,000 images of Fashion-MNIST reaches far more than a broken training loop."""
    data = gingham.load_data("fashion-mnist", validation=0)
    run = gingham.fit(ARTICLE.replace(epochs=1), data.train, progress=False)
    assert run.metrics["steps"] == 938
    assert 0.72 < gingham.evaluate(run, data.test).accuracy < 0.86  # ten seeds: 77.0 to 80.2 %


def test_patience_without_validation_split_is_an_error(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    with pytest.raises(GinghamError, match="patience is 3, but there is no validation split to evaluate on"):
        gingham.fit(ARTICLE.replace(patience=3), data.train, progress=False)


def test_resume_without_a_folder_is_an_error(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    with pytest.raises(GinghamError, match="resume is True, but there is no folder to resume from; give folder="):
        gingham.fit(ARTICLE, data.train, resume=True, progress=False)


@pytest.mark.parametrize("progress", [True, False])
def test_a_damaged_checkpoint_gives_a_warning(quadrants, tmp_path, capsys, progress):
    def stop(model, epoch):
        raise KeyboardInterrupt

    data = gingham.load_data(str(quadrants), validation=40)
    recipe = ARTICLE.replace(network="tiny", epochs=2, batch_size=32, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, data, tmp_path / "run", on_epoch=stop)
    max((tmp_path / "run/checkpoint").glob("*.safetensors")).write_bytes(b"")
    gingham.fit(recipe, data.train, data.validation, folder=tmp_path / "run", resume=True, progress=progress)
    stderr = capsys.readouterr().err
    assert "is damaged (step-00000008.safetensors has 0 bytes" in stderr
    assert ("epoch 2/2" in stderr) == progress
