"""Check a finished run for problems."""

import torch

from gingham.data.splits import Split
from gingham.errors import require_types
from gingham.runs.run import Run
from gingham.training.checks import check_batches, check_labels, check_training
from gingham.training.issue import Issue


def check_run(run: Run, train: Split, validation: Split | None = None) -> list[Issue]:
    """Return the issues of a trained network, the likeliest cause first; an empty list if there are none.

    `train` and `validation` are the splits it was trained with. Checks for layers with dead ReLUs, softmax applied
    twice, pixels that are not normalized, a loss stuck at ln K, a learning rate far too high or low, overfitting, and a
    last batch of one under BatchNorm. Only a sample of the training images is run through the network; the test split
    is never used.

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
    return [*label_issues, *issues, *check_batches(recipe, len(train), model.network)]
