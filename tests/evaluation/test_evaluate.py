import json

import pytest
import torch

import gingham
from gingham import DataError, GinghamError
from gingham.evaluation.calibrate import calibrate
from gingham.evaluation.evaluate import compute_result, correct_predictions
from gingham.io import read_tensors, write_tensors
from gingham.runs.predictions import load_predictions


@pytest.fixture
def saved(small_run, tmp_path):
    run, data = small_run
    gingham.save(run, tmp_path / "run")
    return run, data, tmp_path / "run"


def test_a_report_against_a_loop(small_run):
    run, data = small_run
    report = gingham.evaluate(run, data.test)
    predicted = run.model.predict(data.test.images)
    right = 0
    for guess, label in zip(predicted.labels.tolist(), data.test.labels.tolist(), strict=True):
        right += guess == label
    assert (report.correct, report.total, report.accuracy) == (right, 80, right / 80)
    assert report.loss == pytest.approx(float(-predicted.probabilities[range(80), data.test.labels].log().mean()), abs=1e-5)
    assert report.interval[0] < report.accuracy < report.interval[1] or report.accuracy in (0, 1)
    assert sum(map(sum, report.confusion.matrix)) == 80
    assert sum(row["correct"] for row in report.per_class.values()) == right
    for k, name in enumerate(data.classes):
        given = int((predicted.labels == k).sum())
        assert report.per_class[name]["total"] == 20
        assert report.per_class[name]["accuracy"] == report.per_class[name]["correct"] / 20
        assert report.per_class[name]["precision"] == (report.per_class[name]["correct"] / given if given else None)
        for other, column in enumerate(data.classes):
            expected = int(((data.test.labels == k) & (predicted.labels == other)).sum())
            assert report.confusion[name, column] == expected
    recalls = [row["accuracy"] for row in report.per_class.values()]
    assert report.balanced_accuracy == pytest.approx(sum(recalls) / 4)
    assert 0 <= report.calibration_error <= 1


def test_the_report_is_json(small_run):
    run, data = small_run
    values = json.loads(json.dumps(gingham.evaluate(run, data.validation).to_dict(), allow_nan=False))
    assert {
        "split",
        "accuracy",
        "loss",
        "correct",
        "total",
        "per_class",
        "confusion",
        "calibration_error",
        "test_openings",
    } <= set(values)
    assert values["classes"] == ["0", "1", "2", "3"]


def test_the_report_prints_a_table_by_class(fashion_mnist):
    logits = torch.nn.functional.one_hot(fashion_mnist.test.labels, 10).float() * 20
    text = str(compute_result(logits, fashion_mnist.test, []))
    assert "100.00% of 10,000 test pictures right (95 % interval 99.96% to 100.00%)" in text
    assert all(name in text for name in fashion_mnist.classes)
    shown = str(compute_result(logits, fashion_mnist.test, []).confusion)
    assert shown.count("1000") == 10
    assert max(map(len, shown.splitlines())) <= 80


def test_every_look_at_the_test_split_is_written_down(saved):
    run, data, folder = saved
    assert run.test_openings == []
    gingham.evaluate(run, data.validation)
    assert gingham.load(folder).test_openings == []
    for count in (1, 2):
        report = gingham.evaluate(run, data.test)
        assert len(report.test_openings) == len(gingham.load(folder).test_openings) == count
    opening = gingham.load(folder).test_openings[0]
    assert opening["images"] == 80
    assert opening["date"].startswith("20")
    first, second = gingham.load(folder), gingham.load(folder)  # two who look at once, neither knowing of the other
    gingham.evaluate(first, data.test)
    assert len(gingham.evaluate(second, data.test).test_openings) == len(gingham.load(folder).test_openings) == 4


def test_a_look_that_cannot_be_recorded_does_not_happen(saved, monkeypatch):
    run, data, _ = saved

    def refuse(*_):
        raise GinghamError("cannot write")

    monkeypatch.setattr("gingham.evaluation.evaluate.record_test_use", refuse)
    monkeypatch.setattr(type(run.model), "logits", lambda *_: pytest.fail("predictions were computed"))
    with pytest.raises(GinghamError, match="cannot write"):
        gingham.evaluate(run, data.test)


