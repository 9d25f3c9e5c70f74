"""Confusion matrix, calibration and confidence intervals, computed from tensors."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

LOWEST_THRESHOLD = 0.5  # even a very good model is not sure of less probable predictions
Z = statistics.NormalDist().inv_cdf(0.975)  # half the width of a 95 % interval, in standard errors


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the confusion matrix, int64 (K, K), of two int64 (N,). Rows are true classes, columns predicted classes.

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Return the expected calibration error in [0, 1]: the mean difference between confidence and accuracy.

    `probabilities` is float (N, K), `labels` int64 (N,). The top probabilities are sorted into `bins` of equal width.

    >>> calibration_error(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]))  # 80 % confident, 50 % correct
    0.3...

    Source: Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), equation 3.
    """
    rows = reliability(probabilities, labels, bins)
    return float(sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows)) / max(len(labels), 1)


def reliability(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> list[dict[str, Any]]:
    """Return the rows of a reliability diagram: the accuracy in each bin of top probabilities that is not empty.

    `probabilities` is float (N, K), `labels` int64 (N,). A row has the bin's edges `low` and `high`, its `count` of
    images, their mean `confidence` and their `accuracy`, all but the count in [0, 1].

    >>> reliability(torch.tensor([[0.8, 0.2], [0.8, 0.2]]), torch.tensor([0, 1]), bins=5)
    [{'low': 0.6, 'high': 0.8, 'count': 2, 'confidence': 0.8..., 'accuracy': 0.5}]

    Source: Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), section 2.
    """
    confidence, predicted = probabilities.double().max(dim=1)
    is_correct = (predicted == labels).double()
    bin_index = (confidence * bins - 1e-6).ceil().long().clamp(1, bins) - 1  # float32 0.8 is a little above 0.8
    sums = [torch.bincount(bin_index, values, bins).tolist() for values in (None, confidence, is_correct)]
    return [
        {"low": k / bins, "high": (k + 1) / bins, "count": n, "confidence": total / n, "accuracy": correct / n}
        for k, n, total, correct in zip(range(bins), *sums, strict=True)
        if n
    ]


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the temperature that maximizes the likelihood of logits / temperature: above 1 for an overconfident model.

    `logits` is float (N, K), `labels` int64 (N,). The temperature is between 0.05 and 20. The labels are smoothed as
    if a share 1 / (N + 2) of them were random: a few correct predictions do not prove that a model is never wrong.

    >>> fit_temperature(torch.tensor([[4.0, 0.0]]).repeat(4000, 1), torch.tensor([0, 0, 0, 1]).repeat(1000))
    3.64...

    Source: Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), section 4.2; here by Newton's
    method on the inverse temperature, in which the loss is convex. The label smoothing follows Platt, "Probabilistic
    outputs for support vector machines" (1999), section 2.2.
    """
    scores = logits.double()
    scores = scores - scores.mean(dim=1, keepdim=True)
    target = scores.gather(1, labels[:, None]).squeeze(1) * (1 - 1 / (len(labels) + 2))  # the mean of all scores is 0
    low, high, inverse = 0.05, 20.0, 1.0
    for _ in range(100):
        weights = (inverse * scores).softmax(dim=1)
        expected = (weights * scores).sum(dim=1)
        gradient = float((expected - target).mean())
        curvature = float(((weights * scores**2).sum(dim=1) - expected**2).mean())
        low, high = (low, inverse) if gradient > 0 else (inverse, high)
        # Take Newton's step if it stays between the current bounds, else their geometric mean.
        newton = inverse - gradient / curvature if curvature > 0 else low
        updated = newton if low < newton < high else (low * high) ** 0.5
        if abs(updated - inverse) < 1e-9 * inverse:
            break
        inverse = updated
    return 1 / inverse


def threshold_for_risk(confidence: torch.Tensor, correct: torch.Tensor, risk: float) -> float:
    """Return the lowest threshold on the top probability at which at most a share `risk` of the sure ones are wrong.

    `confidence` is float (N,), the top probabilities; `correct` bool (N,); `risk` a share in [0, 1]. The threshold is
    at least 0.5, and 2.0, which no probability reaches, if all predictions have to be excluded.

    >>> threshold_for_risk(torch.tensor([0.9, 0.5, 0.75]), torch.tensor([True, False, True]), risk=0.1)
    0.75

    Source: Geifman & El-Yaniv, "Selective classification for deep neural networks" (arXiv 1705.08500); here the risk
    is the measured one, without their margin for small samples.
    """
    high = confidence >= LOWEST_THRESHOLD
    sorted_confidence, order = confidence[high].sort(descending=True, stable=True)
    errors = (~correct[high][order]).double().cumsum(0)
    within_risk = errors <= risk * torch.arange(1, len(order) + 1) + 1e-9
    # Predictions of equal confidence are on the same side of the threshold.
    ends = torch.cat([sorted_confidence[1:] < sorted_confidence[:-1], torch.ones(1, dtype=torch.bool)])
    indices = (within_risk & ends).nonzero().flatten()
    if not len(indices):
        return 2.0
    last = int(indices[-1])
    return LOWEST_THRESHOLD if last == len(order) - 1 else float(sorted_confidence[last])


def selective_error(confidence: torch.Tensor, correct: torch.Tensor, threshold: float) -> tuple[float, float | None]:
    """Return the share of unsure predictions, below the threshold, and the share of wrong ones among the others.

    `confidence` is float (N,), the top probabilities; `correct` bool (N,). The second share is None if all are unsure.

    >>> selective_error(torch.tensor([0.9, 0.4, 0.8, 0.6]), torch.tensor([True, True, False, True]), 0.75)
    (0.5, 0.5)
    """
    sure = confidence >= threshold
    wrong = int((~correct)[sure].sum())
    return 1 - float(sure.double().mean()), wrong / int(sure.sum()) if sure.any() else None


def area_under_roc(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Return the probability that a score of `outside`, float (M,), is above one of `inside`, float (N,).

    Equal scores count half. It is the area under the receiver operating characteristic (ROC) curve.

    >>> area_under_roc(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    0.875
    """
    ordered, outside = inside.sort().values, outside.contiguous()
    below, up_to = (torch.searchsorted(ordered, outside, right=right).double().mean() for right in (False, True))
    return float(below + up_to) / (2 * len(inside))


