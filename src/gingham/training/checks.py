"""Checks of a network, its losses and its labels. Each check yields the issues that it finds."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gingham.data.sampler import Sampler
from gingham.data.similarity import brightness_and_contrast, normalized_vectors
from gingham.data.splits import Split
from gingham.models.backbones import Backbone
from gingham.models.classifier import Classifier, evaluation_mode
from gingham.models.operations import OperationObserver, operation_name
from gingham.presets import RECIPES
from gingham.recipe import Recipe
from gingham.training.issue import Issue
from gingham.training.optimizer import lr_at

SAMPLE_SIZE = 512  # images of the training split that are run through the network
COMPARED_PIXELS = 1 << 26  # of images that are compared with each other
DEAD_SHARE = 0.5  # share of dead channels from which a layer is reported
RELU_OPERATIONS = {"relu", "hardtanh", "clamp_min"}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MIN_STEPS = 50  # fewer losses are too noisy to judge
MAX_IMBALANCE = 5  # number of training images of the most common class divided by that of the rarest
LEARNS_NOTHING_FIX = "check the labels with gingham diagnose DATA, then try another --seed and a lower learning rate"
SLOW_START_STEPS = 500  # steps that a healthy network without BatchNorm may need before its loss falls below ln K

Epochs = Sequence[dict[str, Any]]  # the entries of a history for epochs


def check_training(
    model: Classifier, recipe: Recipe, train: Split, losses: Tensor, epochs: Epochs, steps: int, over: bool
) -> list[Issue]:
    """Return the issues of the model and its losses. A stuck loss is left out if another issue explains it.

    `losses`, float (steps so far,), are the losses of the steps, `epochs` the history's entries for epochs, and `steps`
    the number of steps of the whole training. `over` is True after its end.
    """
    images, labels = train.sample(SAMPLE_SIZE)
    causes = list(check_model(model, images, recipe))
    chance, comparable = math.log(len(train.classes)), _comparable_losses(losses, recipe, train)
    barely_learns = len(comparable) >= 10 and 0.6 * chance < _ending(comparable)[1] < 1.1 * chance
    # The length of Muon's steps depends on the learning rate only, so the losses need not be checked first. Pretrained
    # weights need not change by much.
    if (recipe.optimizer == "muon" or barely_learns) and not isinstance(model.network, Backbone):
        causes += check_rate(model, recipe, steps, images, labels)
    explained = any(cause.code in ("dead-relus", "double-softmax", "learning-rate-too-low") for cause in causes)
    issues = [*check_losses(recipe, train, losses, over), *(check_overfitting(recipe, epochs, steps) if over else ())]
    return [*causes, *(issue for issue in issues if not (explained and issue.code == "stuck-loss"))]


def check_model(model: Classifier, images: Tensor, recipe: Recipe) -> Iterator[Issue]:
    """Yield the issues of pixels, ReLUs and outputs that a forward pass over uint8 images (N, C, H, W) shows."""
    if isinstance(model.network, Backbone):  # it normalises pixels itself, and was trained before
        return
    with _record_relus(model.network) as active:
        logits = model.logits(images) * float(model.temperature)
    pixels = images.float().to(model.mean.device) / 255
    normalized = (pixels - model.mean) / model.std
    mean, std = float(normalized.mean()), float(normalized.std())
    if float(pixels.std()) > 0 and not (abs(mean) <= 1.5 and 0.4 <= std <= 2.5):
        mean_std = f"mean {_numbers(model.mean)} and std {_numbers(model.std)}"
        evidence = f"with the recipe's {mean_std} they have mean {mean:.2f} and std {std:.2f}, not about 0 and 1"
        data_mean, data_std = _numbers(pixels.mean((0, 2, 3))), _numbers(pixels.std((0, 2, 3)))
        fix = f"train with the mean and std of the data: --set mean={data_mean} --set std={data_std}"
        yield Issue("unnormalized-pixels", "the pixels are not normalised", evidence, fix)
    for name, channels in active.items():
        dead, total = int((~channels).sum()), len(channels)
        if dead >= DEAD_SHARE * total:
            yield Issue(
                "dead-relus" if dead == total else "mostly-dead-relus",
                f"{'all' if dead == total else 'most'} ReLUs are dead in layer {name}",
                f"{dead} of its {total} channels ({dead / total:.0%}) are 0 everywhere in {len(images)} images",
                f"try --set learning_rate={recipe.learning_rate / 10:g}, another --seed, or BatchNorm before the ReLU",
            )
    if bool((logits >= -1e-6).all()) and bool((logits.sum(dim=1) - 1).abs().max() < 1e-3):
        evidence = f"for {len(images)} images the outputs are at least 0 and sum to 1; the loss applies softmax again"
        fix = "remove the softmax, so that the network ends in its last linear layer"
        yield Issue("double-softmax", "softmax is applied twice", evidence, fix)


def _numbers(values: Tensor) -> str:
    return ",".join(f"{x:.3g}" for x in values.flatten().tolist())


@contextmanager
def _record_relus(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that maps each ReLU's name to its channels that were above 0 in any forward pass in the block.

    The values are bool (channels,). A ReLU that is called as a function is named after the last module before it.
    """
    active: dict[str, Tensor] = {}
    names = {module: name or type(module).__name__ for name, module in network.named_modules()}
    relus = {names[module] for module in names if isinstance(module, (nn.ReLU, nn.ReLU6))}
    last, calls = "the input", Counter[str]()

    def enter(module: nn.Module, _: Any) -> None:
        nonlocal last
        if module is network:
            calls.clear()
            last = "the input"
        if not any(module.children()):
            last = names[module]

    def record(operation: Any, _args: Any, _kwargs: Any, out: Any) -> None:
        if operation_name(operation) in RELU_OPERATIONS and out.dim() > 1:
            calls[last] += 1
            key = last if last in relus else f"{last} (the ReLU after it)"
            key += f", call {calls[last]}" if calls[last] > 1 else ""
            channels = (out > 0).transpose(0, 1).flatten(1).any(dim=1)
            before = active.get(key)
            active[key] = channels if before is None or len(before) != len(channels) else before | channels

    with ExitStack() as stack:
        for module in network.modules():
            stack.enter_context(module.register_forward_pre_hook(enter))
        stack.enter_context(OperationObserver(record))
        yield active