def test_other_classes_and_shapes_are_refused(small_run, fashion_mnist):
    run, data = small_run
    with pytest.raises(DataError, match=r"has pictures of 1x28x28 in 10 classes .* the model was trained on 1x28x28 in 4"):
        gingham.evaluate(run, fashion_mnist.test)
    empty = gingham.Split("validation", data.test.images[:0], data.test.labels[:0], data.classes, "none", "")
    with pytest.raises(DataError, match="is empty"):
        gingham.evaluate(run, empty)


def test_an_unknown_class_lists_those_there_are(small_run):
    run, data = small_run
    with pytest.raises(DataError, match="no class 'Coat' in the confusion matrix; the classes are 0, 1, 2, 3"):
        gingham.evaluate(run, data.validation).confusion["0", "Coat"]


def test_the_model_carries_its_temperature_and_threshold(saved):
    run, data, folder = saved
    report = gingham.evaluate(run, data.validation)
    assert report.calibration_error <= report.calibration_error_before + 0.02
    model = gingham.load(folder).model
    assert float(model.temperature) == pytest.approx(run.metrics["temperature"])
    assert float(model.threshold) == pytest.approx(run.metrics["threshold"])
    answers = model.predict(data.validation.images)
    sure = answers.probabilities.max(dim=1).values >= model.threshold
    assert torch.equal(answers.unsure, ~sure)
    wrong = (answers.labels != data.validation.labels)[sure]
    assert wrong.double().mean() <= run.recipe.risk + 1e-9 if len(wrong) else True
    assert report.unsure_share == pytest.approx(1 - float(sure.double().mean()))
    assert report.unsure_share == run.metrics["unsure_share"]


def test_a_smaller_risk_leaves_more_unsure(small_run):
    run, data = small_run
    shares = []
    for risk in (0.5, 0.2, 0.05, 0.0):
        run.recipe = run.recipe.replace(risk=risk)
        calibrate(run, data.validation)
        shares.append(run.metrics["unsure_share"])
        assert run.metrics["sure_error"] is None or run.metrics["sure_error"] <= risk
    assert shares == sorted(shares)


def test_nothing_is_calibrated_on_the_test_split(small_run):
    run, data = small_run
    with pytest.raises(DataError, match="calibrate got the test split"):
        calibrate(run, data.test)


def test_predictions_are_kept(saved):
    run, data, folder = saved
    gingham.evaluate(run, data.validation)
    kept = load_predictions(gingham.load(folder), "validation", data.fingerprint)
    answers = run.model.predict(data.validation.images)
    assert torch.equal(kept["predicted"], answers.labels)
    assert torch.equal(kept["labels"], data.validation.labels)
    assert torch.allclose(kept["confidence"], answers.probabilities.max(dim=1).values)
    assert load_predictions(run, "validation", "another") is None
    assert load_predictions(run, "test", data.fingerprint) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors["predicted"].fill_(99),
        lambda tensors: tensors["labels"].fill_(-1),
        lambda tensors: tensors["confidence"].fill_(float("nan")),
        lambda tensors: tensors.update(labels=tensors["labels"][:-1].clone()),
        lambda tensors: tensors.update(labels=tensors["labels"].float()),
    ],
)
def test_damaged_predictions_are_made_anew(saved, spoil):
    run, data, folder = saved
    gingham.evaluate(run, data.validation)
    path = folder / "predictions-validation.safetensors"
    tensors, metadata = read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    spoil(tensors)
    write_tensors(path, tensors, metadata)
    assert load_predictions(run, "validation", data.fingerprint) is None
    assert gingham.evaluate(run, data.validation).accuracy == run.metrics["validation_accuracy"]


def test_predictions_that_cannot_be_kept_cost_no_result(saved, monkeypatch):
    run, data, folder = saved

    def refuse(*_):
        raise GinghamError("cannot write")

    monkeypatch.setattr("gingham.evaluation.evaluate.save_predictions", refuse)
    report = gingham.evaluate(run, data.validation)
    assert report.total == 40
    assert int(correct_predictions(run, data.validation).sum()) == report.correct
    assert not (folder / "predictions-validation.safetensors").exists()
    gingham.evaluate(run, data.test)
    assert len(gingham.load(folder).test_openings) == 1, "the opening is written down all the same"
