"""The label loss of a batch. distillation.py has the loss that also follows the predictions of teachers."""

import torch
import torch.nn.functional as F

from gingham.training.batches import Batch


class CrossEntropyLoss:
    """The cross-entropy to the labels, smoothed by `label_smoothing`.

    The network of the beginner's article ends in log-softmax and is trained with the negative log-likelihood. That is
    the same loss, because log-softmax does not change log-probabilities.

        loss = CrossEntropyLoss(label_smoothing=0.1)
        loss(logits, batch)        # float (B, K) -> scalar
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    @property
    def label_loss(self) -> "CrossEntropyLoss":
        """The part of the loss that depends on the labels: all of it."""
        return self

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch, a scalar."""
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="none")


class MixedLabelsLoss(CrossEntropyLoss):
    """The cross-entropy to both labels of images mixed by CutMix, each weighted by its share of the image."""

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch, a scalar."""
        return self.per_image(logits, batch).mean()

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        assert batch.mixed_labels is not None
        assert batch.mix_weight is not None
        mixed = F.cross_entropy(logits, batch.mixed_labels, label_smoothing=self.label_smoothing, reduction="none")
        return batch.mix_weight * super().per_image(logits, batch) + (1 - batch.mix_weight) * mixed