def check_losses(recipe: Recipe, train: Split, losses: Tensor, over: bool) -> Iterator[Issue]:
    """Yield the issues that the losses of the steps show. The arguments are those of `check_training`."""
    classes = len(train.classes)
    chance, comparable = math.log(classes), _comparable_losses(losses, recipe, train)
    if len(comparable) < MIN_STEPS:
        return
    tenth, ending = _ending(comparable)
    may_start = len(comparable) < SLOW_START_STEPS
    means = [float(part.mean()) for part in torch.split(comparable, tenth)]
    lowest, highest = min(means[:-1]), max(means)
    # A high loss in the first steps alone does no harm.
    if ending > 1.1 * chance or (highest > 1.5 * chance and ending > 0.8 * chance):
        evidence = f"the loss rises to {highest:.3g} (mean of {tenth} steps), and random guessing gives {chance:.3g}"
        fix = f"lower it: --set learning_rate={recipe.learning_rate / 10:g}"
        yield Issue("learning-rate-too-high", "the learning rate is far too high", evidence, fix)
    elif over and ending > 2 * lowest and ending > lowest + 0.1 * chance:
        evidence = f"it was {lowest:.3g} (mean of {tenth} steps) and is {ending:.3g} over the last {tenth} steps"
        yield _loss_jump(recipe, evidence)
    elif abs(ending - chance) < 0.02 * chance and (over or not may_start):
        evidence = f"it is {ending:.3f} over the last {tenth} steps; random guessing gives ln {classes} = {chance:.3f}"
        fix = "train for more steps" if may_start else LEARNS_NOTHING_FIX
        yield Issue("stuck-loss", f"the loss is stuck at ln {classes}", evidence, fix)


