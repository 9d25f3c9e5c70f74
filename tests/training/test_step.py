"""A step and its loss beside slow and readable twins, and the ways in which it is made fast beside the plain one."""

import copy
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

import gingham
from gingham import DataError, GinghamError, Recipe
from gingham.models.registry import build_classifier
from gingham.training.batches import Batch
from gingham.training.distillation import TeacherEnsemble
from gingham.training.loss import compute_loss
from gingham.training.optimizer import build_optimizer, set_learning_rate
from gingham.training.step import CUDAGraphStep, compile_model, dummy_batch, make_capturable, train_step, warm_up

FAST = gingham.RECIPES["fast-85"].replace(hard_share=1.0)


def model_of(recipe=FAST, seed=0):
    torch.manual_seed(seed)
    return build_classifier(recipe.network, list("abcdefghij"), (1, 28, 28), recipe.mean, recipe.std, recipe.tta).train()


def batch_of(count=12, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(10, (count,), generator=generator), **more)


def slow_loss(logits, label, smoothing):
    """One picture's cross-entropy to a label that is smoothed."""
    target = torch.full((10,), smoothing / 10)
    target[label] += 1 - smoothing
    return -(target * logits.log_softmax(0)).sum()


@pytest.mark.parametrize("taught", [None, "all", "some"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_the_slow_one(mixed, taught):
    recipe = Recipe(label_smoothing=0.1, distillation_weight=0.7, distillation_temperature=3.0)
    logits, labels, others = torch.randn(6, 10), torch.randint(10, (6,)), torch.randint(10, (6,))
    shares = torch.rand(6)
    asked = torch.tensor([1.0, 0, 1, 0, 0, 1])
    answers = torch.randn(6, 10).softmax(1)
    batch = Batch(
        torch.empty(6), labels, others if mixed else None, shares if mixed else None, asked if taught == "some" else None
    )
    expected = []
    for k in range(6):
        hard = slow_loss(logits[k], labels[k], 0.1)
        if mixed:
            hard = shares[k] * hard + (1 - shares[k]) * slow_loss(logits[k], others[k], 0.1)
        follows = 0.7 * {None: 0.0, "all": 1.0, "some": float(asked[k])}[taught]
        mine = (logits[k] / 3).softmax(0)
        apart = 9 * sum(answers[k][j] * (answers[k][j].log() - mine[j].log()) for j in range(10))
        expected.append((1 - follows) * hard + follows * apart)
    found = compute_loss(logits, batch, recipe, None if taught is None else answers)
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


def test_teachers_answer_with_the_mean_of_their_probabilities():
    models = [model_of(seed=seed).eval() for seed in (0, 1)]
    batch = batch_of()
    expected = torch.stack([(model.logits(batch.images) / 4).softmax(1) for model in models]).mean(0)
    assert torch.allclose(TeacherEnsemble(models, 4.0)(batch.images), expected, atol=1e-6)


def test_what_a_step_finds(monkeypatch):
    recipe, model, batch = FAST.replace(hard_share=0.5), model_of(), batch_of()
    twin = copy.deepcopy(model)
    output = train_step(model, build_optimizer(model, recipe), recipe, "float32", None, batch)
    logits = twin(batch.images)
    assert torch.allclose(output.losses, F.cross_entropy(logits, batch.labels, reduction="none"), atol=1e-5)
    assert int(output.correct) == int((logits.argmax(1) == batch.labels).sum())
    assert output.loss.item() == pytest.approx(F.cross_entropy(logits, batch.labels, label_smoothing=0.1).item(), abs=1e-5)
    assert train_step(model, build_optimizer(model, FAST), FAST, "float32", None, batch).losses is None


def test_a_mixed_picture_is_answered_rightly_by_what_covers_most_of_it():
    model = model_of()
    images, said = batch_of().images, model(batch_of().images).argmax(1)
    wrong = (said + 1) % 10
    batch = Batch(images, wrong, said, torch.tensor([0.4] * 5 + [0.6] * 7))
    assert int(train_step(model, build_optimizer(model, FAST), FAST, "float32", None, batch).correct) == 5


@pytest.mark.parametrize("recipe", [FAST, gingham.RECIPES["article"]], ids=["muon", "sgd"])
def test_an_optimizer_that_is_ready_to_be_recorded_takes_the_same_steps(recipe):
    plain, ready = model_of(recipe), model_of(recipe)
    optimizers = [build_optimizer(model, recipe) for model in (plain, ready)]
    make_capturable(optimizers[1])
    for step in range(4):
        for model, optimizer in zip((plain, ready), optimizers, strict=True):
            set_learning_rate(optimizer, 0.1 / (step + 1))
            train_step(model, optimizer, recipe, "float32", None, batch_of(seed=step))
    assert all(torch.is_tensor(group["lr"]) for group in optimizers[1].param_groups)
    for one, other in zip(plain.state_dict().values(), ready.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize("recipe", [FAST, FAST.replace(cutmix=0.5), gingham.RECIPES["article"]], ids=["muon", "mixed", "sgd"])
def test_recorded_steps_are_the_plain_ones_on_a_gpu(recipe):
    plain, recorded = model_of(recipe).cuda(), model_of(recipe).cuda()
    optimizers = [build_optimizer(model, recipe) for model in (plain, recorded)]
    teachers = TeacherEnsemble([model_of(recipe, seed=9).cuda()], 2.0)
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
def test_a_compiled_model_takes_the_same_steps_and_starts_where_it_was():
    plain, fast = model_of(), model_of()
    optimizers = [build_optimizer(model, FAST) for model in (plain, fast)]
    made = compile_model(fast, optimizers[1], FAST, "float32", None, [dummy_batch(12, fast, FAST, None)])
    for one, other in zip(plain.state_dict().values(), fast.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    for step in range(4):
        losses = []
        for model, optimizer in zip((plain, made), optimizers, strict=True):
            set_learning_rate(optimizer, 0.1)
            losses.append(train_step(model, optimizer, FAST, "float32", None, batch_of(seed=step)).loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_no_compiler_is_one_sentence(monkeypatch):
    def fails(*_, **__):
        def model(*_):
            raise RuntimeError("no compiler was found\nand much more")

        return model

    monkeypatch.setattr(torch, "compile", fails)
    model = model_of()
    with pytest.raises(GinghamError, match=r"could not compile the network tiny \(no compiler.*set compile=false$"):
        compile_model(model, build_optimizer(model, FAST), FAST, "float32", None, [dummy_batch(12, model, FAST, None)])


# --- through fit


def fit(recipe, data, **options):
    return gingham.fit(recipe, data.train, data.validation, progress=False, **options)


def test_the_running_mean_is_the_slow_one(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = FAST.replace(epochs=12, batch_size=260)  # each epoch is one step
    seen = []
    plain = fit(recipe, data, on_epoch=lambda model, _: seen.append({k: v.clone() for k, v in model.state_dict().items()}))
    mean = dict(seen[0])
    for step, weights in enumerate(seen):
        kept = min(0.4, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            mean[name] = kept * mean[name] + (1 - kept) * tensor if tensor.is_floating_point() else tensor
    averaged = fit(recipe.replace(ema_decay=0.4), data)
    averaged.model.temperature.copy_(mean["temperature"])  # which is fitted at the end
    averaged.model.threshold.copy_(mean["threshold"])
    for name, tensor in averaged.model.state_dict().items():
        assert torch.allclose(tensor.float(), mean[name].float(), atol=1e-6), name
    assert [entry["loss"] for entry in plain.history if "learning_rate" in entry] == [
        entry["loss"] for entry in averaged.history if "learning_rate" in entry
    ], "the training itself goes on as it would"


@pytest.fixture
def data_and_teacher(quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    return data, fit(gingham.RECIPES["article"].replace(epochs=6, batch_size=16, learning_rate=0.05), data)


def test_a_network_learns_from_a_teacher_alone(data_and_teacher):
    data, teacher = data_and_teacher
    shuffled = gingham.Split(
        "train",
        data.train.images,
        data.train.labels[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))],
        data.classes,
        data.train.dataset,
        data.train.fingerprint,
    )
    recipe = gingham.RECIPES["article"].replace(epochs=10, batch_size=16, learning_rate=0.02, distillation_weight=1.0)
    run = gingham.fit(recipe, shuffled, data.validation, teachers=[teacher], progress=False)
    assert run.metrics["validation_accuracy"] > 0.85, "its labels are shuffled; only the teacher knows"
    assert run.data["teachers"][0]["recipe"] == "article"


def test_the_loss_that_is_noted_is_that_of_the_labels(data_and_teacher):
    """Else it would be compared with what guessing gives, and with untaught runs, by what it is not."""
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=300, distillation_weight=0.9, distillation_temperature=20)
    first = [fit(recipe, data, teachers=who).history[0]["loss"] for who in ((), (teacher,))]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_a_teacher_that_may_know_the_answers_is_refused(data_and_teacher, quadrants):
    data, _ = data_and_teacher
    everything = gingham.load_data(str(quadrants), validation=0)
    knows = gingham.fit(gingham.RECIPES["article"].replace(epochs=0.1), everything.train, progress=False)
    with pytest.raises(DataError, match=r"was trained on 300 pictures .* may know what is held out here"):
        fit(gingham.RECIPES["article"], data, teachers=[knows])


def test_a_teacher_of_other_classes_is_refused(data_and_teacher, fashion_mnist):
    _, teacher = data_and_teacher
    with pytest.raises(DataError, match="choose teachers that were trained on the same data"):
        gingham.fit(FAST, fashion_mnist.train, fashion_mnist.validation, teachers=[teacher], progress=False)


def test_teachers_that_are_not_heard_or_named_twice_are_refused(data_and_teacher):
    data, teacher = data_and_teacher
    with pytest.raises(GinghamError, match="distillation_weight is 0, so teachers would not be heard"):
        fit(gingham.RECIPES["article"].replace(distillation_weight=0), data, teachers=[teacher])
    with pytest.raises(GinghamError, match="two of 2 teachers have the same weights; name each once"):
        fit(gingham.RECIPES["article"], data, teachers=[teacher, teacher])


def test_trials_with_a_teacher(data_and_teacher, tmp_path):
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=16, learning_rate=0.05)
    found = gingham.trials(recipe, data, [3, 4], tmp_path / "trials", teachers=[teacher], progress=False)
    alone = fit(recipe.replace(seed=3), data, teachers=[teacher])
    assert found.accuracies[0] == alone.metrics["validation_accuracy"]
    assert gingham.load(tmp_path / "trials/seed-4").teacher_names == "article with seed 0"
    with pytest.raises(GinghamError, match="holds trials with other teachers; give another --out"):
        gingham.trials(recipe, data, [3], tmp_path / "trials", progress=False)
    everything = gingham.fit(recipe.replace(epochs=0.1), gingham.load_data(data.name, validation=0).train, progress=False)
    with pytest.raises(DataError, match="may know what is held out here"):
        gingham.trials(recipe, data, [3], tmp_path / "others", teachers=[everything], progress=False)
    assert not (tmp_path / "others").exists()


def test_taught_on_the_command_line(command, quadrants):
    same = ("--data", quadrants, "--recipe", "article", "--set", "batch_size=16", "--set", "validation_images=40")
    assert command.call("train", *same, "--out", "teacher", "--epochs", 2).code == 0
    done = command.call("train", *same, "--out", "pupil", "--teacher", "teacher", "--epochs", 1)
    assert done.code == 0
    assert "taught by   article with seed 0" in done.stdout
    known = gingham.load(command.folder / "pupil").data["teachers"][0]["weights_sha256"]
    assert known == json.loads((command.folder / "teacher" / "model.json").read_text())["weights_sha256"]
    missing = command.call("train", *same, "--out", "other", "--teacher", "nobody")
    assert missing.code == 2
    assert "gingham: --teacher: there is no folder nobody" in missing.stderr
    a_file = command("train", *same, "--out", "other", "--teacher", "teacher/model.json", code=2)
    assert "teacher/model.json is a file; name the folder of a run, such as teacher" in a_file.stderr
    assert "article with seed 0" in command.call("report", "pupil").stdout + (command.folder / "pupil/report.html").read_text()
    many = command("trials", *same, "--seeds", 1, "--epochs", 1, "--teacher", "teacher", "--out", "trials")
    assert "trials/seed-N" in many.stdout
    alone = command("train", *same, "--out", "other", "--set", "distillation_weight=0.5", code=2)
    assert "distillation_weight is set and there is no teacher; name one with --teacher RUN" in alone.stderr
    packaged = command("train", *same, "--out", "other", "--teacher", "packaged", code=2)
    assert "the teacher photo with seed 0 answers for pictures of" in packaged.stderr
    assert not (command.folder / "other").exists()


def test_a_checkpoint_remembers_its_teachers(data_and_teacher, tmp_path):
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(epochs=2, batch_size=32, checkpoint_seconds=0)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(model, epoch):
        raise Stop

    with pytest.raises(Stop):
        fit(recipe, data, teachers=[teacher], folder=tmp_path, on_epoch=stop)
    with pytest.raises(GinghamError, match="was made with teachers"):
        fit(recipe, data, folder=tmp_path, resume=True)
    resumed = fit(recipe, data, teachers=[teacher], folder=tmp_path, resume=True)
    whole = fit(recipe, data, teachers=[teacher])
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


# --- the recipes for GPUs, at a length for CPUs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpu-94", "gpu-95", "gpu-96", "gpu-best"])
def test_a_recipe_for_a_gpu_goes_through_the_loop(name, quadrants):
    data = gingham.load_data(str(quadrants), validation=40)
    few = gingham.Split(
        "train", data.train.images[:48], data.train.labels[:48], data.classes, data.train.dataset, data.train.fingerprint
    )
    recipe = gingham.RECIPES[name].replace(epochs=2, batch_size=24, compile=False)
    run = gingham.fit(recipe, few, data.validation, progress=False)
    losses = [entry["loss"] for entry in run.history if "learning_rate" in entry]
    assert len(losses) == run.metrics["steps"] >= 3
    assert run.metrics["validation_accuracy"] is not None, "the last look is taken, however seldom looks are"
    assert len([entry for entry in run.history if entry.get("validation_loss") is not None]) == 1
    assert run.model.predict(data.test.images[:3]).probabilities.isfinite().all()
