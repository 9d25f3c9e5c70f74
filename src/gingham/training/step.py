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
from gingham.training.distillation import Teachers
from gingham.training.loss import loss_of
from gingham.training.optimizer import build_optimizer


@dataclass(frozen=True)
class Learned:
    """What a step found before it changed the weights, on the device: the batch's mean loss, to the labels alone also where teachers
    are heard, and the number of right answers, both (), and with hard pictures to be found the loss of each, float (B,)."""

    loss: torch.Tensor
    hits: torch.Tensor
    losses: torch.Tensor | None


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    precision: str,
    teachers: Teachers | None,
    batch: Batch,
    weight: float = 1.0,
) -> Learned:
    """Take one step of gradient descent on a batch.

    The loss is the mean over the batch, times the `weight` that this has among those of other processes.
    """
    optimizer.zero_grad()
    with autocast(precision, batch.images.device):
        taught = teachers(batch.images) if teachers else None
        logits = model(batch.images).float()
    loss = loss_of(logits, batch, recipe, taught)
    if weight != 1:
        loss = loss * weight
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    loss, logits = loss.detach(), logits.detach()
    if taught is not None:  # what is noted is comparable: the labels' part
        loss = loss_of(logits, batch, recipe) * weight
    truth = batch.labels
    if batch.others is not None and batch.shares is not None:
        truth = torch.where(batch.shares < 0.5, batch.others, truth)
    hits = (logits.argmax(dim=1) == truth).sum()
    losses = F.cross_entropy(logits, batch.labels, reduction="none") if recipe.hard_share < 1 else None
    return Learned(loss, hits, losses)


Learner = Callable[[Batch, float], Learned]


class Recording:
    """`learn` on a GPU, recorded for each size of batch as a CUDA graph and replayed from then on.

    A step of a small network is hundreds of kernels of some microseconds each, and Python starts them more slowly than a GPU ends
    them. What a batch's step finds is overwritten by the next one's. Call `warm_up` first: what libraries set up on their first use
    cannot be recorded.

        learner = Recording(model, optimizer, recipe, precision, None, [a batch of each size])

    Raises
        RuntimeError: something in the step cannot be recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        precision: str,
        teachers: Teachers | None,
        batches: Iterable[Batch],
    ) -> None:
        self.recorded: dict[int, tuple[torch.cuda.CUDAGraph, Batch, Learned]] = {}
        prepare_to_record(optimizer)
        pool = None
        for batch in batches:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                learned = learn(model, optimizer, recipe, precision, teachers, batch)
            pool = graph.pool()  # one for all, as they never run at once
            self.recorded[len(batch)] = (graph, batch, learned)

    def __call__(self, batch: Batch, weight: float = 1.0) -> Learned:
        assert weight == 1, "only a process on its own records"
        graph, place, learned = self.recorded[len(batch)]
        for own, given in zip(place.tensors(), batch.tensors(), strict=True):
            own.copy_(given)
        graph.replay()
        return learned


def prepare_to_record(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer what must have its place before a step is recorded: rates that are tensors, and momentum at 0.

    A rate that is a number would be recorded as it is, and momentum made in the first step would be made again in each.
    """
    for group in optimizer.param_groups:
        device = group["params"][0].device
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        for parameter in group["params"]:
            if group["momentum"] and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def noise_like(batch_size: int, model: Classifier, recipe: Recipe, teachers: Teachers | None) -> Batch:
    """Return a batch of random pictures with all that the recipe's batches have, on the model's device."""
    device = model.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)  # of its own: the training's draws stay where they were
    images = torch.randint(256, (batch_size, *model.input_shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(len(model.classes), (batch_size,), generator=generator).to(device)
    return Batch(
        images.to(device),
        labels,
        labels.flip(0) if recipe.cutmix else None,
        torch.ones(batch_size, device=device) if recipe.cutmix else None,
        torch.ones(batch_size, device=device) if teachers and teachers.blind else None,
    )


def warm_up(
    model: Classifier, recipe: Recipe, precision: str, sizes: Sequence[int], answers: int, teachers: Teachers | None = None
) -> bool:
    """Let a copy of the model learn noise, in batches of each size to come, and answer for some: no kernel is set up on the clock.

    There is nothing to restore. Returns whether some parameters had no part in it.
    """
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(twin, recipe)
    for size in (*sizes, sizes[-1]):
        batch = noise_like(size, model, recipe, teachers)
        try:
            learn(twin, optimizer, recipe, precision, teachers, batch)
        except Exception as error:
            if recipe.network in NETWORKS or is_exhausted(error):
                raise
            alone = " (BatchNorm cannot learn from one value a channel)" if size == 1 and "per channel" in str(error) else ""
            raise ModelError(
                f"the network {recipe.network} cannot learn from a batch of {size}{alone}: {type(error).__name__}, "
                f"{one_line(error)}; mend its forward"
                + (f", or choose another batch size, such as --set batch_size={recipe.batch_size + 1}" if size == 1 else "")
            ) from error
    if answers:
        twin.logits(noise_like(answers, model, recipe, None).images)
    return any(parameter.grad is None for parameter in twin.parameters() if parameter.requires_grad)


def compiled(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    precision: str,
    teachers: Teachers | None,
    batches: Sequence[Batch],
) -> nn.Module:
    """Return the model compiled by torch for batches of these sizes; weights, statistics and momentum are as they were.

    Raises
        GinghamError: there is no compiler, or it fails.
    """
    _forget_others(recipe.network, precision, tuple(map(len, batches)))
    made: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momentum = {
        parameter: state["momentum_buffer"].clone()
        for parameter, state in optimizer.state.items()
        if state.get("momentum_buffer") is not None
    }
    try:
        for batch in batches:
            learn(made, optimizer, recipe, precision, teachers, batch)
    except Exception as error:
        if is_exhausted(error):
            raise
        raise GinghamError(
            f"torch.compile could not compile the network {recipe.network} ({one_line(error)}); it needs a C++ compiler, and on a GPU "
            "Triton: install them, or set compile=false"
        ) from error
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(before[name])
        for parameter, state in optimizer.state.items():
            if state.get("momentum_buffer") is not None:
                state["momentum_buffer"].copy_(momentum.get(parameter, torch.zeros_like(parameter)))
    return made


@functools.lru_cache(maxsize=1)
def _forget_others(*what: object) -> None:
    """Let go of what was compiled for anything else: torch keeps eight versions of a forward and would not compile the ninth.

    The next model of the same kind takes what the last one had compiled, at once.
    """
    torch.compiler.reset()
