import pytest
import torch
from torch import nn

import gingham
from gingham import GinghamError
from gingham.device import choose_device

ARTICLE = gingham.RECIPES["article"]


def test_history_has_every_step_and_epoch(small_run):
    run, data = small_run
    assert run.metrics["steps"] == 9  # 260 images in batches of 32
    assert run.metrics["epochs"] == 1
    assert run.metrics["train_images"] == 260
    assert (run.metrics["device"], run.metrics["precision"]) == (str(choose_device("auto")), "float32")
    assert run.metrics["train_seconds"] > 0
    steps = [entry for entry in run.history if "learning_rate" in entry]
    (epoch,) = [entry for entry in run.history if "epoch" in entry]
    sizes = [32] * 8 + [4]
    assert epoch["train_accuracy"] == pytest.approx(
        sum(s["accuracy"] * n for s, n in zip(steps, sizes, strict=True)) / 260
    )
    assert epoch["train_loss"] == pytest.approx(sum(s["loss"] * n for s, n in zip(steps, sizes, strict=True)) / 260)
    measured = gingham.evaluate(run, data.validation)
    assert epoch["validation_accuracy"] == run.metrics["validation_accuracy"] == measured.accuracy
    sample = gingham.evaluate(run, data.train)  # the sample has all 260 images
    assert epoch["sample_accuracy"] == sample.accuracy
    run.model.temperature.fill_(1.0)  # the losses in the history are without a temperature
    assert epoch["validation_loss"] == pytest.approx(gingham.evaluate(run, data.validation).loss)


def test_outliers_do_not_count_as_wrong():
    images = torch.randint(256, (60, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    train = gingham.Split("train", images, torch.arange(60) % 3, ("a", "b", "c"), "random", "")
    changes = {"network": "small", "batch_size": 20, "epochs": 4, "photo_share": 0.5, "outlier_share": 0.25}
    run = gingham.fit(gingham.RECIPES["photo"].replace(**changes), train, progress=False)
    correct = torch.tensor([entry["accuracy"] for entry in run.history if "learning_rate" in entry]) * 15
    assert torch.allclose(correct, correct.round(), atol=1e-4), "5 of 20 images are outliers"
    assert correct.max() > 0


# --- errors and devices


def test_infinite_loss_is_an_error_that_names_the_step(quadrants):
    data = gingham.load_data(str(quadrants), validation=0)
    with pytest.raises(GinghamError, match=r"has not been finite since step \d+ .*--set learning_rate=1000"):
        gingham.fit(ARTICLE.replace(learning_rate=1e4), data.train, progress=False)


class InfiniteWhenEvaluated(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 28 * 28, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1)) * (1.0 if self.training else float("inf"))


def test_a_sample_loss_that_is_not_finite_does_not_end_the_training(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    data.train.images[-1] = 0  # a tenth of an epoch does not train on this image

    class Standardized(nn.Linear):
        def __init__(self, channels: int, classes: int) -> None:
            super().__init__(channels * 28 * 28, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.flatten(1)
            return super().forward((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))

    recipe = ARTICLE.replace(epochs=0.1, checkpoint_seconds=0)
    options = gingham.FitOptions(network=Standardized)
    run = gingham.fit(recipe, data.train, data.validation, folder=tmp_path, options=options)
    (epoch,) = [entry for entry in run.history if "epoch" in entry]
    assert (epoch["sample_loss"], epoch["sample_accuracy"]) == (None, None)
    assert gingham.load(gingham.save(run, tmp_path), Standardized).history == run.history


def test_infinite_validation_loss_is_an_error_that_names_the_step(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    options = gingham.FitOptions(network=InfiniteWhenEvaluated)
    with pytest.raises(
        gingham.TrainingError, match=r"validation loss is not finite after step \d+, .*--set learning_rate"
    ):
        gingham.fit(ARTICLE.replace(epochs=1), data.train, data.validation, folder=tmp_path, options=options)
