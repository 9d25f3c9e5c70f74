"""Checks of a network, its losses and its labels. Each returns a list of issues."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gingham.data.sampler import Sampler
from gingham.data.similarity import count_label_agreement, normalized_vectors
from gingham.data.splits import Split
from gingham.models.classifier import Classifier
from gingham.presets import RECIPES
from gingham.recipe import Recipe
from gingham.training.issue import Issue
from gingham.training.optimizer import lr_at

SAMPLE = 512  # pictures that are looked at
DEAD_SHARE = 0.5  # of a layer's channels
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FEWEST_STEPS = 50  # before which a loss says little
FEWEST_LOOKED_AT = 100  # validation pictures from which a rising loss is more than chance while training goes on
SLOW_START = 500  # steps that a healthy network without BatchNorm may need to leave ln K


def check_training(
    model: Classifier,
    recipe: Recipe,
    train: Split,
    losses: torch.Tensor,
    epochs: Sequence[dict[str, Any]],
    steps: int,
    *,
    over: bool,
) -> list[Issue]:
    """What model and losses show together, without a stuck loss that dead ReLUs, softmax or a tiny learning rate explain."""
    images, labels = _sample(train)
    causes = check_model(model, images, recipe)
    # Muon's steps have the length of its rate, so they tell of themselves.
    if recipe.optimizer == "muon" or _learned_little(losses, recipe, len(train), len(model.classes)):
        causes += check_rate(model, recipe, steps, images, labels)
    explained = any(cause.code in ("dead-relus", "double-softmax", "learning-rate-too-low") for cause in causes)
    story = check_history(recipe, len(train), len(model.classes), losses, epochs, over)
    return [*causes, *(issue for issue in story if not (explained and issue.code == "stuck-loss"))]


def _sample(split: Split, count: int = SAMPLE) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.linspace(0, len(split) - 1, min(count, len(split))).long()
    return split.images[places], split.labels[places]


def check_model(model: Classifier, images: torch.Tensor, recipe: Recipe) -> list[Issue]:
    """Return what a forward pass over uint8 pictures (N, C, H, W) shows: pixels, ReLUs, outputs."""
    with _watched_relus(model.network) as alive:
        logits = model.logits(images) * float(model.temperature)
    found = _check_pixels(model, images)
    for name, seen in alive.items():
        dead = int((~seen).sum())
        if dead >= DEAD_SHARE * len(seen):
            which = "all ReLUs are" if dead == len(seen) else "most ReLUs are"
            found.append(
                Issue(
                    "dead-relus" if dead == len(seen) else "mostly-dead-relus",
                    f"{which} dead in layer {name}",
                    f"{dead} of its {len(seen)} channels ({dead / len(seen):.0%}) are 0 at every position of {len(images)} pictures",
                    f"train again with a lower learning rate, such as --set learning_rate={recipe.learning_rate / 10:g}, or with "
                    "another --seed; BatchNorm before the ReLU keeps it alive",
                )
            )
    if bool((logits >= -1e-6).all()) and bool((logits.sum(dim=1) - 1).abs().max() < 1e-3):
        found.append(
            Issue(
                "double-softmax",
                "softmax is applied twice",
                f"the network's outputs are probabilities already (at least 0, summing to 1 for each of {len(images)} pictures), "
                "and the loss takes the softmax of them once more, which hides most of the gradient",
                "let the network end in its last linear layer: remove its softmax",
            )
        )
    return found


def _check_pixels(model: Classifier, images: torch.Tensor) -> list[Issue]:
    pixels = images.float().to(model.mean.device) / 255
    seen = (pixels - model.mean) / model.std
    mean, spread = float(seen.mean()), float(seen.std())
    own_mean, own_spread = (
        ", ".join(f"{x:.3f}" for x in values.tolist()) for values in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)))
    )
    if float(pixels.std()) == 0 or (abs(mean) <= 1.5 and 0.4 <= spread <= 2.5):
        return []
    return [
        Issue(
            "unnormalized-pixels",
            "the pixels are not normalised",
            f"after the recipe's mean {_numbers(model.mean)} and std {_numbers(model.std)} they have mean {mean:.2f} and standard "
            f"deviation {spread:.2f}, where about 0 and 1 are meant",
            f"train with the data's own: --set mean={own_mean.replace(' ', '')} --set std={own_spread.replace(' ', '')}",
        )
    ]


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{x:g}" for x in values.flatten().tolist())


@contextmanager
def _watched_relus(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Yield a dict that fills, in forward passes inside the block, with a bool (channels,) a ReLU: which were ever above 0.

    Modules and calls alike: a call is named after the last module before it.
    """
    alive: dict[str, torch.Tensor] = {}
    names = {module: name or type(module).__name__ for name, module in network.named_modules()}
    relus = {names[module] for module in names if isinstance(module, (nn.ReLU, nn.ReLU6))}
    last, calls = "the input", dict[str, int]()

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal last
        if module is network:
            calls.clear()
            last = "the input"
        if not any(module.children()):
            last = names[module]

    class Watcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            name = func._overloadpacket.__name__
            if name in ("relu", "relu_", "hardtanh", "hardtanh_", "clamp_min", "clamp_min_") and out.dim() > 1:
                calls[last] = calls.get(last, 0) + 1
                key = last if last in relus else f"{last} (the ReLU after it)"
                key += f", call {calls[last]}" if calls[last] > 1 else ""
                seen = (out > 0).transpose(0, 1).flatten(1).any(dim=1)
                alive[key] = alive[key] | seen if key in alive and len(alive[key]) == len(seen) else seen
            return out

    handles = [module.register_forward_pre_hook(enter) for module in network.modules()]
    try:
        with Watcher():  # type: ignore[no-untyped-call]
            yield alive
    finally:
        for handle in handles:
            handle.remove()


