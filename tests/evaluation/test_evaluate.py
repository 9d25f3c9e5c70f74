import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

import gingham
from gingham import DataError, GinghamError
from gingham.evaluation.evaluate import compute_result, correct_predictions
from gingham.models.registry import build_classifier
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
    assert 0 <= values["macro_f1"] <= 1
    assert set(values["per_class"]["0"]) == {"accuracy", "recall", "precision", "f1", "correct", "total"}
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


def result_of(labels, predicted, names):
    """Return the result of a run that predicts these classes."""
    images = torch.zeros(len(labels), 1, 28, 28, dtype=torch.uint8)
    split = gingham.Split("validation", images, torch.tensor(labels), tuple(names), "few", "")
    recipe = gingham.RECIPES["article"]
    logits = torch.nn.functional.one_hot(torch.tensor(predicted), len(names)).float()
    return compute_result(gingham.Run(build_classifier("tiny", names, (1, 28, 28)), recipe), split, logits)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_metrics_by_class_and_their_means_agree_with_scikit_learn(pairs):
    """Few images of five classes, so that many classes have no images, no predictions, or neither."""
    labels, predicted = map(list, zip(*pairs, strict=True))
    result = result_of(labels, predicted, "abcde")
    expected = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=float("nan")
    )
    rows = result.per_class.values()
    for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
        ours = [float("nan") if row[key] is None else row[key] for row in rows]
        assert ours == pytest.approx(values.tolist(), nan_ok=True), key
    assert [row["total"] for row in rows] == expected[3].tolist()
    assert [row["accuracy"] for row in rows] == [row["recall"] for row in rows]
    assert result.macro_f1 == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))
    with warnings.catch_warnings(action="ignore"):  # of predictions of classes without images
        balanced = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert result.balanced_accuracy == pytest.approx(balanced)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_balanced_accuracy_comes_first_if_a_class_has_more_than_twice_the_images_of_another():
    lines = str(result_of([0] * 95 + [1] * 5, [0] * 100, ("common", "rare"))).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["common", "100.00%", "95.00%", "97.44%", "95", "95"],
        ["rare", "0.00%", "-", "0.00%", "0", "5"],
    ]
    assert lines[5].startswith("balanced accuracy 50.00% (the mean recall of the classes), macro F1 48.72%")
    assert lines[6].startswith("judge by these: the classes have from 5 to 95 images")
    assert lines[7].startswith("95.00% of 100 validation images right")
    similar = str(result_of([0] * 6 + [1] * 4, [0] * 10, ("a", "b"))).splitlines()
    assert similar[5].startswith("60.00% of 10 validation images right")
    assert similar[6].startswith("balanced accuracy 50.00%")
    assert "judge by" not in "".join(similar)


def test_confusions_of_many_classes_are_a_list_and_names_that_begin_alike_are_numbered():
    names = [f"long name {k}" for k in range(81)]
    shown = str(result_of([0, 0, 0, 1, 2], [7, 7, 0, 3, 2], names).confusion).splitlines()
    assert [line.split() for line in shown[3:]] == [
        ["long", "name", "0", "long", "name", "7", "2"],
        ["long", "name", "1", "long", "name", "3", "1"],
    ]
    shown = str(result_of([0, 1, 1], [0, 1, 0], names[:3]).confusion).splitlines()
    assert shown[0].split() == ["true", "\\", "predicted", "1", "2", "3"]
    assert shown[3].split() == ["2", "long", "name", "1", "1", "1", "."]


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
