"""Trace the receptive fields of all tensors of a forward pass, operation by operation.

`conv_arithmetic.py` has the arithmetic of one layer. This module adds everything that a network does between layers:
joining branches, reshapes, patches, strided slices, global pooling. `pixel_view.py` has the views that it traces.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from gingham.models.conv_arithmetic import Window
from gingham.models.pixel_view import UNKNOWN, Atom, Dimension, View, feature_dim, is_spatial, join

HEIGHT_AND_WIDTH = (-2, -1)  # the spatial dimensions of a feature map


@dataclass(frozen=True)
class Operation:
    """An aten operation with one of its outputs.

    `traced` has the views of its arguments by their id, of those tensors that depend on the image. `shape` is the
    output's, `earlier_shapes` are those of the outputs before it.
    """

    name: str
    args: Sequence[Any]
    traced: dict[int, View]
    shape: tuple[int, ...]
    earlier_shapes: Sequence[tuple[int, ...]] = ()

    def arg(self, index: int, default: Any) -> Any:
        """Return a positional argument, or the default if it is missing or None."""
        value = self.args[index] if len(self.args) > index else None
        return default if value is None else value

    @property
    def windows(self) -> list[Window]:
        """Return what a convolution or pooling slides along height and width, nothing for other operations."""
        if self.name == "convolution":
            numbers = [self.args[1].shape[2:], *self.args[3:6]]
        elif self.name in ("max_pool2d_with_indices", "avg_pool2d"):
            dilation = self.arg(4, 1) if self.name == "max_pool2d_with_indices" else 1
            numbers = [self.args[1], self.arg(2, []) or self.args[1], self.arg(3, 0), dilation]
        else:
            return []
        pairs = [[number] if isinstance(number, int) else number for number in numbers]
        return [Window(*(pair[axis] for pair in pairs)) for axis in (0, -1)]


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors in a tensor or in nested lists, tuples and dicts, in order."""
    return [leaf for leaf in tree_leaves(values) if torch.is_tensor(leaf)]


def trace(operation: Operation) -> View:
    """Return the view of the output of an operation of which at least one argument depends on the image.

    The view is UNKNOWN if the operation mixes positions in a way that is not traced, or if an argument's view is
    UNKNOWN.
    """
    operands = list(operation.traced.values())
    try:
        view = UNKNOWN if any(view is UNKNOWN for view in operands) else _trace(operation, operands)
    except (ValueError, IndexError):  # not traced
        return UNKNOWN
    return view if view.shape == operation.shape else UNKNOWN


def _trace(operation: Operation, operands: Sequence[View]) -> View:
    name, shape = operation.name, operation.shape
    if name in ("cat", "stack"):
        return _concatenate(operands, operation)
    if name in _MATRIX_PRODUCTS:
        return _matmul(operation)
    if name.startswith("scaled_dot_product"):
        return _attention(operands[0], shape)
    if name in _TRACERS and id(operation.args[0]) in operation.traced:
        return _TRACERS[name](operands[0], operation)
    if name in _UNSUPPORTED or not all(_broadcasts(view.shape, shape) for view in operands):
        raise ValueError(name)
    return join(operands, shape)


_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"}

# Operations that keep the shape but are not element-wise.
_UNSUPPORTED = {
    "cumsum", "cumprod", "roll", "sort", "argsort", "rot90", "fft_r2c", "fft_c2c", "gather", "index", "grid_sampler_2d",
}  # fmt: skip


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    sizes = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, new_size) for size, new_size in sizes)


def _attention(view: View, shape: Sequence[int]) -> View:
    return replace(view.mix(range(len(view.dims))).features(shape), attended=True)


def _concatenate(operands: Sequence[View], operation: Operation) -> View:
    shape = operation.shape
    dim = operation.arg(1, 0) % len(shape)
    if operation.name == "stack":
        operands = [_insert(view, dim) for view in operands]
    # Along a spatial dimension, as for a class token beside patches, no regular grid is left.
    merged = join([view.mix([dim], 1) for view in operands], (*shape[:dim], 1, *shape[dim + 1 :]))
    return merged.with_dim(dim, feature_dim(shape[dim]))


def _insert(view: View, dim: int) -> View:
    return replace(view, dims=(*view.dims[:dim], feature_dim(1), *view.dims[dim:]))


def _matmul(operation: Operation) -> View:
    first, shape = 1 if operation.name.startswith(("add", "badd")) else 0, operation.shape
    left, right = (operation.traced.get(id(factor)) for factor in operation.args[first : first + 2])
    if left is not None and right is not None:  # attention: every position sees every other
        return _attention(left, shape)
    if left is not None:
        mixed = left.mix([-1], shape[-1])
        return replace(mixed, dims=mixed.dims[: len(shape)])  # a vector's product has no last dimension
    if right is not None:
        return right.mix([-2], shape[-2])
    raise ValueError(operation.name)


