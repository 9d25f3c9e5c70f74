import json

import pytest
import torch

import gingham
from gingham import DataError, GinghamError
from gingham.evaluation.evaluate import compute_result, correct_predictions
from helpers import fresh_model


def test_evaluate_agrees_with_a_loop(small_run):
    run, data = small_run
    result = gingham.evaluate(run, data.test)
    predictions = run.model.predict(data.test.images)
    correct = 0
    for prediction, label in zip(predictions.labels.tolist(), data.test.labels.tolist(), strict=True):
        correct += prediction == label
    assert (result.correct, result.total, result.accuracy) == (correct, 80, correct / 80)
    assert result.loss == pytest.approx(
        float(-predictions.probabilities[range(80), data.test.labels].log().mean()), abs=1e-5
    )
    assert result.interval[0] < result.accuracy < result.interval[1] or result.accuracy in (0, 1)
    assert sum(map(sum, result.confusion.matrix)) == 80
    assert sum(row["correct"] for row in result.per_class.values()) == correct
    for k, name in enumerate(data.classes):
        predicted = int((predictions.labels == k).sum())
        assert result.per_class[name]["total"] == 20
        assert result.per_class[name]["accuracy"] == result.per_class[name]["correct"] / 20
        assert result.per_class[name]["precision"] == (
            result.per_class[name]["correct"] / predicted if predicted else None
        )
        for other, column in enumerate(data.classes):
            expected = int(((data.test.labels == k) & (predictions.labels == other)).sum())
            assert result.confusion[name, column] == expected
    recalls = [row["accuracy"] for row in result.per_class.values()]
    assert result.balanced_accuracy == pytest.approx(sum(recalls) / 4)
    assert 0 <= result.calibration_error <= 1


def test_a_result_converts_to_json(small_run):
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


def test_a_printed_result_has_a_table_by_class(fashion_mnist):
    logits = torch.nn.functional.one_hot(fashion_mnist.test.labels, 10).float() * 20
    recipe = gingham.RECIPES["article"]
    result = compute_result(gingham.Run(fresh_model(recipe), recipe), fashion_mnist.test, logits)
    text = str(result)
    assert "100.00% of 10,000 test images right (95 % interval 99.96% to 100.00%)" in text
    assert all(name in text for name in fashion_mnist.classes)
    shown = str(result.confusion)
    assert shown.count("1000") == 10
    assert max(map(len, shown.splitlines())) <= 80


def test_every_evaluation_on_the_test_split_is_recorded(saved_run):
    run, data, folder = saved_run
    assert run.test_openings == []
    gingham.evaluate(run, data.validation)
    assert gingham.load(folder).test_openings == []
    for count in (1, 2):
        result = gingham.evaluate(run, data.test)
        assert len(result.test_openings) == len(gingham.load(folder).test_openings) == count
    opening = gingham.load(folder).test_openings[0]
    assert opening["images"] == 80
    assert opening["date"].startswith("20")
    first, second = gingham.load(folder), gingham.load(folder)  # two evaluations at once, unaware of each other
    gingham.evaluate(first, data.test)
    assert len(gingham.evaluate(second, data.test).test_openings) == len(gingham.load(folder).test_openings) == 4


def test_no_test_predictions_are_computed_if_the_use_cannot_be_recorded(saved_run, monkeypatch):
    run, data, _ = saved_run

    def refuse(*_):
        raise GinghamError("cannot write")

    monkeypatch.setattr("gingham.evaluation.evaluate.record_test_use", refuse)
    monkeypatch.setattr(type(run.model), "logits", lambda *_: pytest.fail("predictions were computed"))
    with pytest.raises(GinghamError, match="cannot write"):
        gingham.evaluate(run, data.test)


def test_other_classes_and_empty_splits_are_errors(small_run, fashion_mnist):
    run, data = small_run
    with pytest.raises(
        DataError, match=r"has images of 1x28x28 in 10 classes .* the model was trained on 1x28x28 in 4"
    ):
        gingham.evaluate(run, fashion_mnist.test)
    empty = gingham.Split("validation", data.test.images[:0], data.test.labels[:0], data.classes, "none", "")
    with pytest.raises(DataError, match="is empty"):
        gingham.evaluate(run, empty)


def test_an_unknown_class_is_an_error_that_lists_the_classes(small_run):
    run, data = small_run
    with pytest.raises(DataError, match="no class 'Coat' in the confusion matrix; the classes are 0, 1, 2, 3"):
        gingham.evaluate(run, data.validation).confusion["0", "Coat"]


def test_a_result_is_returned_even_if_predictions_cannot_be_saved(saved_run, monkeypatch):
    run, data, folder = saved_run

    def refuse(*_):
        raise GinghamError("cannot write")

    monkeypatch.setattr("gingham.evaluation.evaluate.save_predictions", refuse)
    result = gingham.evaluate(run, data.validation)
    assert result.total == 40
    assert int(correct_predictions(run, data.validation).sum()) == result.correct
    assert not (folder / "predictions-validation.safetensors").exists()
    gingham.evaluate(run, data.test)
    assert len(gingham.load(folder).test_openings) == 1, "the use of the test split is recorded all the same"