def check_history(
    recipe: Recipe, images: int, classes: int, losses: torch.Tensor, epochs: Sequence[dict[str, Any]], over: bool = True
) -> list[Issue]:
    """Return what the losses of the steps so far, float (steps,), and the epochs' entries show; `over` says whether more follow."""
    chance = math.log(classes)
    plain = _plain(losses, recipe, images)
    found = []
    if len(plain) >= FEWEST_STEPS:
        tenth = max(10, len(plain) // 10)
        ending = float(plain[-tenth:].mean())
        highest = max(float(part.mean()) for part in torch.split(plain, tenth))
        if ending > 1.1 * chance or highest > 1.5 * chance:
            found.append(
                Issue(
                    "learning-rate-too-high",
                    "the learning rate is far too high",
                    f"the loss has risen to {highest:.3g} (the mean of {tenth} steps) and ended at {ending:.3g}, where guessing gives "
                    f"{chance:.3g} (ln {classes})",
                    f"lower it: --set learning_rate={recipe.learning_rate / 10:g}",
                )
            )
        elif abs(ending - chance) < 0.02 * chance and (over or len(plain) >= SLOW_START):
            found.append(
                Issue(
                    "stuck-loss",
                    f"the loss is stuck at ln {classes}",
                    f"over the last {tenth} of {len(plain)} steps it is {ending:.3f}, and guessing gives ln {classes} = {chance:.3f}: nothing is "
                    "learned",
                    "train for more steps"
                    if len(plain) < SLOW_START
                    else "see that labels and pictures belong together (gingham diagnose on the data), then try another --seed and "
                    "a lower learning rate",
                )
            )
    evaluations = [entry for entry in epochs if entry["validation_loss"] is not None]
    # On few validation pictures the loss jumps from look to look: only the last one says something.
    telling = over or recipe.validation_images >= FEWEST_LOOKED_AT
    if telling and len(evaluations) >= 3 and len(losses) >= FEWEST_STEPS:
        best = min(evaluations, key=lambda entry: entry["validation_loss"])
        end = evaluations[-1]
        gap = end["train_accuracy"] - end["validation_accuracy"]
        rise = end["validation_loss"] / max(best["validation_loss"], 1e-9)
        if gap > 0.03 and rise > 1.15:
            found.append(
                Issue(
                    "over-fitting",
                    "the network over-fits",
                    f"since epoch {best['epoch']:.3g} the validation loss has risen from {best['validation_loss']:.3f} to "
                    f"{end['validation_loss']:.3f}, and {end['train_accuracy']:.1%} of the training pictures are right against "
                    f"{end['validation_accuracy']:.1%} of the validation pictures",
                    "train shorter (--set patience=3 stops by itself), or show every picture in more ways: --set shift_pixels=1 "
                    "--set flip=alternating",
                )
            )
    return found


def _plain(losses: torch.Tensor, recipe: Recipe, images: int) -> torch.Tensor:
    """The losses of steps that take all kinds of pictures: those of hard ones alone lie higher, and say less."""
    return losses[: Sampler(recipe, images).first_epoch_steps] if recipe.hard_share < 1 else losses


def _learned_little(losses: torch.Tensor, recipe: Recipe, images: int, classes: int) -> bool:
    plain = _plain(losses, recipe, images)
    if len(plain) < 10:
        return False
    ending = float(plain[-max(10, len(plain) // 10) :].mean())
    return 0.6 * math.log(classes) < ending < 1.1 * math.log(classes)


def check_rate(model: Classifier, recipe: Recipe, steps: int, images: torch.Tensor, labels: torch.Tensor) -> list[Issue]:
    """Return whether the learning rate is far too low for a whole training of `steps` to move the weights.

    Compares how far all steps together can carry the filters, at today's gradient on some pictures, with their size.
    """
    rates = sum(lr_at(step, steps, recipe) for step in range(steps))
    if recipe.optimizer == "muon":
        a_rate = recipe.filter_lr_scale  # it moves each filter by its rate alone, whatever the gradient
    else:
        gradient, weight = _sizes(model, images, labels)
        if gradient < 1e-6 * weight:  # no gradient at all is another illness
            return []
        a_rate = gradient / weight / (1 - recipe.momentum)
    # The first gradients of a network without BatchNorm are a hundredth of what they become.
    if rates * a_rate > (0.05 if recipe.optimizer == "muon" else 1e-3):
        return []
    usual = RECIPES[recipe.name].learning_rate if recipe.name in RECIPES else 0.0
    if usual <= recipe.learning_rate:
        usual = max(0.01, 10 * recipe.learning_rate)
    return [
        Issue(
            "learning-rate-too-low",
            "the learning rate is far too low",
            f"the {steps} steps of up to {recipe.learning_rate:g} together can move the weights by {rates * a_rate:.1e} of their size",
            f"raise it: --set learning_rate={usual:g}",
        )
    ]


def _sizes(model: Classifier, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    """The norms of the gradient on some pictures and of the weights, biases and scales aside."""
    device, was_training = model.mean.device, model.training
    model.eval()
    with torch.enable_grad():
        loss = F.cross_entropy(model(images.to(device)).float(), labels.to(device))
        parameters = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    model.train(was_training)
    return (
        math.hypot(*(float(g.norm()) for g in gradients if g is not None)),
        math.hypot(*(float(p.detach().norm()) for p in parameters)),
    )


def check_batches(recipe: Recipe, images: int, network: nn.Module) -> list[Issue]:
    """Return whether an epoch ends in a batch of one picture under BatchNorm."""
    norms = [name for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    sampler = Sampler(recipe, images)
    ends = [
        (sampler.epoch_size(0), sampler.first_epoch_steps),
        (sampler.epoch_size(1), sampler.first_epoch_steps + sampler.later_epoch_steps),
    ]
    alone = [pictures for pictures, steps in ends if pictures % recipe.batch_size == 1 and sampler.steps >= steps]
    if not norms or not alone or recipe.batch_size == 1:
        return []
    size = next(
        size
        for size in range(recipe.batch_size + 1, recipe.batch_size + 10**6)
        if all(Sampler(recipe.replace(batch_size=size), images).epoch_size(epoch) % size != 1 for epoch in (0, 1))
    )
    return [
        Issue(
            "single-image-batch",
            "a batch of one picture goes through BatchNorm",
            f"{alone[0]:,} pictures an epoch in batches of {recipe.batch_size} leave a last batch of 1, and the statistics of "
            f"{norms[0]}{f' and {len(norms) - 1} more' * (len(norms) > 1)} then come from one picture",
            f"choose another batch size: --set batch_size={size}",
        )
    ]


def check_labels(train: Split, validation: Split | None) -> list[Issue]:
    """Return whether the labels of a split belong to its pictures: whether pictures that look alike share them."""
    classes = len(train.classes)
    train_images, train_labels = _sample(train, 8000)
    vectors = normalized_vectors(train_images)
    own = torch.arange(len(vectors)) % 8 == 0
    cases = [(train, vectors[own], train_labels[own], vectors[~own], train_labels[~own])]
    if validation is not None:
        images, labels = _sample(validation, 1000)
        cases.append((validation, normalized_vectors(images), labels, vectors, train_labels))
    found = []
    for split, queries, wanted, base, base_labels in cases:
        if len(queries) < 30 or len(base) < 30:
            continue
        right, total = count_label_agreement(queries, wanted, base, base_labels)
        shares = torch.bincount(wanted, minlength=classes) / total
        guess = float((shares * torch.bincount(base_labels, minlength=classes) / len(base_labels)).sum())
        if right / total > guess + 3 * math.sqrt(guess * (1 - guess) / total):
            continue
        found.append(
            Issue(
                "shuffled-labels",
                f"the labels of the {split.name} pictures do not belong to them",
                f"of {total:,} {split.name} pictures {right / total:.1%} share the label of the training picture most like them, "
                f"and {guess:.1%} would by chance: labels and pictures are in different orders",
                f"make the {split.name} labels anew, in the order of their pictures",
            )
        )
    return found
