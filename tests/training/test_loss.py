import pytest
import torch

from gingham import Recipe
from gingham.training.batches import Batch
from gingham.training.loss import compute_loss


def slow_loss(logits, label, smoothing):
    """One picture's cross-entropy to a label that is smoothed."""
    target = torch.full((10,), smoothing / 10)
    target[label] += 1 - smoothing
    return -(target * logits.log_softmax(0)).sum()


@pytest.mark.parametrize("taught", [None, "all", "some"])
@pytest.mark.parametrize("mixed", [False, True])
def test_compute_loss_equals_a_slow_reference(mixed, taught):
    recipe = Recipe(label_smoothing=0.1, distillation_weight=0.7, distillation_temperature=3.0)
    logits, labels, others = torch.randn(6, 10), torch.randint(10, (6,)), torch.randint(10, (6,))
    shares = torch.rand(6)
    asked = torch.tensor([1.0, 0, 1, 0, 0, 1])
    answers = torch.randn(6, 10).softmax(1)
    batch = Batch(
        torch.empty(6), labels, others if mixed else None, shares if mixed else None, asked if taught == "some" else None
    )
    expected = []
    for k in range(6):
        hard = slow_loss(logits[k], labels[k], 0.1)
        if mixed:
            hard = shares[k] * hard + (1 - shares[k]) * slow_loss(logits[k], others[k], 0.1)
        follows = 0.7 * {None: 0.0, "all": 1.0, "some": float(asked[k])}[taught]
        mine = (logits[k] / 3).softmax(0)
        apart = 9 * sum(answers[k][j] * (answers[k][j].log() - mine[j].log()) for j in range(10))
        expected.append((1 - follows) * hard + follows * apart)
    found = compute_loss(logits, batch, recipe, None if taught is None else answers)
    assert found.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)
