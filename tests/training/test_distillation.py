import copy
import json

import pytest
import torch

import gingham
from gingham import DataError, GinghamError
from gingham.training.distillation import TeacherEnsemble
from helpers import fit, fresh_model, make_dataset, random_batch

FAST = gingham.RECIPES["fast-85"].replace(hard_share=1.0)


def test_ensemble_predicts_the_mean_of_its_teachers_probabilities():
    models = [fresh_model(FAST, seed=seed).eval() for seed in (0, 1)]
    batch = random_batch()
    expected = torch.stack([(model.logits(batch.images) / 4).softmax(1) for model in models]).mean(0)
    assert torch.allclose(TeacherEnsemble(models, 4.0)(batch.images), expected, atol=1e-6)


# --- through fit


@pytest.fixture(scope="module")
def shared_teacher(tmp_path_factory):
    data = gingham.load_data(str(make_dataset(tmp_path_factory.mktemp("teacher") / "quadrants")), validation=40)
    return data, fit(gingham.RECIPES["article"].replace(epochs=3, batch_size=8, learning_rate=0.03), data)


@pytest.fixture
def data_and_teacher(shared_teacher):
    return copy.deepcopy(shared_teacher)


def test_network_learns_from_a_teacher_without_labels(data_and_teacher):
    data, teacher = data_and_teacher
    shuffled = gingham.Split(
        "train",
        data.train.images,
        data.train.labels[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))],
        data.classes,
        data.train.dataset,
        data.train.fingerprint,
    )
    # Without flips: the quadrants' classes are each other's mirror images.
    recipe = FAST.replace(network="tiny", flip="none", tta="none", epochs=6, batch_size=16, distillation_weight=1.0)
    run = gingham.fit(recipe, shuffled, data.validation, progress=False, options=gingham.FitOptions(teachers=[teacher]))
    assert run.metrics["validation_accuracy"] > 0.85, "the labels are shuffled, so only the teacher can be learned from"
    assert run.data["teachers"][0]["recipe"] == "article"


def test_history_records_the_loss_to_the_labels(data_and_teacher):
    """The recorded loss can be compared with ln K and with runs without teachers."""
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(
        epochs=0.1, batch_size=32, distillation_weight=0.9, distillation_temperature=20
    )
    first = [fit(recipe, data, teachers=teachers).history[0]["loss"] for teachers in ((), (teacher,))]
    assert first[0] == pytest.approx(first[1], abs=1e-6)


def test_teacher_trained_on_other_images_is_an_error(data_and_teacher, quadrants):
    data, _ = data_and_teacher
    everything = gingham.load_data(str(quadrants), validation=0)
    teacher = gingham.fit(gingham.RECIPES["article"].replace(epochs=0.1), everything.train, progress=False)
    with pytest.raises(DataError, match=r"was trained on 300 images .* may have been trained on held-out images"):
        fit(gingham.RECIPES["article"], data, teachers=[teacher])


def test_teacher_with_other_classes_is_an_error(data_and_teacher, fashion_mnist):
    _, teacher = data_and_teacher
    with pytest.raises(DataError, match="choose teachers that were trained on the same data"):
        gingham.fit(
            FAST,
            fashion_mnist.train,
            fashion_mnist.validation,
            progress=False,
            options=gingham.FitOptions(teachers=[teacher]),
        )


def test_teachers_without_weight_or_given_twice_are_an_error(data_and_teacher):
    data, teacher = data_and_teacher
    with pytest.raises(GinghamError, match="distillation_weight is 0, so teachers have no effect"):
        fit(gingham.RECIPES["article"].replace(distillation_weight=0), data, teachers=[teacher])
    with pytest.raises(GinghamError, match="two of 2 teachers have the same weights; give each teacher once"):
        fit(gingham.RECIPES["article"], data, teachers=[teacher, teacher])


def test_trials_accept_a_teacher(data_and_teacher, tmp_path):
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(network="tiny", epochs=1, batch_size=16, learning_rate=0.05)
    found = gingham.trials(
        recipe, data, [3, 4], tmp_path / "trials", progress=False, options=gingham.FitOptions(teachers=[teacher])
    )
    alone = fit(recipe.replace(seed=3), data, teachers=[teacher])
    assert found.accuracies[0] == alone.metrics["validation_accuracy"]
    assert gingham.load(tmp_path / "trials/seed-4").teacher_names == "article with seed 0"
    with pytest.raises(GinghamError, match=r"contains trials with teachers .*; give another folder"):
        gingham.trials(recipe, data, [3], tmp_path / "trials", progress=False)
    everything = gingham.fit(
        recipe.replace(epochs=0.1), gingham.load_data(data.name, validation=0).train, progress=False
    )
    with pytest.raises(DataError, match="may have been trained on held-out images"):
        gingham.trials(
            recipe, data, [3], tmp_path / "others", progress=False, options=gingham.FitOptions(teachers=[everything])
        )
    assert not (tmp_path / "others").exists()


def test_train_and_trials_commands_accept_teachers(command, quadrants):
    same = ("--data", quadrants, "--recipe", "article", "--set", "batch_size=16", "--set", "validation_images=40")
    assert command.call("train", *same, "--out", "teacher", "--epochs", 0.5).code == 0
    done = command.call("train", *same, "--out", "pupil", "--teacher", "teacher", "--epochs", 0.3)
    assert done.code == 0
    assert "teachers    article with seed 0" in done.stdout
    known = gingham.load(command.folder / "pupil").data["teachers"][0]["weights_sha256"]
    assert known == json.loads((command.folder / "teacher" / "model.json").read_text())["weights_sha256"]
    missing = command.call("train", *same, "--out", "other", "--teacher", "nobody")
    assert missing.code == 2
    assert "gingham: --teacher: there is no folder nobody" in missing.stderr
    a_file = command("train", *same, "--out", "other", "--teacher", "teacher/model.json", code=2)
    assert "teacher/model.json is a file; give the folder of a run, such as teacher" in a_file.stderr
    assert (
        "article with seed 0"
        in command.call("report", "pupil").stdout + (command.folder / "pupil/report.html").read_text()
    )
    many = command("trials", *same, "--seeds", 1, "--epochs", 0.3, "--teacher", "teacher", "--out", "trials")
    assert "trials/seed-N" in many.stdout
    alone = command("train", *same, "--out", "other", "--set", "distillation_weight=0.5", code=2)
    assert "distillation_weight is set but there is no teacher; give one with --teacher RUN" in alone.stderr
    packaged = command("train", *same, "--out", "other", "--teacher", "packaged", code=2)
    assert "the teacher photo with seed 0 takes images of" in packaged.stderr
    assert not (command.folder / "other").exists()


def test_checkpoint_of_other_teachers_is_not_resumed(data_and_teacher, tmp_path):
    data, teacher = data_and_teacher
    recipe = gingham.RECIPES["article"].replace(network="tiny", epochs=2, batch_size=32, checkpoint_seconds=0)

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
