"""Check a finished run for problems."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gingham.data.splits import Split
from gingham.errors import require_types
from gingham.evaluation.metrics import proportion_interval
from gingham.runs.run import Run
from gingham.training.checks import LEARNS_NOTHING_FIX, SLOW_START_STEPS, check_batches, check_labels, check_training
from gingham.training.issue import Issue


def check_run(run: Run, train: Split, validation: Split | None = None) -> list[Issue]:
    """Return the issues of a trained network, the most likely cause first; an empty list if there are none.

    `train` and `validation` are the splits that it was trained with. Checks for layers with dead ReLUs, softmax applied
    twice, pixels that are not normalised, a loss that is stuck at ln K or that rose and stayed high, a learning rate
    that is far too high or low, over-fitting, labels that do not belong to their images, an accuracy at chance level
    that nothing else explains, and a last batch of one image under BatchNorm. Only a sample of the training images is
    run through the network. The test split is never used.

        for issue in gingham.check_run(run, data.train, data.validation):
            print(issue)
    """
    require_types("check_run", run=(run, Run), train=(train, Split))
    model, recipe = run.model, run.recipe
    losses = torch.tensor([entry["loss"] for entry in run.history if "learning_rate" in entry], dtype=torch.float32)
    epochs = [entry for entry in run.history if "epoch" in entry]
    issues = check_training(model, recipe, train, losses, epochs, len(losses), over=True)
    label_issues = list(check_labels(train, validation))
    if label_issues:
        issues = [issue for issue in issues if issue.code != "stuck-loss"]  # a consequence of the labels
    if not label_issues and not issues and validation is not None:
        issues += _check_chance(epochs, len(losses), validation)
    return [*label_issues, *issues, *check_batches(recipe, len(train), model.network)]


def _check_chance(epochs: Sequence[dict[str, Any]], steps: int, validation: Split) -> Iterator[Issue]:
    """Yield an issue if a run is not significantly better than always predicting the most common class."""
    accuracies = [entry["validation_accuracy"] for entry in epochs if entry["validation_accuracy"] is not None]
    name, count = max(validation.counts().items(), key=lambda item: item[1])
    total = len(validation)
    if accuracies and total >= 30 and proportion_interval(round(accuracies[-1] * total), total)[0] <= count / total:
        evidence = f"{accuracies[-1]:.1%} of {total:,} validation images are correct; {count / total:.1%} are {name}"
        fix = "train for more steps" if steps < SLOW_START_STEPS else LEARNS_NOTHING_FIX
        title = "the network is no better than always predicting the most common class"
        yield Issue("chance-level", title, evidence, fix)
