"""Training that starts with the weights of another run."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import gingham
from gingham.data.image_hashes import hash_images
from gingham.errors import DataError, ModelError
from helpers import fit, make_dataset

SHORT = gingham.RECIPES["article"].replace(epochs=1, batch_size=32, validation_images=40)


@pytest.fixture
def data(quadrants):
    return gingham.load_data(str(quadrants), validation=40)


def without_class(data, label):
    """Return the data without the images of the last class."""
    assert label == len(data.classes) - 1

    def cut(split):
        kept = split.labels != label
        classes = split.classes[:label]
        return replace(split, images=split.images[kept], labels=split.labels[kept], classes=classes)

    train, validation, test = map(cut, (data.train, data.validation, data.test))
    return replace(data, train=train, validation=validation, test=test, classes=train.classes)


def test_training_starts_with_the_weights_of_the_run(data):
    start = fit(SHORT, data)
    onward = fit(SHORT.replace(learning_rate=0), data, start=start)
    for name, tensor in start.model.network.state_dict().items():
        assert torch.equal(onward.model.network.state_dict()[name], tensor), name
    assert onward.data["origin"]["run"] == "article"


def test_a_run_records_the_images_that_it_and_its_start_were_trained_on(data, tmp_path):
    fewer = replace(data.train, images=data.train.images[:100], labels=data.train.labels[:100])
    start = gingham.fit(SHORT, fewer, data.validation, progress=False)
    later = replace(data.train, images=data.train.images[100:], labels=data.train.labels[100:])
    options = gingham.FitOptions(start=start)
    onward = gingham.fit(SHORT, later, data.validation, progress=False, options=options)
    gingham.save(onward, tmp_path / "onward")
    hashes = gingham.load(tmp_path / "onward").image_hashes
    assert set(hashes["train"].tolist()) == set(hash_images(data.train.images).tolist())
    assert set(hashes["validation"].tolist()) == set(hash_images(data.validation.images).tolist())


def test_different_images_have_different_hashes():
    images = torch.arange(2000, dtype=torch.int16).view(torch.uint8).view(2000, 1, 1, 2)
    assert len(set(hash_images(images).tolist())) == 2000
    assert torch.equal(hash_images(images[5:9].clone()), hash_images(images)[5:9])


def test_a_class_that_is_added_keeps_the_weights_of_the_others(data):
    start = fit(SHORT, without_class(data, 3))
    onward = fit(SHORT.replace(learning_rate=0), data, start=start)
    (*_, before), (*_, after) = start.model.network.parameters(), onward.model.network.parameters()
    assert len(before) == 3
    assert len(after) == 4
    assert torch.equal(after[:3], before)


def test_classes_are_matched_by_name(data):
    start = fit(SHORT, data)
    order = torch.tensor([2, 0, 3, 1])  # the new label of each class

    def renumbered(split):
        classes = tuple(np.array(split.classes)[order.argsort()])
        return replace(split, labels=order[split.labels], classes=classes)

    splits = [renumbered(split) for split in (data.train, data.validation)]
    options = gingham.FitOptions(start=start)
    onward = gingham.fit(SHORT.replace(learning_rate=0), *splits, progress=False, options=options)
    before, after = (run.model.predict(data.test.images).names for run in (start, onward))
    assert before == after


def test_another_network_is_refused(data):
    start = fit(SHORT, data)
    with pytest.raises(ModelError, match=r"does not fit .* train with the same network"):
        fit(SHORT.replace(network="tiny"), data, start=start)
    larger = fit(SHORT.replace(network="small"), data)
    with pytest.raises(ModelError, match=r"does not fit .* train with the same network"):
        fit(SHORT.replace(network="tiny"), data, start=larger)


def test_weights_and_a_run_to_start_from_are_refused(data, tmp_path):
    with pytest.raises(gingham.GinghamError, match="leave one of them out"):
        fit(SHORT, data, start=fit(SHORT, data), weights=tmp_path / "model.safetensors")


def test_images_of_another_size_cannot_be_found(small_run, quadrants):
    from gingham.training.initial_weights import require_unseen

    said = []
    require_unseen(small_run[0], gingham.load_data(str(quadrants), validation=40, size=32), said.append)
    assert len(said) == 1
    assert "was trained on images of 1x28x28, which cannot be found among those of 1x32x32" in said[0]


def test_the_start_is_part_of_what_resume_compares(data, tmp_path):
    start = fit(SHORT, data)

    def stop(model, epoch):
        raise KeyboardInterrupt

    recipe = SHORT.replace(epochs=2, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, data, tmp_path / "run", start=start, on_epoch=stop)
    with pytest.raises(gingham.RunError, match=r"start .*, not None.*--from RUN"):
        fit(recipe, data, tmp_path / "run", resume=True)
    resumed = fit(recipe, data, tmp_path / "run", resume=True, start=start)
    whole = fit(recipe, data, start=start)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_train_from_a_run_on_the_same_data(command, quadrants):
    arguments = ("train", "--data", quadrants, "--recipe", "article", "--epochs", 0.5, "--set", "validation_images=40")
    command(*arguments, "--out", "first")
    done = command("train", "--data", quadrants, "--from", "first", "--epochs", 0.5, "--out", "second")
    assert "started from  a run of article with seed 0" in done.stdout
    assert gingham.load(command.folder / "second").recipe.network == "article"


def test_train_from_a_run_refuses_test_images_that_it_was_trained_on(command, tmp_path):
    make_dataset(tmp_path / "images")
    data = gingham.load_data(str(tmp_path / "images"), validation=0)
    split = {"x_train": data.train.images, "y_train": data.train.labels}
    # Five training images are test images of the second file.
    test = {"x_test": torch.cat([data.test.images, data.train.images[:5]])}
    test |= {"y_test": torch.cat([data.test.labels, data.train.labels[:5]])}
    np.savez(tmp_path / "leaking.npz", **{name: array.numpy() for name, array in {**split, **test}.items()})
    recipe = ("--recipe", "article", "--epochs", 0.2, "--set", "validation_images=0")
    command("train", "--data", tmp_path / "images", *recipe, "--out", "first")
    done = command("train", "--data", tmp_path / "leaking.npz", *recipe, "--from", "first", "--out", "second", code=2)
    assert "was trained on 5 of the 85 test images" in done.stderr
    assert not (command.folder / "second").exists()
    shown = command("evaluate", "first", "--data", tmp_path / "leaking.npz", "--split", "test")
    assert "the model was trained on 5 of these images" in shown.stdout


def test_an_added_class_is_held_out_in_the_same_share_as_the_others(command, tmp_path):
    data = gingham.load_data(str(make_dataset(tmp_path / "images")), validation=0)
    for name, num_classes in (("before", 3), ("after", 4)):
        arrays = {}
        for split in (data.train, data.test):
            kept = split.labels < num_classes
            arrays |= {f"x_{split.name}": split.images[kept].numpy(), f"y_{split.name}": split.labels[kept].numpy()}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    recipe = ("--recipe", "article", "--epochs", 0.2, "--set", "validation_images=60")
    command("train", "--data", tmp_path / "before.npz", *recipe, "--out", "first")
    command("train", "--data", tmp_path / "after.npz", *recipe, "--from", "first", "--out", "second")
    first, second = (gingham.load(command.folder / name).image_hashes for name in ("first", "second"))
    labels = dict(zip(hash_images(data.train.images).tolist(), data.train.labels.tolist(), strict=True))
    held_out = np.bincount([labels[key] for key in second["validation"].tolist()], minlength=4)
    assert not set(second["validation"].tolist()) & set(first["train"].tolist())
    assert held_out.tolist() == [15, 15, 15, 15]  # a fifth of 75 images of each class
    # The run is evaluated on the images that were held out from it.
    shown = command("evaluate", "second")
    assert "of 60 validation images" in shown.stdout
    assert "the model was trained on" not in shown.stdout


def test_a_run_without_a_record_of_its_images_is_refused_for_other_data(command, quadrants, tmp_path):
    recipe = ("--recipe", "article", "--epochs", 0.2, "--set", "validation_images=40")
    command("train", "--data", quadrants, *recipe, "--out", "first")
    (command.folder / "first" / "images.safetensors").unlink()
    other = make_dataset(tmp_path / "other", seed=1)
    done = command("train", "--data", other, *recipe, "--from", "first", "--out", "second", code=2)
    assert "does not record its training images" in done.stderr


def test_validation_images_that_were_trained_on_cause_a_warning(small_run, quadrants):
    from gingham.training.initial_weights import require_unseen

    run, data = small_run
    said = []
    more = gingham.load_data(str(quadrants), validation=50)
    require_unseen(run, data, said.append)
    assert said == []
    require_unseen(run, more, said.append)
    assert len(said) == 1
    assert "was trained on 10 of the 50 validation images" in said[0]
    run.image_hashes = {}
    with pytest.raises(DataError, match="does not record"):
        require_unseen(run, more, said.append)
