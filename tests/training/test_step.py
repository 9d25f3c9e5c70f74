"""A step and its loss compared with slow, readable ones, and the faster steps compared with the eager step."""

import copy
import dataclasses
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import GinghamError
from gingham.training.batches import Batch
from gingham.training.distillation import DistillationLoss, TeacherEnsemble
from gingham.training.loss import CrossEntropyLoss
from gingham.training.optimizer import build_optimizer, set_learning_rate
from gingham.training.step import CUDAGraphStep, EagerStep, compile_step, dummy_batch, make_capturable, warm_up
from helpers import fresh_model, random_batch

ARTICLE = gingham.RECIPES["article"]
FAST = gingham.RECIPES["fast-85"].replace(hard_share=1.0)


def eager_step(model, recipe, *, with_losses=False, teachers=None):
    loss = CrossEntropyLoss(recipe.label_smoothing)
    if teachers is not None:
        loss = DistillationLoss(loss, teachers, recipe.distillation_weight, "float32")
    return EagerStep(model, build_optimizer(model, recipe), loss, "float32", with_losses)


def test_step_output_has_loss_correct_and_losses():
    model, batch = fresh_model(FAST), random_batch()
    twin = copy.deepcopy(model)
    output = eager_step(model, FAST, with_losses=True)(batch)
    logits = twin(batch.images)
    assert torch.allclose(output.losses, F.cross_entropy(logits, batch.labels, reduction="none"), atol=1e-5)
    assert int(output.correct) == int((logits.argmax(1) == batch.labels).sum())
    assert output.loss.item() == pytest.approx(
        F.cross_entropy(logits, batch.labels, label_smoothing=0.1).item(), abs=1e-5
    )
    assert eager_step(model, FAST)(batch).losses is None


def test_loss_is_multiplied_by_the_weight_of_the_batch():
    model, batch = fresh_model(FAST), random_batch()
    whole, half = (eager_step(copy.deepcopy(model), ARTICLE)(replace(batch, weight=weight)) for weight in (1.0, 0.5))
    assert half.loss.item() == pytest.approx(whole.loss.item() / 2)


def test_mixed_image_counts_as_the_class_that_covers_most_of_it():
    model = fresh_model(FAST)
    images, predicted = random_batch().images, model(random_batch().images).argmax(1)
    wrong = (predicted + 1) % 10
    batch = Batch(images, wrong, predicted, torch.tensor([0.4] * 5 + [0.6] * 7))
    assert int(eager_step(model, FAST.replace(cutmix=0.5))(batch).correct) == 5


@pytest.mark.parametrize("recipe", [FAST, gingham.RECIPES["article"]], ids=["muon", "sgd"])
def test_capturable_optimizer_takes_the_same_steps(recipe):
    plain, ready = fresh_model(recipe), fresh_model(recipe)
    steps = [eager_step(model, recipe) for model in (plain, ready)]
    make_capturable(steps[1].optimizer)
    for number in range(4):
        for step in steps:
            set_learning_rate(step.optimizer, 0.1 / (number + 1))
            step(random_batch(seed=number))
    assert all(torch.is_tensor(group["lr"]) for group in steps[1].optimizer.param_groups)
    for one, other in zip(plain.state_dict().values(), ready.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize(
    "recipe", [FAST, FAST.replace(cutmix=0.5), gingham.RECIPES["article"]], ids=["muon", "mixed", "sgd"]
)
def test_cuda_graph_steps_equal_eager_steps(recipe):
    plain, recorded = fresh_model(recipe).cuda(), fresh_model(recipe).cuda()
    teachers = TeacherEnsemble([fresh_model(recipe, seed=9)], 2.0).cuda()
    eager, step = (eager_step(model, recipe, teachers=teachers) for model in (plain, recorded))
    batches = [dummy_batch(size, recorded, recipe, distill_mask=True) for size in (5, 12)]
    warm_up(recorded, step, batches, recipe, 0)
    graphs = CUDAGraphStep(step, batches)
    for number, size in enumerate((12, 12, 5, 12)):
        batch = dummy_batch(size, recorded, recipe.replace(seed=number), distill_mask=True)
        for optimizer in (eager.optimizer, step.optimizer):
            set_learning_rate(optimizer, 0.1 / (number + 1))
        assert eager(batch).loss.item() == pytest.approx(graphs(batch).loss.item(), rel=1e-3)
    for one, other in zip(plain.state_dict().values(), recorded.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled_model_takes_the_same_steps_from_the_same_weights():
    eager, step = (eager_step(fresh_model(FAST), FAST) for _ in range(2))
    compiled = compile_step(step, [dummy_batch(12, step.model, FAST)], "tiny")
    for one, other in zip(eager.model.state_dict().values(), step.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for number in range(4):
        losses = []
        for one in (eager, compiled):
            set_learning_rate(one.optimizer, 0.1)
            losses.append(one(random_batch(seed=number)).loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_missing_compiler_is_a_clear_error(monkeypatch):
    def fails(*_, **__):
        def model(*_):
            raise RuntimeError("no compiler was found\nand much more")

        return model

    monkeypatch.setattr(torch, "compile", fails)
    step = eager_step(fresh_model(FAST), FAST)
    with pytest.raises(GinghamError, match=r"could not compile the network tiny \(no compiler.*set compile=false$"):
        compile_step(step, [dummy_batch(12, step.model, FAST)], "tiny")


# --- the recipes for GPUs, shortened for CPUs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu-94", "gpu-95", "gpu-96", "gpu-best"])
def test_gpu_recipes_train_on_a_cpu(name, quadrants):
    data = gingham.load_data(str(quadrants), validation=8)
    few = dataclasses.replace(data.train, images=data.train.images[:12], labels=data.train.labels[:12])
    recipe = gingham.RECIPES[name].replace(epochs=2, batch_size=6, compile=False)
    if recipe.network == "wrn-28-10":  # a step takes ten seconds or more on a CPU
        recipe = recipe.replace(network="wrn-16-4")
    run = gingham.fit(recipe, few, data.validation, progress=False)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry]
    assert len(losses) == run.metrics["steps"] >= 3
    assert run.metrics["validation_accuracy"] is not None, "the last epoch is evaluated, however rare evaluations are"
    assert len([entry for entry in run.history if entry.get("validation_loss") is not None]) == 1
    assert run.model.predict(data.test.images[:3]).probabilities.isfinite().all()
