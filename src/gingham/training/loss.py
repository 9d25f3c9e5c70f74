"""The loss: cross-entropy, mixed labels and distillation."""

import torch
import torch.nn.functional as F

from gingham.recipe import Recipe
from gingham.training.batches import Batch


def loss_of(logits: torch.Tensor, batch: Batch, recipe: Recipe, taught: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean loss of logits, float (B, K): cross-entropy to the labels, and where `taught` has the teachers'
    probabilities, float (B, K), in the recipe's `teacher_share` the divergence from those, times the squared temperature."""

    # The article's log-softmax and NLL, for any network: log_softmax leaves log-probabilities as they are.
    def to(labels: torch.Tensor, reduction: str) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction=reduction)

    if batch.others is None and taught is None:
        return to(batch.labels, "mean")
    each = to(batch.labels, "none")
    if batch.others is not None and batch.shares is not None:
        each = batch.shares * each + (1 - batch.shares) * to(batch.others, "none")
    if taught is not None:
        temperature = recipe.teacher_temperature
        apart = F.kl_div((logits / temperature).log_softmax(dim=1), taught, reduction="none").sum(dim=1) * temperature**2
        follows = recipe.teacher_share * (1.0 if batch.taught is None else batch.taught)
        each = (1 - follows) * each + follows * apart
    return each.mean()