def proportion_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion.

    >>> [round(edge, 3) for edge in proportion_interval(8482, 10000)]
    [0.841, 0.855]

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    share = correct / total
    center = share + Z * Z / (2 * total)
    half_width = Z * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    scale = 1 + Z * Z / total
    return max(0.0, (center - half_width) / scale), min(1.0, (center + half_width) / scale)


def paired_interval(lost: int, gained: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of (lost - gained) / total, the difference of two proportions of the same images.

    `lost` images are correct only before a change, `gained` only after it. The width is positive even if both are 0.

    >>> [round(edge, 3) for edge in paired_interval(0, 0, 20)]
    [-0.089, 0.089]

    Source: Agresti & Min, "Simple improved confidence intervals for comparing matched proportions" (2005): half a pair
    is added to each of the four cells.
    """
    count = total + 2
    center = (lost - gained) / count
    half_width = Z * math.sqrt((lost + gained + 1) / count - center**2) / math.sqrt(count)
    return center - half_width, center + half_width


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % t interval of the mean of independent fractions, clipped to [0, 1]; (0, 1) for one value.

    >>> [round(edge, 2) for edge in mean_interval([0.83, 0.84, 0.85])]
    [0.82, 0.86]
    """
    import scipy.stats  # takes a second to import, and few commands need it

    if len(values) < 2:
        return 0.0, 1.0
    half_width = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return max(0.0, statistics.fmean(values) - half_width), min(1.0, statistics.fmean(values) + half_width)
