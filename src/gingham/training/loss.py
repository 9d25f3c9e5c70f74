"""The loss: cross-entropy, mixed labels and distillation."""

import torch
import torch.nn.functional as F

from gingham.recipe import Recipe
from gingham.training.batches import Batch


def compute_loss(
    logits: torch.Tensor, batch: Batch, recipe: Recipe, teacher_probabilities: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean loss of logits, float (B, K), as a scalar.

    The loss is the cross-entropy to the labels. With `teacher_probabilities`, float (B, K), a share of it, the recipe's
    `distillation_weight`, is the divergence from those, times the squared temperature.
    """

    # The article's log-softmax and NLL, for any network: log_softmax leaves log-probabilities as they are.
    def cross_entropy(labels: torch.Tensor, reduction: str) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing, reduction=reduction)

    if batch.mixed_labels is None and teacher_probabilities is None:
        return cross_entropy(batch.labels, "mean")
    losses = cross_entropy(batch.labels, "none")
    if batch.mixed_labels is not None and batch.mix_weight is not None:
        losses = batch.mix_weight * losses + (1 - batch.mix_weight) * cross_entropy(batch.mixed_labels, "none")
    if teacher_probabilities is not None:
        temperature = recipe.distillation_temperature
        log_probabilities = (logits / temperature).log_softmax(dim=1)
        divergence = F.kl_div(log_probabilities, teacher_probabilities, reduction="none").sum(dim=1) * temperature**2
        weight = recipe.distillation_weight * (1.0 if batch.distill_mask is None else batch.distill_mask)
        losses = (1 - weight) * losses + weight * divergence
    return losses.mean()
