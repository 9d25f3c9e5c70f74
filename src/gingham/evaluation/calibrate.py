"""Fit a model's temperature and the threshold below which it is unsure to the validation split."""

from gingham.data.splits import Split
from gingham.distributed import SINGLE_PROCESS, DistributedContext
from gingham.errors import DataError
from gingham.evaluation.metrics import fit_temperature, selective_error, threshold_for_risk
from gingham.runs.run import Run


def calibrate(run: Run, validation: Split, context: DistributedContext = SINGLE_PROCESS) -> None:
    """Fit a run's temperature and the threshold below which it is unsure to the validation split, in place.

    The threshold is the lowest value of at least 0.5 at which at most a share `risk` (a field of the recipe) of the
    sure predictions is wrong. Both values are added to the run's metrics. Distributed processes share the images and
    get the same values.

    Raises
        DataError: `validation` is the test split.
    """
    if validation.name == "test":
        raise DataError("calibrate got the test split; temperature and threshold are fitted to the validation split")
    model, risk = run.model, run.recipe.risk
    labels = validation.labels.cpu()
    model.temperature.fill_(1.0)
    logits = context.map_sharded(model.logits, validation.images)
    model.temperature.fill_(fit_temperature(logits, labels))
    # Divide in float32, as the model does, so that predict decides the same for an image at the threshold.
    confidence, predicted = (logits / model.temperature.cpu()).softmax(dim=1).max(dim=1)
    model.threshold.fill_(threshold_for_risk(confidence, predicted == labels, risk))
    unsure_share, sure_error = selective_error(confidence, predicted == labels, float(model.threshold))
    run.metrics |= {
        "temperature": float(model.temperature),
        "threshold": float(model.threshold),
        "risk": risk,
        "unsure_share": unsure_share,
        "sure_error": sure_error,
    }
