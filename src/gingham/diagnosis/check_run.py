"""Check a finished run for problems."""

import torch

from gingham.data.splits import Split
from gingham.runs.run import Run
from gingham.training.checks import check_batches, check_labels, check_training
from gingham.training.issue import Issue


def check_run(run: Run, train: Split, validation: Split | None = None) -> list[Issue]:
    """Return what is wrong with a trained network, the likeliest cause first; an empty list if nothing is found.

    `train` and `validation` are the splits it was trained with. Looks for layers whose ReLUs are dead, softmax applied
    twice, pixels that are not normalised, a loss stuck at ln K, a learning rate far too high or low, over-fitting, and a
    last batch of one under BatchNorm. Some hundred pictures of the training split are looked at; the test split never.

        for finding in gingham.check_run(run, data.train, data.validation):
            print(finding)
    """
    model, recipe = run.model, run.recipe
    losses = torch.tensor([entry["loss"] for entry in run.history if "learning_rate" in entry], dtype=torch.float32)
    epochs = [entry for entry in run.history if "epoch" in entry]
    found = check_training(model, recipe, train, losses, epochs, len(losses), over=True)
    mixed = check_labels(train, validation)
    if mixed:
        found = [issue for issue in found if issue.code != "stuck-loss"]  # a consequence
    return [*mixed, *found, *check_batches(recipe, len(train), model.network)]
