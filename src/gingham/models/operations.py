"""Observe the aten operations of a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def operation_name(operation: Any) -> str:
    """Return the name of an aten operation without its overload and underscores, which mark it as internal."""
    return str(operation.overloadpacket.__name__).strip("_")


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors in nested lists, tuples and dicts, in order; a single tensor is allowed too."""
    return [leaf for leaf in tree_leaves(values) if torch.is_tensor(leaf)]


class OperationObserver(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class has no annotations
    """Inside the block, calls `observe(operation, args, kwargs, out)` after each aten operation of this thread."""

    def __init__(self, observe: Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.observe = observe

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import its compiler, which takes a second and is not used here

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.observe(func, args, kwargs, out)
        return out