def _convolve(view: View, operation: Operation) -> View:
    windows, shape, transposed = operation.windows, operation.shape, operation.args[6]
    if len(shape) != 4:
        raise ValueError("a convolution that is not two-dimensional")
    mixed = view.mix([1], shape[1])  # too wide for grouped channels that hold folded positions
    if not transposed:
        return _slide(mixed, windows, shape)
    for dim, window in zip(HEIGHT_AND_WIDTH, windows, strict=True):
        # Outputs between inputs see different numbers of them: take the largest, at the centre of the middle one.
        span = window.span - 1
        middle = Fraction(2 * window.padding - span, 2 * window.stride)
        reach = Fraction(span // window.stride, 2)
        mixed = mixed.resample(dim, shape[dim], Fraction(1, window.stride), middle - reach, middle + reach)
    return mixed


def _slide(view: View, windows: Sequence[Window], shape: Sequence[int]) -> View:
    for dim, window in zip(HEIGHT_AND_WIDTH, windows, strict=True):
        view = view.resample(dim, shape[dim], window.stride, -window.padding, window.span - 1 - window.padding)
    return view


def _pool(view: View, operation: Operation) -> View:
    """Trace max or average pooling; a window over the whole map is global pooling."""
    windows, sizes = operation.windows, view.shape[-2:]
    covers = all(window.kernel >= size for window, size in zip(windows, sizes, strict=True))
    if operation.shape[-2:] == (1, 1) and covers and sizes != (1, 1):
        return view.mix(HEIGHT_AND_WIDTH, 1)
    return _slide(view, windows, operation.shape)


def _adaptive_pool(view: View, operation: Operation) -> View:
    """Trace adaptive pooling: output i of n is over inputs floor(i m / n) to ceil((i + 1) m / n) - 1 of m."""
    if operation.shape[-2:] == (1, 1):
        return view.mix(HEIGHT_AND_WIDTH, 1)
    pooled = view
    for dim in HEIGHT_AND_WIDTH:
        size, new_size = view.shape[dim], operation.shape[dim]
        largest = max(-(-(i + 1) * size // new_size) - i * size // new_size for i in range(new_size))
        pooled = pooled.resample(dim, new_size, Fraction(size, new_size), 0, largest - 1)
    return replace(pooled, before_pooling=view)


def _reduce(view: View, operation: Operation, index: int = 1) -> View:
    named, num_dims = operation.arg(index, []), len(view.dims)
    reduced = {dim % num_dims for dim in ([named] if isinstance(named, int) else named)} or set(range(num_dims))
    mixed = view.mix(reduced, 1)
    if len(operation.shape) == num_dims:
        return mixed
    return replace(mixed, dims=tuple(dim for index, dim in enumerate(mixed.dims) if index not in reduced))


def _reshape(view: View, shape: Sequence[int]) -> View:
    """Trace a reshape: distribute the atoms of the old dimensions over the new ones, in order."""
    if view.shape == shape:
        return view
    remaining = [atom for dim in view.dims for atom in dim if atom.size > 1 or atom.axis is not None]
    dims: list[Dimension] = []
    for index, size in enumerate(shape):
        last, rest = index == len(shape) - 1, size
        atoms: list[Atom] = []
        while remaining and (rest > 1 or last or (size == 1 and remaining[0].size == 1 and not atoms)):
            atom = remaining.pop(0)
            taken = min(atom.size, rest)
            if rest <= 1 < atom.size or max(atom.size, rest) % taken:
                raise ValueError("a reshape that cuts unevenly")
            inner = atom.size // taken
            if inner > 1:
                remaining.insert(0, replace(atom, size=inner))
            atoms.append(Atom(taken, atom.axis, atom.jump * inner))
            rest //= taken
        dims.append(tuple(atoms) if is_spatial(atoms) else feature_dim(size))
    return replace(view, dims=tuple(dims))


def _slice(view: View, operation: Operation) -> View:
    dim = operation.arg(1, 0) % len(view.dims)
    start, _, step = slice(operation.arg(2, 0), None, operation.arg(4, 1)).indices(view.shape[dim])
    return view.narrow(dim, start, step, operation.shape[dim])


def _split(view: View, operation: Operation) -> View:
    dim = operation.arg(2, 0) % len(view.dims)
    start = sum(shape[dim] for shape in operation.earlier_shapes)
    return view.narrow(dim, start, 1, operation.shape[dim])


def _select(view: View, dim: int, index: int) -> View:
    dim %= len(view.dims)
    return view.narrow(dim, index % view.shape[dim], 1, 1).with_dim(dim)


def _pad(view: View, operation: Operation) -> View:
    for dim, before in enumerate(operation.args[1][::2], start=1):
        view = view.resample(-dim, operation.shape[-dim], 1, -before, -before)
    return view


def _upsample(view: View, operation: Operation, extra_steps: int) -> View:
    """Trace interpolation: the field grows by `extra_steps`.

    Its position is accurate to half a step of the smaller map, because the phase differs from position to position.
    """
    for dim in HEIGHT_AND_WIDTH:
        size = operation.shape[dim]
        scale = Fraction(view.shape[dim], size)
        shift, reach = (scale - 1) / 2, Fraction(extra_steps, 2)
        view = view.resample(dim, size, scale, shift - reach, shift + reach)
    return view


def _permute(view: View, order: Sequence[int]) -> View:
    return replace(view, dims=tuple(view.dims[index] for index in order))


def _transpose(view: View, operation: Operation) -> View:
    dims = list(view.dims)
    first, second = operation.arg(1, 0), operation.arg(2, -1)
    dims[first], dims[second] = dims[second], dims[first]
    return replace(view, dims=tuple(dims))


def _flip(view: View, operation: Operation) -> View:
    for dim in operation.args[1]:
        size = operation.shape[dim]
        view = view.resample(dim, size, -1, size - 1, size - 1)
    return view


def _unfold(view: View, operation: Operation) -> View:
    """Trace Tensor.unfold: windows along one dimension, their content in a new last one."""
    dim, size, step = operation.args[1] % len(view.dims), *operation.args[2:4]
    windows = view.resample(dim, operation.shape[dim], step, 0, 0)
    return replace(windows, dims=(*windows.dims, tuple(replace(atom, size=size) for atom in view.dims[dim])))


def _pixel_unshuffle(view: View, operation: Operation) -> View:
    """Trace space to depth: each block of pixels becomes channels."""
    batch, channels, height, width = view.shape
    block = operation.args[1]
    blocks = _reshape(view, (batch, channels, height // block, block, width // block, block))
    return _reshape(_permute(blocks, (0, 1, 3, 5, 2, 4)), operation.shape)


def _statistic(view: View, mixed: Iterable[int]) -> View:
    """Trace an element-wise operation with a statistic over some dimensions: over positions, a global side branch."""
    positions = any(atom.axis is not None and atom.size > 1 for dim in mixed for atom in view.dims[dim])
    return replace(view, beside_global=view.beside_global or positions)


# Operations on their first argument. All others are element-wise if the shapes allow it.
_TRACERS_BY_NAMES: dict[str, Callable[[View, Operation], View]] = {
    "convolution": _convolve,
    "max_pool2d_with_indices avg_pool2d": _pool,
    "adaptive_avg_pool2d adaptive_max_pool2d": _adaptive_pool,
    "mean sum amax amin max min logsumexp prod std var any all": _reduce,
    "linalg_vector_norm": partial(_reduce, index=2),
    "view unsafe_view reshape reshape_alias squeeze": lambda view, operation: _reshape(view, operation.shape),
    "slice": _slice,
    "split split_with_sizes": _split,
    "select": lambda view, operation: _select(view, *operation.args[1:3]),
    "unbind": lambda view, operation: _select(view, operation.arg(1, 0), len(operation.earlier_shapes)),
    "constant_pad_nd reflection_pad2d replication_pad2d": _pad,
    "upsample_nearest2d": partial(_upsample, extra_steps=0),
    "upsample_bilinear2d upsample_bilinear2d_aa": partial(_upsample, extra_steps=1),
    "upsample_bicubic2d": partial(_upsample, extra_steps=3),
    "permute": lambda view, operation: _permute(view, operation.args[1]),
    "transpose t": _transpose,
    "unsqueeze": lambda view, operation: _insert(view, operation.args[1] % len(operation.shape)),
    "flip": _flip,
    "unfold": _unfold,
    "pixel_unshuffle": _pixel_unshuffle,
    "native_batch_norm": lambda view, operation: _statistic(view, range(len(view.dims)) if operation.args[5] else ()),
    "native_group_norm": lambda view, operation: _statistic(view, range(1, len(view.dims))),
    "native_layer_norm": lambda view, operation: _statistic(view, range(-len(operation.args[1]), 0)),
    "softmax log_softmax safe_softmax": lambda view, operation: _statistic(view, [operation.args[1]]),
}
_TRACERS = {name: tracer for names, tracer in _TRACERS_BY_NAMES.items() for name in names.split()}
