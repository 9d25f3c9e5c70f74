"""The learning rate of each step, and the optimizer of a recipe."""

import math

import torch
from torch import nn

from gingham.recipe import Recipe


def lr_at(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0 of `steps`.

    "constant" keeps it; "linear" and "cosine" fall from it towards 0, which they would reach at step `steps`.

    >>> lr_at(50, 100, Recipe(schedule="linear", learning_rate=0.1))
    0.05

    Source of "cosine": Loshchilov & Hutter, "SGDR" (arXiv 1608.03983), one cycle without restarts.
    """
    done = step / steps
    if recipe.schedule == "linear":
        return recipe.learning_rate * (1 - done)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return recipe.learning_rate


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return SGD over the trainable parameters with the recipe's momentum and weight decay."""
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
