import pytest
import torch

import gingham
from gingham.io import read_tensors, write_tensors
from gingham.runs.predictions import load_predictions


def test_saved_predictions_are_loaded(saved_run):
    folder, run, data = saved_run
    gingham.evaluate(run, data.validation)
    cached = load_predictions(gingham.load(folder), "validation", data.fingerprint)
    predictions = run.model.predict(data.validation.images)
    assert torch.equal(cached["predicted"], predictions.labels)
    assert torch.equal(cached["labels"], data.validation.labels)
    assert torch.allclose(cached["confidence"], predictions.probabilities.max(dim=1).values)
    assert load_predictions(run, "validation", "another") is None
    assert load_predictions(run, "test", data.fingerprint) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors: tensors["predicted"].fill_(99),
        lambda tensors: tensors["labels"].fill_(-1),
        lambda tensors: tensors["confidence"].fill_(float("nan")),
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
    assert load_predictions(run, "validation", data.fingerprint) is None
    assert gingham.evaluate(run, data.validation).accuracy == run.metrics["validation_accuracy"]
