import pytest
import torch

import gingham
from gingham import DataError
from gingham.evaluation.calibrate import calibrate


def test_temperature_and_threshold_are_saved_with_the_model(saved_run):
    run, data, folder = saved_run
    result = gingham.evaluate(run, data.validation)
    assert result.calibration_error <= result.calibration_error_before + 0.02
    model = gingham.load(folder).model
    assert float(model.temperature) == pytest.approx(run.metrics["temperature"])
    assert float(model.threshold) == pytest.approx(run.metrics["threshold"])
    predictions = model.predict(data.validation.images)
    confident = predictions.probabilities.max(dim=1).values >= model.threshold
    assert torch.equal(predictions.unsure, ~confident)
    wrong = (predictions.labels != data.validation.labels)[confident]
    assert wrong.double().mean() <= run.recipe.risk + 1e-9 if len(wrong) else True
    assert result.unsure_share == pytest.approx(1 - float(confident.double().mean()))
    assert result.unsure_share == run.metrics["unsure_share"]


def test_a_smaller_risk_leaves_more_images_unsure(small_run):
    run, data = small_run
    shares = []
    for risk in (0.5, 0.2, 0.05, 0.0):
        run.recipe = run.recipe.replace(risk=risk)
        calibrate(run, data.validation)
        shares.append(run.metrics["unsure_share"])
        assert run.metrics["sure_error"] is None or run.metrics["sure_error"] <= risk
    assert shares == sorted(shares)


def test_calibrating_on_the_test_split_is_an_error(small_run):
    run, data = small_run
    with pytest.raises(DataError, match="calibrate got the test split"):
        calibrate(run, data.test)
