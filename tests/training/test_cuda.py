"""Training on an NVIDIA GPU, compared with the CPU."""

import pytest
import torch

import gingham
from gingham.data.sampler import Sampler
from gingham.errors import TrainingError
from gingham.training.batches import BatchLoader
from gingham.training.optimizer import build_optimizer, set_learning_rate
from helpers import fit, fresh_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="these tests need an NVIDIA GPU")

FAST = gingham.RECIPES["fast-85"].replace(batch_size=32, epochs=3, hard_share=1.0)
RECIPES = {
    "article": gingham.RECIPES["article"].replace(batch_size=8, epochs=3, learning_rate=0.03),
    "fast": FAST,
    "hard images, shifted": FAST.replace(hard_share=0.3, easy_share=0.1, shift_pixels=2, epochs=6),
    "averaged": FAST.replace(ema_decay=0.9),
    "mixed": FAST.replace(cutmix=0.5),
    "adamw": FAST.replace(optimizer="adamw", learning_rate=0.003),
    "float32": FAST.replace(precision="float32"),
}


@pytest.fixture
def data(quadrants):
    return gingham.load_data(str(quadrants), validation=40)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_recipes_train_without_a_warning_and_give_a_model_for_cpus(data, recipe, tmp_path, capsys):
    run = fit(recipe, data)
    assert run.metrics["device"] == "cuda"
    assert run.metrics["validation_accuracy"] > 0.9
    assert "Warning" not in capsys.readouterr().err
    gingham.save(run, tmp_path / "run")
    on_gpu, on_cpu = run.model.predict(data.test.images), gingham.load(tmp_path / "run").model.predict(data.test.images)
    assert torch.equal(on_gpu.labels, on_cpu.labels)
    assert torch.allclose(on_gpu.probabilities, on_cpu.probabilities, atol=1e-4)
    assert torch.allclose(on_gpu.novelty, on_cpu.novelty, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("changes", [{}, {"flip": "random"}, {"cutmix": 0.5}, {"hard_share": 0.3, "easy_share": 0.1}])
def test_batches_are_those_of_the_cpu(data, changes):
    recipe = FAST.replace(shift_pixels=2, **{"flip": "alternating", **changes})
    drawn = []
    for name in ("cpu", "cuda"):
        sampler = Sampler(recipe, len(data.train), torch.device(name))
        loader = BatchLoader(data.train, recipe, sampler, torch.device(name))
        batches = []
        for batch in loader.batches(0, sampler.steps):
            batches.append([tensor.cpu() for tensor in batch.inputs()])
            sampler.record(batch.indices, batch.indices / len(data.train))  # losses, to choose the hard images by
        drawn.append(batches)
    assert len(drawn[0]) == len(drawn[1])
    for one, other in zip(*drawn, strict=True):
        for tensor, its_copy in zip(one, other, strict=True):
            # Shares of pixels are quotients, which GPUs round differently.
            assert torch.equal(tensor, its_copy) or torch.allclose(tensor, its_copy, atol=1e-6)


@pytest.mark.parametrize("network", ["small", "huge"])
def test_an_update_is_that_of_the_cpu(network):
    recipe = gingham.RECIPES["fast"].replace(network=network)
    models = fresh_model(recipe), fresh_model(recipe).cuda()
    for model in models:
        torch.manual_seed(0)
        optimizer = build_optimizer(model, recipe)
        set_learning_rate(optimizer, 0.1)
        for _ in range(2):
            for parameter in model.parameters():
                gradient = torch.randn(parameter.shape).to(memory_format=torch.preserve_format)
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        change = (one - other.cpu()).norm() / one.norm()
        assert change < 0.01  # products of the update are in bfloat16, with 8 bits


def test_an_interrupted_training_resumes(data, tmp_path):
    recipe = RECIPES["hard images, shifted"].replace(checkpoint_seconds=0)

    def interrupt(model, epoch):
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe, data, tmp_path / "run", on_epoch=interrupt)
    resumed, whole = fit(recipe, data, tmp_path / "run", resume=True), fit(recipe, data)
    assert resumed.metrics["resumed_from_step"] > 0
    losses = [[entry["loss"] for entry in run.history if "loss" in entry] for run in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert resumed.metrics["validation_accuracy"] == pytest.approx(whole.metrics["validation_accuracy"], abs=0.05)


def test_a_diverging_training_is_an_error(data):
    with pytest.raises(TrainingError, match="has not been finite since step"):
        fit(gingham.RECIPES["article"].replace(learning_rate=1e4), data)


def test_images_that_stay_in_host_memory_give_the_same_model(data, monkeypatch):
    whole = fit(FAST, data)
    monkeypatch.setattr("gingham.training.batches._fits", lambda split, device: False)
    streamed = fit(FAST, data)
    weights = [run.model.state_dict() for run in (whole, streamed)]
    assert all(torch.allclose(weights[0][name].float(), weights[1][name].float(), atol=1e-3) for name in weights[0])


@pytest.mark.slow
def test_a_compiled_recipe_trains(data):
    assert fit(FAST.replace(compile=True), data).metrics["validation_accuracy"] > 0.9
