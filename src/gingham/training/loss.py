"""The label loss of a batch and class weights. distillation.py has the loss that also follows teachers."""

import torch
import torch.nn.functional as F

from gingham.training.batches import NO_CLASS, Batch


class Loss:
    """A training loss. The history has its `label_loss`, so that runs with different losses can be compared."""

    label_loss: "CrossEntropyLoss"

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch, a scalar, for logits, float (B, K)."""
        return self.per_image(logits, batch).mean()

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        raise NotImplementedError


class CrossEntropyLoss(Loss):
    """The cross-entropy to the labels, smoothed by `label_smoothing`.

    For images mixed by CutMix, it is that to both labels, each weighted by its share of the image. If the batches are
    `with_outliers`, it is that to equal probabilities for images with the label NO_CLASS.

    The network of the beginner's article ends in log-softmax and is trained with the negative log-likelihood. That is
    the same loss, because log-softmax does not change log-probabilities.

        loss = CrossEntropyLoss(label_smoothing=0.1)
        loss(logits, batch)        # float (B, K) -> scalar
    """

    def __init__(self, label_smoothing: float = 0.0, *, with_outliers: bool = False) -> None:
        self.label_smoothing, self.with_outliers, self.label_loss = label_smoothing, with_outliers, self

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch, a scalar."""
        if batch.mixed_labels is not None or self.with_outliers:
            return super().__call__(logits, batch)
        return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)  # faster than a mean

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        losses = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing, reduction="none")
        if self.with_outliers:
            return torch.where(batch.labels == NO_CLASS, -logits.log_softmax(dim=1).mean(dim=1), losses)
        if batch.mixed_labels is None or batch.mix_weight is None:
            return losses
        mixed = F.cross_entropy(logits, batch.mixed_labels, label_smoothing=self.label_smoothing, reduction="none")
        return batch.mix_weight * losses + (1 - batch.mix_weight) * mixed


class ClassWeightedLoss(Loss):
    """Another loss, with each image's loss multiplied by the weight of its class, from `class_weights`.

    The mean over a batch is not divided by the batch's own weights. The weight of an image mixed by CutMix is the mean
    of its labels' weights, each weighted by its share of the image.
    """

    def __init__(self, loss: Loss, weights: torch.Tensor) -> None:
        self.loss, self.weights, self.label_loss = loss, weights, loss.label_loss

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        weights = torch.where(batch.labels == NO_CLASS, 1, self.weights[batch.labels.clamp(min=0)])
        if batch.mixed_labels is not None and batch.mix_weight is not None:
            weights = batch.mix_weight * weights + (1 - batch.mix_weight) * self.weights[batch.mixed_labels]
        return weights * self.loss.per_image(logits, batch)


def class_weights(labels: torch.Tensor, classes: int, balance: float) -> torch.Tensor:
    """Return the weights of the classes in the loss, float32 (K,): proportional to (1 / count) ** balance.

    `labels` are those of all training images, int64 (N,), over which the mean weight is 1. The weight of a class
    without images is 0. With a `balance` of 1 the weights are those of scikit-learn's `class_weight="balanced"`.

    >>> class_weights(torch.tensor([0, 0, 0, 1]), 2, balance=1.0)
    tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0)
    return (weights * counts.sum() / (weights * counts).sum()).float()
