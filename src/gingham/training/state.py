"""Checks of the checkpoint that a run resumes from, and the optimizer state in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gingham.data.sampler import Sampler
from gingham.device import processor, usable_cores
from gingham.errors import RunError
from gingham.recipe import describe_changes
from gingham.runs.checkpoint import resume_options

Tensors = Mapping[str, torch.Tensor]


def numeric_environment(device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """Return the settings that affect floating-point rounding."""
    return {
        "device": str(device),
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }


def saved_threads(environment: Any) -> int | None:
    """Return the number of threads in a checkpoint's numeric environment, if this process may use as many."""
    threads = environment.get("threads") if isinstance(environment, dict) else None
    return threads if isinstance(threads, int) and 1 <= threads <= usable_cores() else None


def require_same_settings(metadata: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Check that a checkpoint was made with the recipe, data and teachers of this training.

    Raises
        RunError: some of them differ; the message names them and the `folder`.
    """
    if changes := describe_changes(metadata, settings):
        raise RunError(
            f"the checkpoint in {folder} was made with {changes}; resume with the same settings "
            f"({resume_options(metadata)}), or give another folder (--out)"
        )


def resume_warning(before: Any, now: Mapping[str, Any]) -> str | None:
    """Return a warning if the weights may differ in their last bits from those of an uninterrupted run, else None.

    `before` is the numeric environment in the checkpoint's metadata, which may be damaged, and `now` the current one.
    """
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} {before.get(name)} before and {value} now" for name, value in now.items() if before.get(name) != value
    ]
    if changed:
        return f"the weights will not be bit-identical to those of an uninterrupted run: {', '.join(changed)}"
    if now["device"] != "cpu":
        return (
            "the weights may differ in their last bits from those of an uninterrupted run, because "
            f"{now['device']} adds in no fixed order"
        )
    return None


def validate_state(tensors: Tensors, metadata: Mapping[str, Any], sampler: Sampler) -> None:
    """Raise a ValueError if a checkpoint's step, order, history or epochs are impossible for this training."""
    step = metadata["step"]
    if type(step) is not int or not 0 < step <= sampler.steps:
        raise ValueError(f"its step is {step!r}, not a whole number from 1 to {sampler.steps}")
    sizes = {
        "sampler.order": sampler.epoch_size(sampler.position(step - 1)[0]),
        "sampler.losses": sampler.num_images,
        "history.losses": step,
        "history.correct": step,
    }
    for name, size in sizes.items():
        dtype = torch.long if name == "sampler.order" else torch.float32
        if tensors[name].shape != (size,) or tensors[name].dtype != dtype or bool(tensors[name].isnan().any()):
            raise ValueError(f"{name} does not have {size} numbers of the right type")
    if not 0 <= int(tensors["sampler.order"].min()) <= int(tensors["sampler.order"].max()) < sampler.num_images:
        raise ValueError("sampler.order has indices of images that do not exist")
    last = 0
    for entry in metadata["epochs"]:
        measured = [entry[key] for key in ("step", "epoch", "train_loss", "train_accuracy")]
        pairs = [[entry[f"{split}_{key}"] for key in ("loss", "accuracy")] for split in ("validation", "sample")]
        evaluated = [number for pair in pairs if pair != [None, None] for number in pair]
        if any(type(number) not in (int, float) for number in measured + evaluated):
            raise ValueError("an epoch in it has a value that is not a number")
        if not last < entry["step"] <= step:
            raise ValueError(f"an epoch in it ends at step {entry['step']}, not between step {last + 1} and {step}")
        last = entry["step"]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimizer's state, named by the parameter's index, such as "0.momentum_buffer"."""
    state = optimizer.state_dict()["state"]
    named = {f"{index}.{key}": value for index, values in state.items() for key, value in values.items()}
    return {name: value for name, value in named.items() if torch.is_tensor(value)}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Load the tensors that `optimizer_tensors` returned into an optimizer."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        is_count = tensor.ndim == 0  # of steps, in AdamW
        state.setdefault(int(index), {})[key] = tensor if is_count else with_layout_of(parameters[int(index)], tensor)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_layout_of(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor in the memory format of `like`, because kernels may round differently in another."""
    if tensor.shape != like.shape:
        raise ValueError(f"it has a tensor of shape {tuple(tensor.shape)} where {tuple(like.shape)} is needed")
    return torch.empty_like(like).copy_(tensor)


def tensors_under(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, with the prefix removed from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
