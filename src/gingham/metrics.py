"""Accuracy, confusion, calibration and intervals, on tensors."""

import math
from collections.abc import Sequence

import torch


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """Return int64 (K, K): row = true class, column = predicted class, from two int64 (N,).

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]: how far confidence and accuracy lie apart, on average.

    `probabilities` is float (N, K), `labels` int64 (N,). The top probabilities are sorted into `bins` of equal width.

    >>> calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))  # says 80 %, is right in 50 %
    0.3...

    Source: Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), equation 3.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right - confidence)
    return float(gaps.abs().sum() / max(len(labels), 1))


def proportion_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion.

    >>> [round(edge, 3) for edge in proportion_interval(8482, 10000)]
    [0.841, 0.855]

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    import scipy.stats  # a second to import, needed by few commands

    result = scipy.stats.binomtest(correct, total).proportion_ci(level, method="wilson")
    return float(result.low), float(result.high)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return Student's t interval of the mean of independent values; infinite for fewer than two.

    >>> [round(edge, 2) for edge in mean_interval([0.83, 0.84, 0.85])]
    [0.82, 0.86]
    """
    import scipy.stats

    if len(values) < 2:
        return -math.inf, math.inf
    tensor = torch.tensor(values, dtype=torch.float64)
    mean, error = float(tensor.mean()), float(tensor.std()) / math.sqrt(len(values))
    reach = float(scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1)) * error
    return mean - reach, mean + reach
