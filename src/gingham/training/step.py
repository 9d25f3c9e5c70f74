"""One step of gradient descent, made fast by warm-up, torch.compile and CUDA graphs."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from gingham.device import autocast
from gingham.errors import GinghamError, ModelError, is_exhausted, one_line
from gingham.models.backbones import Backbone
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS
from gingham.recipe import Recipe
from gingham.training.batches import Batch
from gingham.training.loss import Loss
from gingham.training.optimizer import build_optimizer


@dataclass(frozen=True)
class StepOutput:
    """The result of a step, computed with the weights before the step, as tensors on the device.

    `loss` is the mean label loss, without teachers and class weights, times the batch's weight. `correct` is the number
    of correct predictions. Both are scalars. `losses`, float (B,), is the cross-entropy of each image without
    smoothing, or None if the step does not compute it.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    losses: torch.Tensor | None


TrainStep = Callable[[Batch], StepOutput]


@dataclass(frozen=True)
class EagerStep:
    """One step of gradient descent. With `with_losses`, it returns the loss of each image, to find the hard ones.

    train_step = EagerStep(model, optimizer, CrossEntropyLoss(), "float32")
    output = train_step(batch)
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    precision: str
    with_losses: bool = False

    def __call__(self, batch: Batch) -> StepOutput:
        """Take a step: the loss is the mean over the batch, times the batch's weight."""
        self.optimizer.zero_grad()
        with autocast(self.precision, batch.images.device):
            logits = self.model(batch.images).float()
        loss = self._weighted(self.loss, logits, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

        loss, logits = loss.detach(), logits.detach()
        if self.loss is not self.loss.label_loss:
            # The history has the label loss, so that runs with and without teachers or class weights can be compared.
            loss = self._weighted(self.loss.label_loss, logits, batch)
        correct = (logits.argmax(dim=1) == batch.main_labels()).sum()
        losses = F.cross_entropy(logits, batch.labels, reduction="none") if self.with_losses else None
        return StepOutput(loss, correct, losses)

    @staticmethod
    def _weighted(loss: Loss, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        value = loss(logits, batch)
        return value if batch.weight == 1 else value * batch.weight  # saves a kernel for most batches


class CUDAGraphStep:
    """A step that is captured as a CUDA graph for each batch size and then replayed.

    A step of a small network is hundreds of kernels of a few microseconds each, and Python launches them more slowly
    than the GPU executes them. The next step overwrites the output of a step. Call `warm_up` first, because the
    initialisation of libraries on their first use cannot be captured.

        train_step = CUDAGraphStep(step, [a batch of each size])

    Raises
        RuntimeError: something in the step cannot be captured.
    """

    def __init__(self, step: EagerStep, batches: Sequence[Batch]) -> None:
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Batch, StepOutput]] = {}
        make_capturable(step.optimizer)
        # Without a stream torch captures on the current GPU, which may be a different one.
        stream = torch.cuda.Stream(batches[0].images.device)  # type: ignore[no-untyped-call]
        pool = None
        for batch in batches:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                output = step(batch)
            pool = graph.pool()  # the graphs never run at the same time, so they share a memory pool
            self.graphs[len(batch)] = (graph, batch, output)

    def __call__(self, batch: Batch) -> StepOutput:
        """Take a step on a batch of one of the captured sizes."""
        assert batch.weight == 1, "graphs are used in single-process training only"
        graph, captured, output = self.graphs[len(batch)]
        for target, source in zip(captured.inputs(), batch.inputs(), strict=True):
            target.copy_(source)
        graph.replay()
        return output


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Prepare an optimizer for capture: make learning rates tensors, and create missing state with zeros.

    A learning rate that is a number would be captured as a constant, and buffers created in the captured step would be
    created again in each replay.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if isinstance(optimizer, torch.optim.AdamW):
            group["capturable"] = device.type == "cuda"
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.AdamW) and not state:
                state["step"] = torch.zeros((), device=device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            if group.get("momentum") and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def dummy_batch(batch_size: int, model: Classifier, recipe: Recipe, distill_mask: bool = False) -> Batch:
    """Return a batch of random images with every tensor that the recipe's batches have, on the model's device."""
    device = model.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)  # separate, so that it does not change the training's draws
    if recipe.trains_head_only and isinstance(model.network, Backbone):
        images = torch.randn(batch_size, len(model.network.feature_mean), generator=generator)
    else:
        side = (recipe.crop_size, recipe.crop_size) if recipe.crop_size else model.input_shape[1:]
        shape = (batch_size, model.input_shape[0], *side)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(len(model.classes), (batch_size,), generator=generator).to(device)
    return Batch(
        images.to(device),
        labels,
        labels.flip(0) if recipe.mixes else None,
        torch.ones(batch_size, device=device) if recipe.mixes else None,
        torch.ones(batch_size, device=device) if distill_mask else None,
    )


