"""The exponential moving average (EMA) of a model's weights.

torch's `AveragedModel` does the same, but reads a counter from the device at every step, which waits for the GPU.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

EMA = dict[str, torch.Tensor]  # floating-point tensors of a model's state dict, by name; empty before the first update


def update_ema(ema: EMA, model: nn.Module, step: int, decay: float) -> None:
    """Update the average of weights and BatchNorm statistics in place, after a step counted from 0.

    The average starts as the weights after the first step. The decay grows from 0.1 to `decay`, so that the influence
    of these early weights soon fades.
    """
    decay = min(decay, (1 + step) / (10 + step))
    weights = model.state_dict()
    if not ema:
        ema |= {name: tensor.clone() for name, tensor in weights.items() if tensor.is_floating_point()}
    torch._foreach_lerp_(list(ema.values()), [weights[name] for name in ema], 1 - decay)


@contextlib.contextmanager
def ema_weights(model: nn.Module, ema: EMA) -> Iterator[None]:
    """Temporarily swap in the EMA weights, in place. If `ema` is empty, the model keeps its own weights."""
    state = model.state_dict()
    own = {name: state[name].clone() for name in ema}
    copy_weights(model, ema)
    try:
        yield
    finally:
        copy_weights(model, own)


def copy_weights(model: nn.Module, tensors: EMA) -> None:
    """Copy tensors to the tensors with the same names in the model's state dict, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
