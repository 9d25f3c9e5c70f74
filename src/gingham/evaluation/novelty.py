"""Fit the novelty score of a model to its training images, and its threshold to the validation split."""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gingham.data.sampler import evenly_spaced, limit_count
from gingham.data.splits import Split
from gingham.device import forked_generators
from gingham.distributed import SINGLE_PROCESS, DistributedContext
from gingham.models.backbones import Backbone
from gingham.models.classifier import Classifier, evaluation_mode
from gingham.models.novelty import NUM_AXES, GaussianMixture, Novelty, capture_statistics, find_stages

KEPT = 0.98  # share of the validation images below the threshold
NUM_IMAGES, NUM_PIXELS = 5000, 1 << 24  # training images that are used, and pixels in all of them
NUM_VALIDATION = 2500  # validation images that are used
MIN_IMAGES = 4  # two halves of two images
CENTRES_PER_CLASS, IMAGES_PER_CENTRE, KMEANS_ITERATIONS = 8, 40, 5


def fit_novelty(
    model: Classifier, train: Split, validation: Split | None = None, context: DistributedContext = SINGLE_PROCESS
) -> None:
    """Fit the novelty score of a model, in place, to at most 5,000 training images, and its threshold to `validation`.

    A share KEPT of at most 2,500 validation images is below the threshold. Without them it is fitted to training
    images, each scored by Gaussians fitted to the other half of its class. The images of both splits may be the
    features of a pretrained network. Distributed processes share the images and get the same score. A model with
    activations that are not finite, or trained on fewer than MIN_IMAGES, gets no score.
    """
    if len(train) < MIN_IMAGES:
        return
    example = torch.zeros(1, *model.input_shape, device=model.mean.device)
    with evaluation_mode(model):
        stages = find_stages(model.network, example)
    model.watch(stages)
    indices = evenly_spaced(len(train), limit_count(NUM_IMAGES, train.images, NUM_PIXELS))
    activations = _measure(model, stages, train.images[indices.to(train.images.device)], context)
    if not all(bool(part.isfinite().all()) for part in activations):
        return  # a model that is not usable, of which predict says so
    labels = train.labels.cpu()[indices]
    # On a few photos of each class, a classifier of pretrained features has much larger logits than on other photos of
    # the class. The term would make the threshold useless.
    fit = functools.partial(_fit, stages, not isinstance(model.network, Backbone))
    novelty = fit(activations, labels)
    if validation is not None:
        count = limit_count(NUM_VALIDATION, validation.images, NUM_PIXELS)
        images = validation.images[evenly_spaced(len(validation), count).to(validation.images.device)]
        scores = _scores(novelty, _measure(model, stages, images, context))
    else:
        by_class = labels.argsort(stable=True)  # the labels may alternate
        halves = [by_class[::2], by_class[1::2]]
        scores = torch.cat(
            [
                _scores(
                    fit([part[fitted] for part in activations], labels[fitted]),
                    [part[held] for part in activations],
                )
                for fitted, held in (halves, halves[::-1])
            ]
        )
    for threshold in (novelty.threshold, novelty.photo_threshold):
        threshold.fill_(float(scores.quantile(KEPT)))
    context.broadcast(novelty.buffers())
    model.set_novelty(novelty)


def _measure(model: Classifier, stages: Sequence[str], images: Tensor, context: DistributedContext) -> list[Tensor]:
    """Return the statistics of each of the stages, float (N, D), and last the logits (N, K) of images."""
    widths = list[int]()

    def measure(batch: Tensor) -> Tensor:
        with capture_statistics() as statistics:
            logits = model(batch)
        parts = [*(statistics[name] for name in stages), logits]
        widths[:] = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)

    columns = context.map_sharded(lambda part: model.map_batches(measure, part), images)
    return list(torch.split(columns, widths, dim=1))


def _scores(novelty: Novelty, activations: Sequence[Tensor]) -> Tensor:
    scores: Tensor = novelty(dict(zip(novelty.stages, activations[:-1], strict=True)), activations[-1])
    return scores


def _fit(stages: Sequence[str], use_logits: bool, activations: Sequence[Tensor], labels: Tensor) -> Novelty:
    """Return the novelty score fitted to the activations of images with these labels, without its threshold."""
    layers = [fit_mixture(part, labels) for part in activations[:-1]]
    novelty = Novelty(stages, layers)
    terms = novelty.terms(dict(zip(stages, activations[:-1], strict=True)), activations[-1])
    novelty.term_mean.copy_(terms.mean(dim=0))
    novelty.term_std.copy_(terms.std(dim=0, correction=0).clamp(min=1e-6))
    if not use_logits:
        novelty.term_std[-1] = 1e30  # the term is then 0
    return novelty


def fit_mixture(features: Tensor, labels: Tensor) -> GaussianMixture:
    """Return Gaussians fitted to feature vectors, float (N, D), with up to eight centres for each of the N labels.

    The centres of a class are those of its clusters of about IMAGES_PER_CENTRE vectors or more, found by k-means.
    """
    shift, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    scale = deviation + 1e-3 * deviation.mean() + 1e-6  # nearly constant features are not amplified
    standard = (features - shift) / scale
    centres = torch.cat([_centres(standard[labels == label]) for label in sorted(set(labels.tolist()))])
    distances = torch.cdist(standard, centres)
    residuals = standard - centres[distances.argmin(dim=1)]
    axes = max(1, min(NUM_AXES, features.shape[1] - 1, len(features) // 8))
    with forked_generators():
        torch.manual_seed(0)  # a randomised algorithm
        _, singular_values, directions = torch.svd_lowrank(residuals, q=axes, niter=2)
    variances = singular_values.square() / len(features)
    others = residuals.square().sum() / len(features) - variances.sum()
    rest = (others / max(1, features.shape[1] - axes)).clamp(min=1e-3)
    return GaussianMixture.from_parameters(shift, scale, centres, directions, torch.maximum(variances, rest), rest)


def _centres(vectors: Tensor) -> Tensor:
    """Return the centres of the clusters of one class's vectors (N, D), float (M, D), found by k-means.

    SciPy's k-means is not used, because importing it takes long beside a short training.

    Source: Arthur & Vassilvitskii, "k-means++: the advantages of careful seeding" (2007).
    """
    count = min(CENTRES_PER_CLASS, len(vectors) // IMAGES_PER_CENTRE)
    if count <= 1:
        return vectors.mean(dim=0, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    centres = vectors[:1]
    while len(centres) < count:  # vectors that are far from all centres are likelier to become one
        distances = torch.cdist(vectors, centres).amin(dim=1).square()
        if not distances.any():
            break  # fewer different vectors
        centres = torch.cat([centres, vectors[torch.multinomial(distances, 1, generator=generator)]])
    for _ in range(KMEANS_ITERATIONS):
        members = F.one_hot(torch.cdist(vectors, centres).argmin(dim=1), len(centres)).to(vectors)
        sizes = members.sum(dim=0)[:, None]
        centres = torch.where(sizes > 0, members.T @ vectors / sizes.clamp(min=1), centres)
    return centres
