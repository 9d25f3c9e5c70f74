import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gingham.metrics import calibration_error, confusion_matrix, mean_interval, proportion_interval

labels = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels, st.randoms())
def test_confusion_against_a_loop(true, random):
    predicted = [random.randrange(5) for _ in true]
    slow = [[0] * 5 for _ in range(5)]
    for row, column in zip(true, predicted, strict=True):
        slow[row][column] += 1
    assert confusion_matrix(torch.tensor(true), torch.tensor(predicted), 5).tolist() == slow


@settings(deadline=None)
@given(labels, st.integers(1, 20), st.integers(0, 100))
def test_calibration_against_a_loop(true, bins, seed):
    probabilities = np.random.RandomState(seed).dirichlet(np.full(5, 0.3), len(true))
    gap = 0.0
    for edge in range(bins):
        inside = [k for k, p in enumerate(probabilities) if edge / bins < p.max() <= (edge + 1) / bins]
        if inside:
            confidence = np.mean([probabilities[k].max() for k in inside])
            accuracy = np.mean([probabilities[k].argmax() == true[k] for k in inside])
            gap += len(inside) / len(true) * abs(confidence - accuracy)
    assert calibration_error(torch.from_numpy(probabilities), torch.tensor(true), bins) == pytest.approx(gap, abs=1e-9)


def test_a_sure_and_right_model_is_calibrated():
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0
    assert calibration_error(torch.eye(3), torch.tensor([1, 2, 0])) == 1


def test_wilsons_interval_by_its_formula():
    z = scipy.stats.norm.ppf(0.975)
    for correct, total in ((8482, 10000), (0, 10), (10, 10), (1, 3)):
        p = correct / total
        middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
        reach = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
        assert proportion_interval(correct, total) == pytest.approx((middle - reach, middle + reach), abs=1e-12)


def test_students_interval():
    values = [0.83, 0.84, 0.86, 0.85]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected)
    assert mean_interval([0.8]) == (-math.inf, math.inf)
