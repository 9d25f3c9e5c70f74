"""Trace the receptive fields of all tensors of a forward pass, operation by operation.

The `View` of a tensor has the image pixels that each of its positions sees. These coordinates are tensors themselves,
so a reshape, slice or transposition is simply applied to them. Padding extends the coordinates beyond the image, so
that fields are not cut off at its borders.

`conv_arithmetic.py` has the arithmetic of one layer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

import torch

from gingham.models.conv_arithmetic import Window, read_windows
from gingham.models.operations import operation_name, tensors_in


@dataclass(frozen=True, eq=False)
class Span:
    """The image pixels that a tensor's positions see along height or width: those from `low` to `high`.

    These coordinates are float64 and broadcast to the tensor's shape. They have size 1 in a dimension along which they
    do not change. `extent` is the largest distance from `low` to `high`. `jump` is the number of pixels between
    neighbouring positions, or None if they do not form a regular grid.
    """

    low: torch.Tensor
    high: torch.Tensor
    extent: float
    jump: float | None

    @property
    def size(self) -> int:
        """Return the receptive field in pixels; if positions differ, the largest."""
        return math.floor(self.extent + 1e-6) + 1

    @property
    def is_single(self) -> bool:
        """Return whether all positions see the same pixels."""
        return self.low.numel() == self.high.numel() == 1

    def changes_along(self, dims: Iterable[int]) -> bool:
        """Return whether positions along these dimensions see different pixels."""
        return any(coordinates.size(dim) > 1 for coordinates in (self.low, self.high) for dim in dims)


@dataclass(frozen=True, eq=False)
class View:
    """The image pixels that the positions of a tensor of this shape see.

    `spans` has the pixels along height and along width; it is empty if every position sees the whole image.
    `beside_global` is True if a side branch that sees the whole image (a gate after global pooling, a statistic over
    all positions) was left out. `before_pooling` is the view of the input of an adaptive or global pooling, until
    another window follows. `attended` is True after attention, in which every position sees every other.
    """

    shape: tuple[int, ...]
    spans: tuple[Span, ...]
    beside_global: bool = False
    before_pooling: "View | None" = None
    attended: bool = False

    @property
    def sees_all(self) -> bool:
        """Return whether every position sees the whole image."""
        return not self.spans

    @property
    def jump(self) -> tuple[int, ...] | None:
        """Return the pixels between neighbouring positions along height and width, or None without a regular grid."""
        jumps = [abs(round(span.jump)) for span in self.spans if span.jump is not None]  # negative if mirrored
        return tuple(jumps) if len(jumps) == 2 else None


UNKNOWN = View((), ())  # the view of a tensor that could not be traced


def input_view(shape: Sequence[int]) -> View:
    """Return the view of an input of shape (N, C, H, W), in which each position sees only its own pixel."""
    rows, columns = _count_along(-2, shape[-2])[None, None], _count_along(-1, shape[-1])[None, None, None]
    return View(tuple(shape), (Span(rows, rows, 0, 1), Span(columns, columns, 0, 1)))


def trace(
    operation: Callable[..., Any], args: Sequence[Any], outputs: Sequence[torch.Tensor], view_by_id: Mapping[int, View]
) -> list[View]:
    """Return the view of each output of an aten operation.

    `view_by_id` has the views of the arguments that depend on the image, at least one. The result is UNKNOWN if one of
    them is, or if the operation mixes positions in a way that cannot be traced.
    """
    operands, name = list(view_by_id.values()), operation_name(operation)
    try:
        if any(view is UNKNOWN for view in operands):
            traced = [UNKNOWN] * len(outputs)
        elif name in _REARRANGING and not operands[0].sees_all:
            traced = _rearrange(operands[0], lambda coordinates: operation(coordinates, *args[1:]))
        else:
            traced = [_trace_output(name, args, tuple(output.shape), view_by_id) for output in outputs]
    except (RuntimeError, IndexError):  # cannot be traced, or cannot be applied to these coordinates
        traced = [UNKNOWN] * len(outputs)
    return [_fit(view, tuple(output.shape)) for view, output in zip(traced, outputs, strict=True)]


def _trace_output(name: str, args: Sequence[Any], shape: tuple[int, ...], view_by_id: Mapping[int, View]) -> View:
    operands, windows = list(view_by_id.values()), read_windows(name, args)
    if name.startswith("scaled_dot_product"):
        return _attend(operands[0])
    if name in _MATRIX_PRODUCTS:
        left, right = (view_by_id.get(id(factor)) for factor in tensors_in(args)[-2:])
        if left and right:
            return _attend(left)
        if left:
            return _mix(left, [-1])
        if right:
            return _mix(right, [-2])
    if name in _UNSUPPORTED or (name == "convolution" and not windows):
        raise NotImplementedError(name)
    if all(view.sees_all for view in operands):
        return _join(operands)
    if name in ("cat", "stack"):
        # After joining along a spatial dimension, such as a class token with patches, there is no regular grid.
        dim = (args[1] if len(args) > 1 else 0) % len(shape)
        if name == "stack":
            insert = partial(torch.unsqueeze, dim=dim)
            operands = [view if view.sees_all else _rearrange(view, insert)[0] for view in operands]
        return _join([_mix(view, [dim]) for view in operands])
    if id(args[0]) in view_by_id:
        if windows:
            return _slide_windows(operands[0], name, windows, args, shape)
        if name in _TRACERS:
            return _TRACERS[name](operands[0], args, shape)
    if not all(_broadcasts(view.shape, shape) for view in operands):
        raise NotImplementedError(name)
    return _join(operands)


def _fit(view: View, shape: tuple[int, ...]) -> View:
    """Return the view with this shape, or UNKNOWN if its coordinates do not fit the shape."""
    sizes = [coordinates.shape for span in view.spans for coordinates in (span.low, span.high)]
    fits = view is not UNKNOWN and all(len(size) == len(shape) and _broadcasts(size, shape) for size in sizes)
    return replace(view, shape=shape) if fits else UNKNOWN


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    sizes = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(size in (1, new_size) for size, new_size in sizes)


def _count_along(dim: int, size: int) -> torch.Tensor:
    """Return 0, 1, 2, ... along a dimension that is counted from the end (-1 is the last)."""
    return torch.arange(size, dtype=torch.float64, device="cpu").reshape(-1, *[1] * (-1 - dim))


def _make_span(low: torch.Tensor, high: torch.Tensor, single_jump: float | None) -> Span:
    """Return the span of these coordinates, with `single_jump` if they are of one position and do not show the jump."""
    low, high = _compress(low), _compress(high)
    jump = None
    if low.numel() == high.numel() == 1:
        jump = single_jump
    elif low.shape == high.shape and low.numel() == max(low.shape):  # they change along only one dimension
        steps = torch.stack([low.flatten().diff(), high.flatten().diff()])
        smallest, largest = steps.min().item(), steps.max().item()
        jump = smallest if largest - smallest < 1e-6 else None
    return Span(low, high, (high - low).max().item(), jump)


def _compress(coordinates: torch.Tensor) -> torch.Tensor:
    """Return the coordinates with size 1 in every dimension along which they do not change."""
    for dim, size in enumerate(coordinates.shape):
        first = coordinates.narrow(dim, 0, 1)
        if coordinates.stride(dim) == 0 or (size > 1 and torch.equal(coordinates, first.expand_as(coordinates))):
            coordinates = first
    return coordinates


def _rearrange(view: View, move: Callable[[torch.Tensor], Any]) -> list[View]:
    """Return the views of the outputs of an operation that only moves positions, by applying it to the coordinates."""
    columns = []
    for span in view.spans:
        lows, highs = (tensors_in(move(x.expand(view.shape))) for x in (span.low, span.high))
        # Flattening destroys the grid. Joining the parts of split channels, as in ShuffleNet, does not.
        jump = span.jump if lows[0].dim() >= min(4, len(view.shape)) else None
        columns.append([_make_span(low, high, jump) for low, high in zip(lows, highs, strict=True)])
    return [replace(view, spans=spans) for spans in zip(*columns, strict=True)]


def _reshape(view: View, _args: Sequence[Any], shape: Sequence[int]) -> View:
    def move(coordinates: torch.Tensor) -> torch.Tensor:
        if coordinates.stride(-1) == 0 and view.shape[-1] == shape[-1]:  # channels last, as for a Linear; avoids a copy
            return coordinates[..., 0].reshape(*shape[:-1], 1)
        return coordinates.reshape(shape)

    return _rearrange(view, move)[0]


def _mix(view: View, dims: list[int]) -> View:
    """Return the view after all positions along these dimensions were combined into one."""
    if not any(span.changes_along(dims) for span in view.spans):
        return view
    spans = []
    for span in view.spans:
        low, high = span.low.amin(dims, keepdim=True), span.high.amax(dims, keepdim=True)
        spans.append(_make_span(low, high, span.jump if span.is_single else None))
    return _see_all(view) if all(span.is_single for span in spans) else replace(view, spans=tuple(spans))


def _see_all(view: View) -> View:
    """Return the view after global pooling."""
    return replace(view, spans=(), before_pooling=view.before_pooling or view)


def _attend(view: View) -> View:
    """Return the view after attention: every position sees every other."""
    return replace(_see_all(view), attended=True)


def _statistic(view: View, dims: Iterable[int]) -> View:
    """Trace normalisation by a statistic over some dimensions. If it is over positions, it is a global side branch."""
    return replace(view, beside_global=view.beside_global or any(span.changes_along(dims) for span in view.spans))


def _join(operands: Sequence[View]) -> View:
    """Return the view of an element-wise combination of broadcast operands."""
    if len(operands) == 1:
        return operands[0]
    for view in operands:
        if view.attended:  # unlike a gate, attention cannot be left out: every position sees every other
            return view
    local = [view for view in operands if not view.sees_all] or operands
    spans = []
    for axis in zip(*(view.spans for view in local), strict=True):
        low = reduce(torch.minimum, [span.low for span in axis])
        high = reduce(torch.maximum, [span.high for span in axis])
        spans.append(_make_span(low, high, next((span.jump for span in axis if span.jump is not None), None)))
    beside_global = len(local) < len(operands) or any(view.beside_global for view in operands)
    return replace(local[0], spans=tuple(spans), beside_global=beside_global)


def _slide(view: View, shape: Sequence[int], reaches: Sequence[tuple[float, float, float]]) -> View:
    """Return the view after sliding windows, padding or interpolation with an output of this shape.

    `reaches` has (stride, first, last) for each of the last dimensions: output i sees the positions from
    i·stride + first to i·stride + last.
    """
    spans = list(view.spans)
    for dim, (stride, first, last) in zip(range(-len(reaches), 0), reaches, strict=True):
        if (stride, first, last, shape[dim]) == (1, 0, 0, view.shape[dim]):
            continue
        for axis, span in enumerate(spans):
            if not span.changes_along([dim]) and not (span.is_single and span.jump and axis == dim + 2):
                continue  # this span does not change along `dim`
            if span.jump is None:
                raise NotImplementedError("windows over positions without a regular grid")
            starts = span.jump * stride * _count_along(dim, shape[dim])
            nearest, farthest = sorted([span.jump * first, span.jump * last])  # the jump is negative if mirrored
            low = span.low.narrow(dim, 0, 1) + (starts + nearest)
            high = span.high.narrow(dim, 0, 1) + (starts + farthest)
            spans[axis] = Span(low, high, span.extent + farthest - nearest, span.jump * stride)
    return replace(view, spans=tuple(spans), before_pooling=None)


def _slide_windows(view: View, name: str, windows: Sequence[Window], args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace a convolution, max-pooling or average pooling. A pooling window over the whole map is global pooling."""
    reaches: list[tuple[float, float, float]] = [(w.stride, -w.padding, w.span - 1 - w.padding) for w in windows]
    if name == "convolution":
        view = _mix(view, [1])  # too wide a field for grouped channels that contain folded positions
        if args[6]:
            reaches = [_transpose(*reach) for reach in reaches]
    else:
        sizes = view.shape[-2:]
        covered = all(window.kernel >= size for window, size in zip(windows, sizes, strict=True))
        if covered and shape[-2:] == (1, 1) and sizes != (1, 1):
            return _see_all(view)
    return _slide(view, shape, reaches)


