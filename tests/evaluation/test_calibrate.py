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
        calibrate(run, data.train, data.validation)
        shares.append(run.metrics["unsure_share"])
        assert run.metrics["sure_error"] is None or run.metrics["sure_error"] <= risk
    assert shares == sorted(shares)


def test_a_model_without_a_validation_error_is_unsure_below_a_half(quadrants, tmp_path):
    data = gingham.load_data(str(quadrants), validation=40)
    run = gingham.fit(gingham.RECIPES["fast-90"].replace(batch_size=16), data.train, data.validation, progress=False)
    assert gingham.evaluate(run, data.validation).accuracy == 1
    assert float(run.model.threshold) == run.metrics["threshold"] == 0.5
    # Images between the classes: each mean of two has a top probability of about a half or below.
    first = {label: data.test.images[data.test.labels == label][0].int() for label in range(4)}
    images = torch.stack([sum(first.values()) // 4, *((first[k] + first[(k + 1) % 4]) // 2 for k in range(4))]).byte()
    predictions = run.model.predict(images)
    low = predictions.probabilities.max(dim=1).values < 0.5
    assert low.any()
    assert predictions.unsure[low].all()


def test_a_saved_threshold_of_zero_is_kept(saved_run, tmp_path):
    run, data, _ = saved_run
    run.model.threshold.fill_(0)
    loaded = gingham.load(gingham.save(run, tmp_path / "older"))
    assert float(loaded.model.threshold) == 0
    assert not loaded.model.predict(data.test.images).unsure.any()


def test_calibrating_on_the_test_split_is_an_error(small_run):
    run, data = small_run
    with pytest.raises(DataError, match="calibrate got the test split"):
        calibrate(run, data.train, data.test)
