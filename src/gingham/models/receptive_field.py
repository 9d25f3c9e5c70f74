"""Trace the receptive fields of all tensors of a forward pass, operation by operation.

`conv_arithmetic.py` has the arithmetic of one layer. This module adds everything that a network does between layers:
joining branches, reshapes, patches, strided slices, global pooling. `pixel_view.py` has the views that it traces.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from gingham.models.pixel_view import (
    UNKNOWN,
    Atom,
    Dimension,
    Number,
    UntraceableError,
    View,
    dim_size,
    features,
    is_spatial,
    join,
    mix,
    narrow,
    remap,
)


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors in a tensor or in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(values) if torch.is_tensor(leaf)]


def trace(name: str, args: Sequence[Any], out: torch.Tensor, view_of: Callable[[Any], View | None]) -> View | None:
    """Return the view of one output of the aten operation `name`, or None if no argument depends on the image.

    The view is UNKNOWN if the operation mixes positions in a way that is not traced, or if an argument's view is
    UNKNOWN.
    """
    try:
        view = _trace(name, args, out, view_of)
    except (UntraceableError, ValueError, IndexError):
        return UNKNOWN
    shape_agrees = view is None or view is UNKNOWN or tuple(map(dim_size, view.dims)) == tuple(out.shape)
    return view if shape_agrees else UNKNOWN


def _trace(name: str, args: Sequence[Any], out: torch.Tensor, view_of: Callable[[Any], View | None]) -> View | None:
    inputs = [(tensor, view) for tensor in tensors_in(args) if (view := view_of(tensor)) is not None]
    if not inputs:
        return None
    shape = tuple(out.shape)
    first = inputs[0][1]
    if any(view is UNKNOWN for _, view in inputs):
        return UNKNOWN
    if name in _TRACERS and torch.is_tensor(args[0]) and view_of(args[0]) is not None:
        return _TRACERS[name](first, args, shape)
    if name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"):
        return _matmul(inputs, args, shape, name)
    if name.startswith("_scaled_dot_product"):
        return _attention(first, shape)
    if name == "cat":
        return _concatenate(inputs, args, shape)
    if name == "stack":
        dim = (args[1] if len(args) > 1 else 0) % len(shape)
        merged = join([view for _, view in inputs], shape[:dim] + shape[dim + 1 :])
        return replace(merged, dims=(*merged.dims[:dim], (Atom(shape[dim]),), *merged.dims[dim:]))
    if name in _UNSUPPORTED:
        raise UntraceableError(name)
    if all(_broadcasts(tuple(tensor.shape), shape) for tensor, _ in inputs):
        return join([view for _, view in inputs], shape)
    raise UntraceableError(name)


# Operations that keep the shape but are not element-wise.
_UNSUPPORTED = {
    "cumsum", "cumprod", "roll", "sort", "argsort", "rot90", "_fft_r2c", "_fft_c2c", "gather", "index", "grid_sampler_2d",
}  # fmt: skip


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    tail = target[len(target) - len(shape) :] if len(shape) else ()
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def _attention(view: View, shape: Sequence[int]) -> View:
    return replace(features(mix(view, range(len(view.dims))), shape), attended=True)


def _concatenate(inputs: Sequence[tuple[torch.Tensor, View]], args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = (args[1] if len(args) > 1 else 0) % len(shape)
    operands = [view for _, view in inputs]
    if any(is_spatial(view.dims[dim]) for view in operands):
        # Along a spatial dimension, as for a class token beside patches: no regular grid is left.
        operands = [mix(view, [dim]) for view in operands]
    shared = [replace(view, dims=(*view.dims[:dim], (Atom(1),), *view.dims[dim + 1 :])) for view in operands]
    merged = join(shared, (*shape[:dim], 1, *shape[dim + 1 :]))
    return replace(merged, dims=(*merged.dims[:dim], (Atom(shape[dim]),), *merged.dims[dim + 1 :]))


def _matmul(inputs: Sequence[tuple[torch.Tensor, View]], args: Sequence[Any], shape: Sequence[int], name: str) -> View:
    left, right = (args[1], args[2]) if name.startswith(("add", "badd")) else (args[0], args[1])
    operands = [(tensor, view) for tensor, view in inputs if tensor is left or tensor is right]
    if len(operands) > 1:  # attention: every position sees every other
        return _attention(operands[0][1], shape)
    if not operands:
        raise UntraceableError(name)
    tensor, view = operands[0]
    if tensor is left:
        mixed = mix(view, [-1])
        return replace(mixed, dims=(*mixed.dims[: len(shape) - 1], (Atom(shape[-1]),))[: len(shape)])
    mixed = mix(view, [-2])
    return replace(mixed, dims=(*mixed.dims[:-2], (Atom(shape[-2]),), mixed.dims[-1]))


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) of an argument that may be one number or two."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))


def _convolve(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    _, weight, _, *numbers, transposed = args[:7]
    if len(shape) != 4:
        raise UntraceableError("a convolution that is not two-dimensional")
    mixed = mix(view, [1])  # too wide for grouped channels that hold folded positions
    mixed = replace(mixed, dims=(mixed.dims[0], (Atom(shape[1]),), *mixed.dims[2:]))
    steps: dict[int, tuple[Number, Number, Number]] = {}
    for dim_index, kernel in ((-2, weight.shape[-2]), (-1, weight.shape[-1])):
        stride, padding, dilation = (pair(number)[dim_index] for number in numbers)
        span = dilation * (kernel - 1)
        if transposed:
            # Outputs between inputs see different numbers of them: take the largest, at the centre of the middle one.
            middle, reach = Fraction(2 * padding - span, 2 * stride), Fraction(span // stride, 2)
            steps[dim_index] = (Fraction(1, stride), middle - reach, middle + reach)
        else:
            steps[dim_index] = (stride, -padding, span - padding)
    return remap(mixed, shape, steps)


def _pool(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace max or average pooling; a window over the whole map is global pooling."""
    kernel = pair(args[1])
    stride = pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = pair(args[3]) if len(args) > 3 else (0, 0)
    dilation = pair(args[4]) if len(args) > 4 else (1, 1)
    sizes = [dim_size(dim) for dim in view.dims[-2:]]
    if tuple(shape[-2:]) == (1, 1) and kernel[0] >= sizes[0] and kernel[1] >= sizes[1] and sizes != [1, 1]:
        return _global_pool(view, shape)
    steps = {k: (stride[k], -padding[k], dilation[k] * (kernel[k] - 1) - padding[k]) for k in (-2, -1)}
    return remap(view, shape, steps)


