import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from gingham.training.batches import NO_CLASS, Batch, shard_of, shard_weight
from gingham.training.distillation import DistillationLoss
from gingham.training.loss import ClassWeightedLoss, CrossEntropyLoss, class_weights


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


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("teacher", [None, "all", "some"])
@pytest.mark.parametrize("mixed", [False, True])
def test_loss_equals_a_slow_reference(mixed, teacher, weighted):
    logits, labels, mixed_labels = torch.randn(6, 10), torch.randint(10, (6,)), torch.randint(10, (6,))
    mix_weight = torch.rand(6)
    distill_mask = torch.tensor([1.0, 0, 1, 0, 0, 1])
    teacher_probabilities = torch.randn(6, 10).softmax(1)
    class_weight = torch.rand(10) * 3 if weighted else torch.ones(10)
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
        image_weight = class_weight[labels[k]]
        if mixed:
            image_weight = mix_weight[k] * image_weight + (1 - mix_weight[k]) * class_weight[mixed_labels[k]]
        expected.append(image_weight * ((1 - weight) * hard + weight * divergence))
    loss = CrossEntropyLoss(0.1)
    if teacher is not None:
        loss = DistillationLoss(loss, FixedTeachers(teacher_probabilities), weight=0.7, precision="float32")
    label_loss = loss.label_loss
    if weighted:
        loss = ClassWeightedLoss(loss, class_weight)
    assert loss.label_loss is label_loss, "the history has the loss without teachers and weights"
    assert loss(logits, batch).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


def test_the_class_weighted_loss_is_torchs_with_the_weights_of_the_training_split():
    logits, labels = torch.randn(8, 10), torch.randint(10, (8,))
    weights = torch.rand(10)
    batch = Batch(torch.empty(8), labels)
    loss = ClassWeightedLoss(CrossEntropyLoss(), weights)
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="sum") / 8
    assert loss(logits, batch) == pytest.approx(float(expected))
    # In three processes, the mean of the shards is the mean of the batch, whatever classes are in each.
    shards = [shard_of(8, rank, 3) for rank in range(3)]
    losses = [loss(logits[part], replace(batch, images=batch.images[part], labels=labels[part])) for part in shards]
    weighted = [shard_loss * shard_weight(8, rank, 3) for rank, shard_loss in enumerate(losses)]
    assert sum(weighted) / 3 == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_class_weights_have_a_mean_of_1_over_the_training_images(balance):
    labels = torch.tensor([0] * 100 + [1] * 25 + [3] * 4)  # no image of class 2
    weights = class_weights(labels, 4, balance)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(4**balance)
    assert weights[3] / weights[0] == pytest.approx(25**balance)
    assert weights[2] == 0
    if balance == 1:
        present = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels.numpy())
        assert weights[[0, 1, 3]].tolist() == pytest.approx(present.tolist())
    if balance == 0:
        assert weights[[0, 1, 3]].tolist() == [1, 1, 1]


def outlier_batch(smoothing):
    """Return random logits, a batch of which every third image is an outlier, and the loss."""
    logits = torch.randn(9, 10, requires_grad=True)
    labels = torch.randint(10, (9,))
    labels[::3] = NO_CLASS
    return logits, Batch(torch.empty(9), labels), CrossEntropyLoss(smoothing, with_outliers=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_outliers_is_the_divergence_from_equal_probabilities(smoothing):
    logits, batch, loss = outlier_batch(smoothing)
    losses = loss.per_image(logits, batch).detach()
    uniform = torch.full((3, 10), 0.1)
    divergence = F.kl_div(logits[::3].log_softmax(dim=1), uniform, reduction="none").sum(dim=1)
    assert torch.allclose(losses[::3], divergence + math.log(10), atol=1e-5)
    images = batch.labels != NO_CLASS
    plain = F.cross_entropy(logits[images], batch.labels[images], label_smoothing=smoothing, reduction="none")
    assert torch.allclose(losses[images], plain)
    assert loss(logits, batch).item() == pytest.approx(float(losses.mean()), rel=1e-6)


def test_the_gradient_of_outliers_leads_to_equal_probabilities():
    logits, batch, loss = outlier_batch(0.1)
    loss(logits, batch).backward()
    expected = (logits[::3].softmax(dim=1) - 0.1) / 9
    assert torch.allclose(logits.grad[::3], expected, atol=1e-6)
    optimizer = torch.optim.SGD([logits], lr=9.0)
    for _ in range(200):
        optimizer.zero_grad()
        loss(logits, batch).backward()
        optimizer.step()
    assert torch.allclose(logits[::3].softmax(dim=1), torch.full((3, 10), 0.1), atol=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_loss_with_outliers_is_the_plain_one_on_a_batch_without(smoothing):
    logits, batch = torch.randn(6, 10), Batch(torch.empty(6), torch.randint(10, (6,)))
    plain, loss = CrossEntropyLoss(smoothing), CrossEntropyLoss(smoothing, with_outliers=True)
    assert torch.allclose(loss.per_image(logits, batch), plain.per_image(logits, batch))
    assert loss(logits, batch).item() == pytest.approx(plain(logits, batch).item(), rel=1e-6)


def test_outliers_have_the_weight_1_among_weighted_classes():
    logits, batch, loss = outlier_batch(0.1)
    weights = torch.rand(10) * 3
    weighted = ClassWeightedLoss(loss, weights).per_image(logits, batch)
    losses = loss.per_image(logits, batch)
    assert torch.equal(weighted[::3], losses[::3])
    images = batch.labels != NO_CLASS
    assert torch.allclose(weighted[images], weights[batch.labels[images]] * losses[images])