def _transpose(stride: float, first: float, last: float) -> tuple[float, float, float]:
    # Outputs see different numbers of inputs. Take the largest number, centred on the middle input.
    middle, half = -(first + last) / (2 * stride), (last - first) // stride / 2
    return 1 / stride, middle - half, middle + half


def _adaptive_pool(view: View, _args: Sequence[Any], shape: Sequence[int]) -> View:
    """Trace adaptive pooling: output i of n sees the inputs floor(i m / n) to ceil((i + 1) m / n) - 1 of m."""
    if shape[-2:] == (1, 1):
        return _see_all(view)
    reaches = []
    for size, new_size in zip(view.shape[-2:], shape[-2:], strict=True):
        largest = max(-(-(i + 1) * size // new_size) - i * size // new_size for i in range(new_size))
        reaches.append((size / new_size, 0, largest - 1))
    return replace(_slide(view, shape, reaches), before_pooling=view)


def _upsample(view: View, _args: Sequence[Any], shape: Sequence[int], extra: int) -> View:
    """Trace interpolation, which enlarges the field by `extra` positions (nearest 0, bilinear 1, bicubic 3).

    The field's location is accurate to half a step of the smaller map, because the phase varies between positions.
    """
    scales = [size / new_size for size, new_size in zip(view.shape[-2:], shape[-2:], strict=True)]
    return _slide(view, shape, [(scale, (scale - 1 - extra) / 2, (scale - 1 + extra) / 2) for scale in scales])


def _pad(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    return _slide(view, shape, [(1, -before, -before) for before in reversed(args[1][::2])])


def _reduce(view: View, args: Sequence[Any], shape: Sequence[int], index: int = 1) -> View:
    named = args[index] if len(args) > index else None
    dims = [named] if isinstance(named, int) else named or list(range(len(view.shape)))
    mixed = _mix(view, dims)
    if mixed.sees_all or len(shape) == len(view.shape):
        return mixed
    return _rearrange(mixed, lambda coordinates: coordinates.amin(dims))[0]


# Operations on their first argument that are not windows. Any other operation is element-wise if the shapes allow it.
_TRACERS_BY_NAMES: dict[str, Callable[[View, Sequence[Any], Sequence[int]], View]] = {
    "adaptive_avg_pool2d adaptive_max_pool2d": _adaptive_pool,
    "mean sum amax amin max min logsumexp prod std var any all": _reduce,
    "view unsafe_view reshape_alias": _reshape,
    "linalg_vector_norm": partial(_reduce, index=2),
    "constant_pad_nd reflection_pad2d replication_pad2d": _pad,
    "upsample_nearest2d": partial(_upsample, extra=0),
    "upsample_bilinear2d upsample_bilinear2d_aa": partial(_upsample, extra=1),
    "upsample_bicubic2d": partial(_upsample, extra=3),
    "native_batch_norm": lambda view, args, shape: _statistic(view, range(len(shape)) if args[5] else ()),
    "native_group_norm": lambda view, _args, shape: _statistic(view, range(1, len(shape))),
    "native_layer_norm": lambda view, args, _shape: _statistic(view, range(-len(args[1]), 0)),
    "softmax log_softmax safe_softmax": lambda view, args, _shape: _statistic(view, [args[1]]),
}
_TRACERS = {name: tracer for names, tracer in _TRACERS_BY_NAMES.items() for name in names.split()}
# Operations that only move positions.
_REARRANGING = {
    "slice", "select", "split", "split_with_sizes", "unbind", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "flip", "unfold", "pixel_unshuffle", "pixel_shuffle", "channel_shuffle",
}  # fmt: skip
_MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv"}
# Operations that may keep the shape but are not element-wise.
_UNSUPPORTED = {
    "cumsum", "cumprod", "roll", "sort", "argsort", "rot90", "fft_r2c", "fft_c2c", "gather", "index", "grid_sampler_2d",
}  # fmt: skip
