"""Fit a model's temperature, thresholds and novelty score."""

import torch

from gingham.data.augment_photos import simulate_photos
from gingham.data.splits import Split
from gingham.distributed import SINGLE_PROCESS, DistributedContext
from gingham.errors import DataError
from gingham.evaluation.metrics import fit_temperature, selective_error, threshold_for_risk
from gingham.evaluation.novelty import KEPT, fit_novelty
from gingham.recipe import Recipe
from gingham.runs.run import Run

NUM_PHOTOS = 1000  # simulated photos
PHOTO_RISK = 0.07  # share of wrong ones among the sure predictions for simulated photos, which are hard


def calibrate(
    run: Run, train: Split, validation: Split | None = None, context: DistributedContext = SINGLE_PROCESS
) -> None:
    """Fit a run's temperature, its thresholds and its novelty score, in place.

    The temperature and the threshold below which it is unsure are fitted to the validation split, and the novelty score
    as `fit_novelty` says. The threshold is the lowest value of at least 0.5 at which at most a share `risk` (a field of
    the recipe) of the sure predictions is wrong. Temperature and threshold are added to the run's metrics. A model of
    garments also gets thresholds for photos, fitted to photos that are simulated from validation images. Distributed
    processes share the images and get the same values.

    Raises
        DataError: `validation` is the test split.
    """
    if validation is not None:
        if validation.name == "test":
            raise DataError("calibrate got the test split; thresholds are fitted to the validation split")
        _fit_thresholds(run, validation, context)
    fit_novelty(run.model, train, validation, context)
    if validation is None or run.model.novelty is None:
        return
    if run.is_of_garments and validation.images.dtype == torch.uint8:  # not features
        _fit_photo_thresholds(run, validation)


def _fit_thresholds(run: Run, validation: Split, context: DistributedContext) -> None:
    model, risk = run.model, run.recipe.risk
    labels = validation.labels.cpu()
    model.temperature.fill_(1.0)
    logits = context.map_sharded(model.logits, validation.images)
    model.temperature.fill_(fit_temperature(logits, labels))
    # Divide in float32, as the model does, so that predict decides the same for an image at the threshold.
    confidence, predicted = (logits / model.temperature.cpu()).softmax(dim=1).max(dim=1)
    for threshold in (model.threshold, model.photo_threshold):
        threshold.fill_(threshold_for_risk(confidence, predicted == labels, risk))
    unsure_share, sure_error = selective_error(confidence, predicted == labels, float(model.threshold))
    run.metrics |= {
        "temperature": float(model.temperature),
        "threshold": float(model.threshold),
        "risk": risk,
        "unsure_share": unsure_share,
        "sure_error": sure_error,
    }


def _fit_photo_thresholds(run: Run, validation: Split) -> None:
    """Fit the thresholds for photos. Every process does this, with the same result: there are few photos."""
    images, labels = validation.sample(NUM_PHOTOS)
    recipe = Recipe(photo_share=1.0)
    photos = simulate_photos(images.cpu(), labels.cpu(), validation.classes, recipe, step=-1)  # not one of the training
    logits, novelty = run.model.score(photos)
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    run.model.photo_threshold.fill_(threshold_for_risk(confidence, predicted == labels.cpu(), PHOTO_RISK))
    assert run.model.novelty is not None
    run.model.novelty.photo_threshold.fill_(float(torch.quantile(novelty, KEPT)))