def _global_pool(view: View, shape: Sequence[int]) -> View:
    mixed = mix(view, (-2, -1))
    return replace(mixed, dims=(*mixed.dims[:-2], (Atom(1),), (Atom(1),)))


def _adaptive_pool(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace adaptive pooling: output i of n is over inputs floor(i m / n) to ceil((i + 1) m / n) - 1 of m."""
    if tuple(shape[-2:]) == (1, 1):
        return _global_pool(view, shape)
    steps = {}
    for dim_index in (-2, -1):
        size, new_size = dim_size(view.dims[dim_index]), shape[dim_index]
        largest = max(-(-(i + 1) * size // new_size) - i * size // new_size for i in range(new_size))
        steps[dim_index] = (Fraction(size, new_size), 0, largest - 1)
    return replace(remap(view, shape, steps), before_pooling=view)


def _reduce(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    all_dims = range(len(view.dims))
    argument = args[1] if len(args) > 1 and isinstance(args[1], (int, list, tuple)) else None
    reduced = {dim % len(view.dims) for dim in ([argument] if isinstance(argument, int) else argument or all_dims)}
    mixed = mix(view, reduced)
    keep = len(shape) == len(view.dims)
    dims = [
        (Atom(1),) if index in reduced else dim for index, dim in enumerate(mixed.dims) if keep or index not in reduced
    ]
    return replace(mixed, dims=tuple(dims))


def _reshape(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace a reshape: distribute the atoms of the old dimensions over the new ones, in order."""
    if tuple(dim_size(dim) for dim in view.dims) == tuple(shape):
        return view
    remaining = [atom for dim in view.dims for atom in dim if atom.size > 1 or atom.axis is not None]
    dims: list[Dimension] = []
    for index, size in enumerate(shape):
        last, rest = index == len(shape) - 1, size
        dim: list[Atom] = []
        while remaining and (rest > 1 or last or (size == 1 and remaining[0].size == 1 and not dim)):
            atom = remaining.pop(0)
            if rest <= 1 < atom.size:
                raise UntraceableError("a reshape of another number of elements")
            if atom.size > rest:
                inner, remainder = divmod(atom.size, rest)
                if remainder:
                    raise UntraceableError("a reshape that cuts unevenly")
                remaining.insert(0, Atom(inner, atom.axis, atom.jump))
                atom = Atom(rest, atom.axis, atom.jump * inner)
            elif rest % atom.size:
                raise UntraceableError("a reshape that cuts unevenly")
            rest //= atom.size
            dim.append(atom)
        num_features = math.prod(atom.size for atom in dim if atom.axis is None)
        dims.append(tuple(dim) if any(atom.axis is not None for atom in dim) else (Atom(num_features),))
    return replace(view, dims=tuple(dims))


def _slice(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = (args[1] if len(args) > 1 else 0) % len(view.dims)
    length = dim_size(view.dims[dim])
    start, step = (args[2] if len(args) > 2 else 0) or 0, args[4] if len(args) > 4 else 1
    start = min(max(start + length if start < 0 else start, 0), length)
    return narrow(view, dim, start, step, shape[dim])


def _select(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = args[1] % len(view.dims)
    index = args[2] % dim_size(view.dims[dim])
    cut = narrow(view, dim, index, 1, 1)
    return replace(cut, dims=(*cut.dims[:dim], *cut.dims[dim + 1 :]))


def _pad(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    return remap(view, shape, {-1 - dim_index: (1, -before, -before) for dim_index, before in enumerate(args[1][::2])})


def _upsample(view: View, shape: Sequence[int], extra_steps: int) -> View:
    """Trace interpolation: the field grows by `extra_steps` (nearest 0, bilinear 1, bicubic 3).

    Its position is accurate to half a step of the smaller map, because the phase differs from position to position.
    """
    steps = {}
    for dim_index in (-2, -1):
        scale = Fraction(dim_size(view.dims[dim_index]), shape[dim_index])
        shift, reach = (scale - 1) / 2, Fraction(extra_steps, 2)
        steps[dim_index] = (scale, shift - reach, shift + reach)
    return remap(view, shape, steps)


def _permute(view: View, order: Sequence[int]) -> View:
    return replace(view, dims=tuple(view.dims[index % len(view.dims)] for index in order))


def _transpose(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    order = list(range(len(view.dims)))
    first, second = (args[1], args[2]) if len(args) > 2 else (0, len(order) - 1)
    order[first], order[second] = order[second], order[first]
    return _permute(view, order)


def _squeeze(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    argument = args[1] if len(args) > 1 else range(len(view.dims))
    squeezed = {dim % len(view.dims) for dim in ([argument] if isinstance(argument, int) else argument)}
    dims = [dim for index, dim in enumerate(view.dims) if index not in squeezed or dim_size(dim) != 1]
    removed = [atom for index, dim in enumerate(view.dims) if index in squeezed and dim_size(dim) == 1 for atom in dim]
    # A map of one position keeps its location in the image, in the last remaining dimension.
    if dims and (positions := tuple(atom for atom in removed if atom.axis is not None)):
        dims[-1] = (*dims[-1], *positions)
    return replace(view, dims=tuple(dims))


def _unsqueeze(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = args[1] % (len(view.dims) + 1)
    return replace(view, dims=(*view.dims[:dim], (Atom(1),), *view.dims[dim:]))


def _flip(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    return remap(
        view, shape, {dim: (-1, shape[dim] - 1, shape[dim] - 1) for dim in args[1] if is_spatial(view.dims[dim])}
    )


def _unfold(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace Tensor.unfold: windows along one dimension, their content in a new last one."""
    dim, size, step = args[1] % len(view.dims), args[2], args[3]
    windows = remap(view, shape, {dim: (step, 0, 0)})
    return replace(windows, dims=(*windows.dims, tuple(replace(atom, size=size) for atom in view.dims[dim])))


def _pixel_unshuffle(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace space to depth: each block of pixels becomes channels."""
    block = args[1]
    batch, channels, *grid = view.dims
    if any(len(dim) != 1 for dim in grid):
        raise UntraceableError("space to depth over folded positions")
    inner = tuple(Atom(block, dim[0].axis, dim[0].jump) for dim in grid)
    outer = tuple((Atom(dim[0].size // block, dim[0].axis, dim[0].jump * block),) for dim in grid)
    return replace(view, dims=(batch, (*channels, *inner), *outer))


def _statistic(view: View, mixed: Iterable[int]) -> View:
    """Trace an element-wise operation with a statistic over the mixed dimensions: over positions, a global side branch."""
    positions = any(atom.axis is not None and atom.size > 1 for dim in mixed for atom in view.dims[dim])
    return replace(view, beside_global=view.beside_global or positions)


def _batch_norm(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    training = args[5] if len(args) > 5 and isinstance(args[5], bool) else False
    return _statistic(view, range(len(view.dims)) if training else ())


_TRACERS: dict[str, Callable[[View, Sequence[Any], Sequence[int]], View]] = {
    "convolution": _convolve,
    "_convolution": _convolve,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": lambda view, args, shape: _pool(view, args[:4], shape),  # its fifth argument is ceil_mode
    "_adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "logsumexp", "prod", "std", "var", "any", "all"), _reduce
    ),
    "linalg_vector_norm": lambda view, args, shape: _reduce(view, [args[0], *args[2:]], shape),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _reshape),
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "upsample_nearest2d": lambda view, args, shape: _upsample(view, shape, 0),
    "upsample_bilinear2d": lambda view, args, shape: _upsample(view, shape, 1),
    "_upsample_bilinear2d_aa": lambda view, args, shape: _upsample(view, shape, 1),
    "upsample_bicubic2d": lambda view, args, shape: _upsample(view, shape, 3),
    "permute": lambda view, args, shape: _permute(view, args[1]),
    "transpose": _transpose,
    "t": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": lambda view, args, shape: join([view], shape),
    "flip": _flip,
    "unfold": _unfold,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": lambda view, args, shape: view,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda view, args, shape: view,
    "native_group_norm": lambda view, args, shape: _statistic(view, range(1, len(view.dims))),
    "native_layer_norm": lambda view, args, shape: _statistic(
        view, range(len(view.dims) - len(args[1]), len(view.dims))
    ),
    **dict.fromkeys(
        ("_softmax", "_log_softmax", "_safe_softmax"), lambda view, args, shape: _statistic(view, [args[1]])
    ),
}


def trace_parts(view: View, name: str, args: Sequence[Any], outs: Sequence[torch.Tensor]) -> list[View]:
    """Return the views of the outputs of split, chunk or unbind."""
    if view is UNKNOWN:
        return [UNKNOWN] * len(outs)
    dim = (
        args[2] if name.startswith("split") and len(args) > 2 else args[1] if name == "unbind" and len(args) > 1 else 0
    )
    dim %= len(view.dims)
    parts, start = [], 0
    for out in outs:
        size = 1 if name == "unbind" else out.shape[dim]
        part = narrow(view, dim, start, 1, size)
        parts.append(replace(part, dims=(*part.dims[:dim], *part.dims[dim + 1 :])) if name == "unbind" else part)
        start += size
    return parts