def warm_up(
    model: Classifier, step: EagerStep, batches: Sequence[Batch], recipe: Recipe, num_predicted: int
) -> tuple[EagerStep, bool]:
    """Train and evaluate a copy of the model on random images, so that kernels are set up before the clock starts.

    Takes a step on each batch and predicts `num_predicted` images. Returns the step of the copy, and whether any
    trainable parameter got no gradient.

    Raises
        ModelError: a user's network fails in a step.
    """
    twin = copy.deepcopy(model).train()
    twin_step = replace(step, model=twin, optimizer=build_optimizer(twin, recipe))
    for batch in (*batches, batches[-1]):  # cuDNN chooses its kernels the second time that it sees a size
        try:
            twin_step(batch)
        except Exception as error:
            if is_exhausted(error) or (recipe.network in NETWORKS and not recipe.crop_size):
                raise
            if recipe.crop_size:
                side = recipe.crop_size
                raise ModelError(
                    f"the network {recipe.network} cannot be trained on images of {side}x{side} pixels "
                    f"({one_line(error)}); set another crop_size, or crop_size=0 to keep the size of the images"
                ) from error
            size, reason, fix = len(batch), f"{type(error).__name__}, {one_line(error)}", "fix its forward method"
            if size == 1:
                fix += f", or choose another batch size, such as {recipe.batch_size + 1} (--set batch_size)"
            raise ModelError(
                f"the network {recipe.network} cannot be trained on a batch of size {size}: {reason}; {fix}"
            ) from error
    if num_predicted:
        twin.logits(dummy_batch(num_predicted, model, recipe.replace(crop_size=0)).images)
    return twin_step, any(parameter.grad is None for parameter in twin.parameters() if parameter.requires_grad)


def compile_step(step: EagerStep, batches: Sequence[Batch], network: str) -> EagerStep:
    """Return the step with its model compiled by torch for the sizes of these batches.

    Weights, BatchNorm statistics and momentum keep their values. `network` is the name to show in an error.

    Raises
        GinghamError: there is no compiler, or it fails.
    """
    _reset_compiler(network, step.precision, tuple(map(len, batches)))
    compiled: nn.Module = torch.compile(step.model, dynamic=False)  # type: ignore[assignment]
    compiled_step = replace(step, model=compiled)
    weights = copy.deepcopy(step.model.state_dict())
    momentum = copy.deepcopy(step.optimizer.state_dict())
    try:
        for batch in batches:
            compiled_step(batch)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise GinghamError(
            f"torch.compile could not compile the network {network} ({one_line(error)}); it needs a C++ compiler and, "
            "on a GPU, Triton; install them, or set compile=false"
        ) from error
    step.model.load_state_dict(weights)
    step.optimizer.load_state_dict(momentum)
    return compiled_step


@functools.lru_cache(maxsize=1)
def _reset_compiler(*settings: object) -> None:
    """Discard the code compiled for other settings: torch keeps eight versions of a forward and compiles no ninth.

    Because of the cache, the compiled code is kept for the next model with the same settings.
    """
    torch.compiler.reset()