def _loss_jump(recipe: Recipe, evidence: str) -> Issue:
    fix = f"lower the learning rate: --set learning_rate={recipe.learning_rate / 3:.3g}"
    return Issue("loss-jump", "the loss rose and stayed high", evidence, fix)


def check_overfitting(recipe: Recipe, epochs: Epochs, steps: int) -> Iterator[Issue]:
    """Yield an issue if a fully trained network over-fits. The arguments are those of `check_training`."""
    evaluations = [entry for entry in epochs if entry["validation_loss"] is not None]
    # Patience keeps the weights of the best evaluation. Pretrained networks that fit all of a few training images are
    # still the most accurate on others.
    if steps < MIN_STEPS or not evaluations or recipe.patience or recipe.pretrained:
        return
    if recipe.validation_images < 50:  # too few: whether their loss rises depends on the rounding of the processor
        return
    best, end = min(evaluations, key=lambda entry: entry["validation_loss"]), evaluations[-1]
    # The loss of a healthy network may double from one evaluation to the next while the learning rate is high.
    rise = min(entry["validation_loss"] for entry in evaluations[-3:]) / max(best["validation_loss"], 1e-9)
    gap = end["train_accuracy"] - end["validation_accuracy"]
    since, rises = f"since epoch {best['epoch']:.3g} the validation loss has risen by {rise - 1:.0%}", rise > 1.15
    evidence = f"the accuracy on training images is {100 * gap:.1f} points above that on validation images"
    augment = "or augment: --set shift_pixels=1 --set flip=alternating"
    if gap > 0.03 and rises:
        fix = f"stop training earlier (--set patience=3), {augment}"
        yield Issue("over-fitting", "the network over-fits", f"{since}, and {evidence}", fix)
    elif gap > 0.2 and end["train_accuracy"] > 0.98:
        # A smaller gap is normal, even for the best network that the data allows.
        yield Issue("over-fitting", "the network over-fits", evidence, f"collect more training images, {augment}")
    elif recipe.hard_share < 1 and rise > 2:  # the losses of the steps are of hard images and do not show it
        yield _loss_jump(recipe, since)


def _comparable_losses(losses: Tensor, recipe: Recipe, train: Split) -> Tensor:
    """Return the losses of the steps that use all images, because the loss on hard images alone is higher."""
    return losses[: Sampler(recipe, len(train)).first_epoch_steps] if recipe.hard_share < 1 else losses


