"""One step of gradient descent, and what makes it fast: warm-up, torch.compile and CUDA graphs."""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gingham.device import autocast
from gingham.errors import GinghamError, ModelError, is_exhausted, one_line
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS
from gingham.recipe import Recipe
from gingham.training.batches import Batch
from gingham.training.distillation import TeacherEnsemble
from gingham.training.loss import compute_loss
from gingham.training.optimizer import build_optimizer


@dataclass(frozen=True)
class StepOutput:
    """The result of a step, computed with the weights before it, on the device.

    `loss` is the mean loss to the labels, without the teachers' part, and `correct` the number of correct predictions,
    both scalars. `losses`, float (B,), has the loss of each image where the recipe looks for hard ones, else None.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    losses: torch.Tensor | None


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    precision: str,
    teachers: TeacherEnsemble | None,
    batch: Batch,
    weight: float = 1.0,
) -> StepOutput:
    """Take one step of gradient descent on a batch.

    The loss is the mean over the batch, times `weight`: that of this process's shard in the mean over all processes.
    """
    optimizer.zero_grad()
    with autocast(precision, batch.images.device):
        teacher_probabilities = teachers(batch.images) if teachers else None
        logits = model(batch.images).float()
    loss = compute_loss(logits, batch, recipe, teacher_probabilities)
    if weight != 1:
        loss = loss * weight
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss, logits = loss.detach(), logits.detach()
    if teacher_probabilities is not None:  # the history has the loss to the labels, which is comparable between runs
        loss = compute_loss(logits, batch, recipe) * weight
    target = batch.labels
    if batch.mixed_labels is not None and batch.mix_weight is not None:
        target = torch.where(batch.mix_weight < 0.5, batch.mixed_labels, target)
    correct = (logits.argmax(dim=1) == target).sum()
    losses = F.cross_entropy(logits, batch.labels, reduction="none") if recipe.hard_share < 1 else None
    return StepOutput(loss, correct, losses)


TrainStep = Callable[[Batch, float], StepOutput]


class CUDAGraphStep:
    """`train_step` captured as a CUDA graph for each batch size, and replayed.

    A step of a small network is hundreds of kernels of a few microseconds each, and Python launches them more slowly
    than the GPU executes them. The output of a step is overwritten by the next one. Call `warm_up` first: what
    libraries initialise on first use cannot be captured.

        take_step = CUDAGraphStep(model, optimizer, recipe, precision, None, [a batch of each size])

    Raises
        RuntimeError: something in the step cannot be captured.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        precision: str,
        teachers: TeacherEnsemble | None,
        batches: Iterable[Batch],
    ) -> None:
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batch, StepOutput]] = {}
        make_capturable(optimizer)
        pool = None
        for batch in batches:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                output = train_step(model, optimizer, recipe, precision, teachers, batch)
            pool = graph.pool()  # one memory pool for all, as they never run at once
            self.graphs[len(batch)] = (graph, batch, output)

    def __call__(self, batch: Batch, weight: float = 1.0) -> StepOutput:
        assert weight == 1, "graphs are used in single-process training only"
        graph, captured, output = self.graphs[len(batch)]
        for target, source in zip(captured.tensors(), batch.tensors(), strict=True):
            target.copy_(source)
        graph.replay()
        return output


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Prepare an optimizer for capture: learning rates become tensors, and momentum buffers exist and are 0.

    A rate that is a number would be captured as a constant, and buffers created in the captured step would be created
    in each replay.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        for parameter in group["params"]:
            if group["momentum"] and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def dummy_batch(batch_size: int, model: Classifier, recipe: Recipe, teachers: TeacherEnsemble | None) -> Batch:
    """Return a batch of random images with every tensor that the recipe's batches have, on the model's device."""
    device = model.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)  # its own, so that the draws of the training do not change
    images = torch.randint(256, (batch_size, *model.input_shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(len(model.classes), (batch_size,), generator=generator).to(device)
    return Batch(
        images.to(device),
        labels,
        labels.flip(0) if recipe.cutmix else None,
        torch.ones(batch_size, device=device) if recipe.cutmix else None,
        torch.ones(batch_size, device=device) if teachers and teachers.skip_photos else None,
    )


def warm_up(
    model: Classifier,
    recipe: Recipe,
    precision: str,
    sizes: Sequence[int],
    num_predicted: int,
    teachers: TeacherEnsemble | None = None,
) -> bool:
    """Run training steps and a prediction on a copy of the model and random images, so that no kernel is set up while the clock runs.

    `sizes` are the batch sizes to come, `num_predicted` the number of images to predict. Return whether some trainable
    parameters got no gradient.
    """
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(twin, recipe)
    for size in (*sizes, sizes[-1]):
        batch = dummy_batch(size, model, recipe, teachers)
        try:
            train_step(twin, optimizer, recipe, precision, teachers, batch)
        except Exception as error:
            if recipe.network in NETWORKS or is_exhausted(error):
                raise
            alone = (
                " (BatchNorm cannot learn from one value a channel)"
                if size == 1 and "per channel" in str(error)
                else ""
            )
            raise ModelError(
                f"the network {recipe.network} cannot learn from a batch of {size}{alone}: {type(error).__name__}, "
                f"{one_line(error)}; mend its forward"
                + (
                    f", or choose another batch size, such as --set batch_size={recipe.batch_size + 1}"
                    if size == 1
                    else ""
                )
            ) from error
    if num_predicted:
        twin.logits(dummy_batch(num_predicted, model, recipe, None).images)
    return any(parameter.grad is None for parameter in twin.parameters() if parameter.requires_grad)


def compile_model(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    precision: str,
    teachers: TeacherEnsemble | None,
    batches: Sequence[Batch],
) -> nn.Module:
    """Return the model compiled by torch for these batch sizes; weights, statistics and momentum keep their values.

    Raises
        GinghamError: there is no compiler, or it fails.
    """
    _reset_compiler(recipe.network, precision, tuple(map(len, batches)))
    compiled: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momentum = {
        parameter: state["momentum_buffer"].clone()
        for parameter, state in optimizer.state.items()
        if state.get("momentum_buffer") is not None
    }
    try:
        for batch in batches:
            train_step(compiled, optimizer, recipe, precision, teachers, batch)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise GinghamError(
            f"torch.compile could not compile the network {recipe.network} ({one_line(error)}); it needs a C++ "
            "compiler, and on a GPU Triton: install them, or set compile=false"
        ) from error
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])
        for parameter, state in optimizer.state.items():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].copy_(momentum.get(parameter, torch.zeros_like(parameter)))
    return compiled


@functools.lru_cache(maxsize=1)
def _reset_compiler(*settings: object) -> None:
    """Discard what was compiled for other settings: torch keeps eight versions of a forward and does not compile a ninth.

    The cache keeps the compiled code for the next model with the same settings.
    """
    torch.compiler.reset()
