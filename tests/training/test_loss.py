import pytest
import torch

from gingham.training.batches import Batch
from gingham.training.distillation import DistillationLoss
from gingham.training.loss import CrossEntropyLoss, MixedLabelsLoss


def slow_loss(logits, label, smoothing):
    """Return one image's cross-entropy to a smoothed label."""
    target = torch.full((10,), smoothing / 10)
    target[label] += 1 - smoothing
    return -(target * logits.log_softmax(0)).sum()


class FixedTeachers:
    temperature = 3.0

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def __call__(self, images):
        return self.probabilities


@pytest.mark.parametrize("teacher", [None, "all", "some"])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_equals_a_slow_reference(mixed, teacher):
    logits, labels, mixed_labels = torch.randn(6, 10), torch.randint(10, (6,)), torch.randint(10, (6,))
    mix_weight = torch.rand(6)
    distill_mask = torch.tensor([1.0, 0, 1, 0, 0, 1])
    teacher_probabilities = torch.randn(6, 10).softmax(1)
    batch = Batch(
        torch.empty(6),
        labels,
        mixed_labels if mixed else None,
        mix_weight if mixed else None,
        distill_mask if teacher == "some" else None,
    )
    expected = []
    for k in range(6):
        hard = slow_loss(logits[k], labels[k], 0.1)
        if mixed:
            hard = mix_weight[k] * hard + (1 - mix_weight[k]) * slow_loss(logits[k], mixed_labels[k], 0.1)
        weight = 0.7 * {None: 0.0, "all": 1.0, "some": float(distill_mask[k])}[teacher]
        probabilities = (logits[k] / 3).softmax(0)
        divergence = 9 * sum(
            teacher_probabilities[k][j] * (teacher_probabilities[k][j].log() - probabilities[j].log())
            for j in range(10)
        )
        expected.append((1 - weight) * hard + weight * divergence)
    loss = MixedLabelsLoss(0.1) if mixed else CrossEntropyLoss(0.1)
    if teacher is not None:
        loss = DistillationLoss(loss, FixedTeachers(teacher_probabilities), weight=0.7, precision="float32")
    assert loss(logits, batch).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
