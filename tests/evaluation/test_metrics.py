import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gingham.evaluation.metrics import (
    calibration_error,
    confusion_matrix,
    fit_temperature,
    mean_interval,
    proportion_interval,
    reliability,
    threshold_for_risk,
)

label_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(label_lists, st.randoms())
def test_confusion_matrix_agrees_with_a_loop(true, random):
    predicted = [random.randrange(5) for _ in true]
    expected = [[0] * 5 for _ in range(5)]
    for row, column in zip(true, predicted, strict=True):
        expected[row][column] += 1
    assert confusion_matrix(torch.tensor(true), torch.tensor(predicted), 5).tolist() == expected


@settings(deadline=None)
@given(label_lists, st.integers(1, 20), st.integers(0, 100))
def test_calibration_error_agrees_with_a_loop(true, bins, seed):
    probabilities = np.random.RandomState(seed).dirichlet(np.full(5, 0.3), len(true))
    expected = 0.0
    for index in range(bins):
        indices = [k for k, p in enumerate(probabilities) if index / bins < p.max() <= (index + 1) / bins]
        if indices:
            confidence = np.mean([probabilities[k].max() for k in indices])
            accuracy = np.mean([probabilities[k].argmax() == true[k] for k in indices])
            expected += len(indices) / len(true) * abs(confidence - accuracy)
    assert calibration_error(torch.from_numpy(probabilities), torch.tensor(true), bins) == pytest.approx(
        expected, abs=1e-9
    )


def test_calibration_error_of_a_certain_model_is_its_error_rate():
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1


def test_proportion_interval_agrees_with_wilsons_formula():
    z = scipy.stats.norm.ppf(0.975)
    for correct, total in ((8482, 10000), (0, 10), (10, 10), (1, 3)):
        p = correct / total
        center = (p + z**2 / (2 * total)) / (1 + z**2 / total)
        half_width = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
        assert proportion_interval(correct, total) == pytest.approx(
            (center - half_width, center + half_width), abs=1e-12
        )


def test_mean_interval_agrees_with_scipy():
    values = [0.83, 0.84, 0.86, 0.85]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.8]) == (0, 1)
    assert mean_interval([0.9, 0.99]) == (pytest.approx(0.945 - 0.045 * 12.706, abs=1e-4), 1)
    assert mean_interval([0.1, 0.01])[0] == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_fit_temperature_maximizes_the_likelihood(seed, scale):
    random = np.random.RandomState(seed)
    logits = torch.tensor(random.normal(0, 2, (400, 4)))
    true_probabilities = logits.softmax(dim=1).numpy()
    true = torch.tensor([random.choice(4, p=row / row.sum()) for row in true_probabilities])
    temperature = fit_temperature(logits * scale, true)

    def loss(log_temperature):
        log_probabilities = (logits * scale / math.exp(log_temperature)).log_softmax(dim=1)
        smoothing = 1 / (len(true) + 2)
        log_likelihood = log_probabilities.gather(1, true[:, None]).mean()
        return -float((1 - smoothing) * log_likelihood + smoothing * log_probabilities.mean())

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(math.log(0.05), math.log(20)), method="bounded", options={"xatol": 1e-9}
    )
    assert math.log(temperature) == pytest.approx(best.x, abs=1e-4)


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
)
def test_threshold_for_risk_is_the_lowest_allowed_one_from_a_half_up(predictions, risk):
    confidence = torch.tensor([value / 8 for value, _ in predictions])
    correct = torch.tensor([is_correct for _, is_correct in predictions])

    def error(threshold):
        sure = confidence >= threshold
        return float((~correct[sure]).double().mean()) if sure.any() else 0.0

    allowed = [
        value
        for value in [0.5, *sorted(set(confidence.tolist()))]
        if value >= 0.5 and error(value) <= risk + 1e-9 and (confidence >= value).any()
    ]
    assert threshold_for_risk(confidence, correct, risk) == pytest.approx(min(allowed) if allowed else 2.0)


def test_reliability_counts_and_accuracies_add_up_to_those_of_the_whole():
    probabilities = torch.tensor(np.random.RandomState(0).dirichlet(np.full(5, 0.3), 500))
    true = torch.tensor(np.random.RandomState(1).randint(0, 5, 500))
    rows = reliability(probabilities, true)
    assert sum(row["count"] for row in rows) == 500
    assert all(row["low"] <= row["confidence"] <= row["high"] for row in rows)
    accuracy = (probabilities.argmax(dim=1) == true).double().mean()
    assert sum(row["count"] * row["accuracy"] for row in rows) / 500 == pytest.approx(float(accuracy))
