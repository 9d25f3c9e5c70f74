import dataclasses

import pytest
import torch

import gingham
from gingham.io import read_tensors, write_tensors
from gingham.runs.predictions import load_predictions


def test_saved_predictions_are_loaded(saved_run):
    folder, run, data = saved_run
    gingham.evaluate(run, data.validation)
    predictions = run.model.predict(data.validation.images)
    assert torch.equal(load_predictions(gingham.load(folder), data.validation), predictions.labels)
    saved, _ = read_tensors(folder / "predictions-validation.safetensors")
    assert torch.equal(saved["predicted"], predictions.labels.int())
    assert torch.equal(saved["labels"], data.validation.labels.int())
    assert torch.allclose(saved["confidence"], predictions.probabilities.max(dim=1).values)


def test_predictions_of_other_images_are_not_loaded(saved_run):
    _, run, data = saved_run
    gingham.evaluate(run, data.validation)
    assert load_predictions(run, dataclasses.replace(data.validation, fingerprint="another")) is None
    assert load_predictions(run, dataclasses.replace(data.validation, labels=data.validation.labels.flip(0))) is None
    assert load_predictions(run, data.test) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors["predicted"].fill_(99),
        lambda tensors: tensors["labels"].fill_(-1),
        lambda tensors: tensors.pop("predicted"),
        lambda tensors: tensors.update(predicted=tensors["predicted"][:-1].clone()),
        lambda tensors: tensors.update(labels=tensors["labels"][:-1].clone()),
        lambda tensors: tensors.update(labels=tensors["labels"].float()),
    ],
)
def test_damaged_predictions_are_computed_again(saved_run, damage):
    folder, run, data = saved_run
    gingham.evaluate(run, data.validation)
    path = folder / "predictions-validation.safetensors"
    tensors, metadata = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    damage(tensors)
    write_tensors(path, tensors, metadata)
    assert load_predictions(run, data.validation) is None
    assert gingham.evaluate(run, data.validation).accuracy == run.metrics["validation_accuracy"]
