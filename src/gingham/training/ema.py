"""The exponential moving average (EMA) of a model's weights.

torch's `AveragedModel` does the same, but reads a counter back at every step, for which a GPU has to be waited for.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

EMA = dict[str, torch.Tensor]  # floating-point tensors of a model's state dict, by name; empty before the first update


def update_ema(ema: EMA, model: nn.Module, step: int, decay: float) -> None:
    """Update the average of weights and statistics in place, after a step counted from 0.

    It starts at the weights after the first step, with a decay that grows from 0.1 to `decay`, so that it soon forgets
    them.
    """
    decay = min(decay, (1 + step) / (10 + step))
    weights = model.state_dict()
    if not ema:
        ema |= {name: tensor.clone() for name, tensor in weights.items() if tensor.is_floating_point()}
    torch._foreach_lerp_(list(ema.values()), [weights[name] for name in ema], 1 - decay)


@contextlib.contextmanager
def ema_weights(model: nn.Module, ema: EMA) -> Iterator[None]:
    """Temporarily swap in the EMA weights, in place. Without an average the model keeps its own."""
    state = model.state_dict()
    own = {name: state[name].clone() for name in ema}
    copy_weights(model, ema)
    try:
        yield
    finally:
        copy_weights(model, own)


def copy_weights(model: nn.Module, tensors: EMA) -> None:
    """Copy tensors into those of the same names in the model's state dict, in place."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
