"""A step and its loss beside slow and readable twins, and the ways in which it is made fast beside the plain one."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import GinghamError
from gingham.training.batches import Batch
from gingham.training.distillation import TeacherEnsemble
from gingham.training.optimizer import build_optimizer, set_learning_rate
from gingham.training.step import CUDAGraphStep, compile_model, dummy_batch, make_capturable, train_step, warm_up
from helpers import fresh_model, random_batch

FAST = gingham.RECIPES["fast-85"].replace(hard_share=1.0)


def test_step_output_has_loss_correct_and_losses(monkeypatch):
    recipe, model, batch = FAST.replace(hard_share=0.5), fresh_model(FAST), random_batch()
    twin = copy.deepcopy(model)
    output = train_step(model, build_optimizer(model, recipe), recipe, "float32", None, batch)
    logits = twin(batch.images)
    assert torch.allclose(output.losses, F.cross_entropy(logits, batch.labels, reduction="none"), atol=1e-5)
    assert int(output.correct) == int((logits.argmax(1) == batch.labels).sum())
    assert output.loss.item() == pytest.approx(
        F.cross_entropy(logits, batch.labels, label_smoothing=0.1).item(), abs=1e-5
    )
    assert train_step(model, build_optimizer(model, FAST), FAST, "float32", None, batch).losses is None


def test_mixed_image_counts_as_the_class_that_covers_most_of_it():
    model = fresh_model(FAST)
    images, said = random_batch().images, model(random_batch().images).argmax(1)
    wrong = (said + 1) % 10
    batch = Batch(images, wrong, said, torch.tensor([0.4] * 5 + [0.6] * 7))
    assert int(train_step(model, build_optimizer(model, FAST), FAST, "float32", None, batch).correct) == 5


@pytest.mark.parametrize("recipe", [FAST, gingham.RECIPES["article"]], ids=["muon", "sgd"])
def test_capturable_optimizer_takes_the_same_steps(recipe):
    plain, ready = fresh_model(recipe), fresh_model(recipe)
    optimizers = [build_optimizer(model, recipe) for model in (plain, ready)]
    make_capturable(optimizers[1])
    for step in range(4):
        for model, optimizer in zip((plain, ready), optimizers, strict=True):
            set_learning_rate(optimizer, 0.1 / (step + 1))
            train_step(model, optimizer, recipe, "float32", None, random_batch(seed=step))
    assert all(torch.is_tensor(group["lr"]) for group in optimizers[1].param_groups)
    for one, other in zip(plain.state_dict().values(), ready.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize(
    "recipe", [FAST, FAST.replace(cutmix=0.5), gingham.RECIPES["article"]], ids=["muon", "mixed", "sgd"]
)
def test_cuda_graph_steps_equal_eager_steps(recipe):
    plain, recorded = fresh_model(recipe).cuda(), fresh_model(recipe).cuda()
    optimizers = [build_optimizer(model, recipe) for model in (plain, recorded)]
    teachers = TeacherEnsemble([fresh_model(recipe, seed=9).cuda()], 2.0)
    warm_up(recorded, recipe, "float32", [5, 12], 0, teachers)
    recording = CUDAGraphStep(
        recorded,
        optimizers[1],
        recipe,
        "float32",
        teachers,
        [dummy_batch(size, recorded, recipe, teachers) for size in (5, 12)],
    )
    for step, size in enumerate((12, 12, 5, 12)):
        batch = dummy_batch(size, recorded, recipe.replace(seed=step), teachers)
        for optimizer in optimizers:
            set_learning_rate(optimizer, 0.1 / (step + 1))
        one, other = train_step(plain, optimizers[0], recipe, "float32", teachers, batch), recording(batch)
        assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-3)
    for one, other in zip(plain.state_dict().values(), recorded.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-3)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
def test_compiled_model_takes_the_same_steps_from_the_same_weights():
    plain, fast = fresh_model(FAST), fresh_model(FAST)
    optimizers = [build_optimizer(model, FAST) for model in (plain, fast)]
    made = compile_model(fast, optimizers[1], FAST, "float32", None, [dummy_batch(12, fast, FAST, None)])
    for one, other in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for step in range(4):
        losses = []
        for model, optimizer in zip((plain, made), optimizers, strict=True):
            set_learning_rate(optimizer, 0.1)
            losses.append(train_step(model, optimizer, FAST, "float32", None, random_batch(seed=step)).loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_missing_compiler_is_a_clear_error(monkeypatch):
    def fails(*_, **__):
        def model(*_):
            raise RuntimeError("no compiler was found\nand much more")

        return model

    monkeypatch.setattr(torch, "compile", fails)
    model = fresh_model(FAST)
    with pytest.raises(GinghamError, match=r"could not compile the network tiny \(no compiler.*set compile=false$"):
        compile_model(model, build_optimizer(model, FAST), FAST, "float32", None, [dummy_batch(12, model, FAST, None)])


# --- the recipes for GPUs, at a length for CPUs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu-94", "gpu-95", "gpu-96", "gpu-best"])
def test_gpu_recipes_train_on_a_cpu(name, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    few = gingham.Split(
        "train",
        data.train.images[:48],
        data.train.labels[:48],
        data.classes,
        data.train.dataset,
        data.train.fingerprint,
    )
    recipe = gingham.RECIPES[name].replace(epochs=2, batch_size=24, compile=False)
    run = gingham.fit(recipe, few, data.validation, progress=False)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry]
    assert len(losses) == run.metrics["steps"] >= 3
    assert run.metrics["validation_accuracy"] is not None, "the last look is taken, however seldom looks are"
    assert len([entry for entry in run.history if entry.get("validation_loss") is not None]) == 1
    assert run.model.predict(data.test.images[:3]).probabilities.isfinite().all()