def _ending(losses: Tensor) -> tuple[int, float]:
    """Return a tenth of the number of losses, at least 10, and the mean of that many last losses."""
    tenth = max(10, len(losses) // 10)
    return tenth, float(losses[-tenth:].mean())


def check_rate(model: Classifier, recipe: Recipe, steps: int, images: Tensor, labels: Tensor) -> Iterator[Issue]:
    """Yield an issue if the learning rate is far too low to change the weights in `steps` steps.

    Compares the total length of all steps, at the current gradient on some images, with the norm of the filters. No
    learning rate changes the weights much in a few steps, so the check assumes at least SLOW_START_STEPS.
    """
    if recipe.optimizer == "muon":
        relative_step, smallest = recipe.filter_lr_scale, 0.05  # the step length does not depend on the gradient
    else:
        relative_gradient = _relative_gradient(model, images, labels)
        if not relative_gradient >= 1e-6:  # no gradient at all is another issue
            return
        # The first gradients of a network without BatchNorm are a hundred times smaller than later ones.
        relative_step, smallest = relative_gradient / (1 - recipe.momentum), 1e-3
    movement = sum(lr_at(step, steps, recipe) for step in range(steps)) * relative_step
    if not steps or movement * max(1, SLOW_START_STEPS / steps) > smallest:
        return
    usual = RECIPES[recipe.name].learning_rate if recipe.name in RECIPES else 0.0
    higher = usual if usual > recipe.learning_rate else max(0.01, 10 * recipe.learning_rate)
    evidence = f"{steps} steps of up to {recipe.learning_rate:g} can change the weights by {movement:.1e} of their norm"
    fix = f"raise it: --set learning_rate={higher:g}"
    yield Issue("learning-rate-too-low", "the learning rate is far too low", evidence, fix)


def _relative_gradient(model: Classifier, images: Tensor, labels: Tensor) -> float:
    """Return the norm of the gradient on some images divided by the norm of the weights, without biases and scales."""
    device = model.mean.device
    with evaluation_mode(model), torch.enable_grad():
        loss = F.cross_entropy(model(images.to(device)).float(), labels.to(device))
        weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    gradient = get_total_norm([g for g in gradients if g is not None])
    return float(gradient / get_total_norm([weight.detach() for weight in weights]))


def check_batches(recipe: Recipe, num_images: int, network: nn.Module) -> Iterator[Issue]:
    """Yield an issue if an epoch ends with a batch of one image and the network has BatchNorm."""
    norms = [name for name, module in network.named_modules() if isinstance(module, BATCH_NORMS)]
    sampler = Sampler(recipe, num_images)
    sizes = first, later = sampler.epoch_size(0), sampler.epoch_size(1)
    ends = ((first, sampler.first_epoch_steps), (later, sampler.first_epoch_steps + sampler.later_epoch_steps))
    single = [size for size, steps in ends if size % recipe.batch_size == 1 and sampler.steps >= steps]
    if not norms or not single or recipe.batch_size == 1:
        return
    larger = itertools.count(recipe.batch_size + 1)
    batch_size = next(size for size in larger if all(images == 1 or images % size != 1 for images in sizes))
    evidence = f"{single[0]:,} images in batches of {recipe.batch_size} leave a last batch of 1 image for {norms[0]}"
    fix = f"choose another batch size: --set batch_size={batch_size}"
    yield Issue("single-image-batch", "a batch of one image goes through BatchNorm", evidence, fix)


def check_labels(train: Split, validation: Split | None) -> Iterator[Issue]:
    """Yield an issue for each split whose labels do not belong to its images.

    That is the case if similar images share a label no more often than by chance.
    """
    images, train_labels = train.sample(8000, COMPARED_PIXELS)
    queried = torch.arange(len(images)) % 8 == 0
    cases = [(train, images[queried], train_labels[queried], images[~queried], train_labels[~queried])]
    if validation is not None:
        cases.append((validation, *validation.sample(1000, COMPARED_PIXELS), images, train_labels))
    for split, queries, labels, base, base_labels in cases:
        total = len(queries)
        if min(total, len(base)) < 30:
            continue
        correlations = normalized_vectors(queries) @ normalized_vectors(base).T
        distances = torch.cdist(brightness_and_contrast(queries), brightness_and_contrast(base))
        # If labels belong to their images, one share is far above chance, even if classes are hard to tell apart.
        nearest = correlations.argmax(dim=1), distances.argmin(dim=1)
        share, other_share = (float((base_labels[rows] == labels).double().mean()) for rows in nearest)
        counts = [torch.bincount(rows, minlength=len(train.classes)) for rows in (labels, base_labels)]
        chance = float((counts[0] * counts[1]).sum()) / (total * len(base))
        if max(share, other_share) <= chance + 3 * math.sqrt(chance * (1 - chance) / total):
            title = f"the labels of the {split.name} images do not belong to them"
            evidence = f"{share:.1%} of {total:,} have the label of the nearest training image; chance is {chance:.1%}"
            fix = f"create the {split.name} labels again, in the order of the images"
            yield Issue("shuffled-labels", title, evidence, fix)


def check_balance(train: Split) -> Iterator[Issue]:
    """Yield an issue if the most common class has more than five times as many training images as the rarest."""
    counts = {name: count for name, count in train.counts().items() if count}
    rare, common = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[common] > MAX_IMBALANCE * counts[rare]:
        evidence = f"{counts[common]:,} training images of {common}, {counts[rare]:,} of {rare}"
        fix = f"train with --set class_balance=1, judge by the balanced accuracy, and collect more images of {rare}"
        yield Issue("imbalanced-classes", "the classes are imbalanced", evidence, fix)
