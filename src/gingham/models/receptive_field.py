"""What every tensor of a forward pass sees of the picture: receptive fields of any network, op by op.

`conv_arithmetic.py` has the arithmetic of one layer. Here it is carried through everything else a network does between layers:
branches that join, reshapes, patches, strided slices, pooling to a point. A tensor's `View` says which picture pixels,
along height and width, each of its positions can see.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

Number = int | Fraction


@dataclass(frozen=True)
class Atom:
    """A factor of a dimension. Along picture axis `axis` (0 height, 1 width) a step of it moves `jump` pixels; channels
    and the batch have no axis."""

    size: int
    axis: int | None = None
    jump: Number = 0


Dimension = tuple[Atom, ...]


@dataclass(frozen=True)
class View:
    """What a tensor sees. The position with atom indices i sees, along each axis, the pixels from `low` to `high`,
    moved by the sum of i * jump over that axis' atoms.

    `beside_global` is set once a side branch that sees everything (a gate fed by global pooling, a statistic over all
    positions) was left out. `before_pooling` is the view of the map that entered an adaptive or global pooling, while
    nothing but element-wise work has been done since. `attended` is set once every position looked at every other.
    """

    dims: tuple[Dimension, ...]
    low: tuple[Number, Number]
    high: tuple[Number, Number]
    beside_global: bool = False
    before_pooling: "View | None" = None
    attended: bool = False

    @property
    def sees_all(self) -> bool:
        """True once no dimension is laid out over the picture any more."""
        return not any(atom.axis is not None for dim in self.dims for atom in dim)

    @property
    def size(self) -> tuple[int, int]:
        """The receptive field in pixels, height and width."""
        return (math.floor(self.high[0] - self.low[0]) + 1, math.floor(self.high[1] - self.low[1]) + 1)

    @property
    def jump(self) -> tuple[Number, Number] | None:
        """Pixels between neighbouring positions, or None where there is no plain grid (after flattening)."""
        jumps = []
        for axis in (0, 1):
            grids = [dim for dim in self.dims if any(atom.axis == axis for atom in dim)]
            if len(grids) != 1 or len(grids[0]) != 1:
                return None
            jumps.append(grids[0][0].jump)
        return jumps[0], jumps[1]


LOST = View((), (0, 0), (0, 0))  # of a tensor whose view could not be followed


class Unknown(Exception):  # noqa: N818  # not an error: a stop sign for the tracing of one tensor
    """An operation whose view cannot be said."""


def picture(shape: Sequence[int]) -> View:
    """Return the view of the input itself, shape (N, C, H, W): each position sees its own pixel."""
    batch, channels, height, width = shape
    dims = ((Atom(batch),), (Atom(channels),), (Atom(height, 0, 1),), (Atom(width, 1, 1),))
    return View(dims, (0, 0), (0, 0))


def trace(name: str, args: Sequence[Any], out: torch.Tensor, view_of: Callable[[Any], View | None]) -> View | None:
    """Return the view of one output of the aten operation `name`, or None where no argument sees the picture.

    LOST stands for a view that cannot be said: the operation mixes positions in a way that is not followed, or an
    argument's view was lost before.
    """
    try:
        view = _trace(name, args, out, view_of)
    except (Unknown, ValueError, IndexError):
        return LOST
    followed = view is None or view is LOST or tuple(map(_length, view.dims)) == tuple(out.shape)
    return view if followed else LOST


def _trace(name: str, args: Sequence[Any], out: torch.Tensor, view_of: Callable[[Any], View | None]) -> View | None:
    tensors = [item for arg in args for item in (arg if isinstance(arg, (list, tuple)) else [arg]) if torch.is_tensor(item)]
    seen = [(tensor, view) for tensor in tensors if (view := view_of(tensor)) is not None]
    if not seen:
        return None
    shape = tuple(out.shape)
    first = seen[0][1]
    if any(view is LOST for _, view in seen):
        return LOST
    if name in _RULES and torch.is_tensor(args[0]) and view_of(args[0]) is not None:
        return _RULES[name](first, args, shape)
    if name in ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot"):
        return _product(seen, args, shape, name)
    if name.startswith("_scaled_dot_product"):
        return _attend(first, shape)
    if name == "cat":
        return _concatenate(seen, args, shape)
    if name == "stack":
        dim = (args[1] if len(args) > 1 else 0) % len(shape)
        merged = _join([view for _, view in seen], shape[:dim] + shape[dim + 1 :])
        return replace(merged, dims=(*merged.dims[:dim], (Atom(shape[dim]),), *merged.dims[dim:]))
    if name in _MIXERS:
        raise Unknown(name)
    if all(_broadcasts(tuple(tensor.shape), shape) for tensor, _ in seen):
        return _join([view for _, view in seen], shape)
    raise Unknown(name)


# Same-shape operations that are not element-wise.
_MIXERS = {
    "cumsum",
    "cumprod",
    "roll",
    "sort",
    "argsort",
    "rot90",
    "_fft_r2c",
    "_fft_c2c",
    "gather",
    "index",
    "grid_sampler_2d",
}


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    tail = to[len(to) - len(shape) :] if len(shape) else ()
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, tail, strict=True))


def _length(dim: Dimension) -> int:
    return math.prod(atom.size for atom in dim)


def _laid_out(dim: Dimension) -> bool:
    return any(atom.axis is not None for atom in dim)


def _widen(view: View, atoms: Iterable[Atom]) -> View:
    """The view after something looked at all positions of these atoms at once."""
    low, high = list(view.low), list(view.high)
    for atom in atoms:
        if atom.axis is not None:
            reach = atom.jump * (atom.size - 1)
            low[atom.axis] += min(reach, 0)
            high[atom.axis] += max(reach, 0)
    return replace(view, low=(low[0], low[1]), high=(high[0], high[1]))


def _consume(view: View, dims: Iterable[int]) -> View:
    """The view after all positions along these dimensions were mixed; they no longer lie over the picture."""
    chosen = {dim % len(view.dims) for dim in dims}
    wider = _widen(view, (atom for dim in chosen for atom in view.dims[dim]))
    kept = tuple((Atom(_length(dim)),) if index in chosen else dim for index, dim in enumerate(view.dims))
    result = replace(wider, dims=kept)
    if result.sees_all != view.sees_all:
        result = replace(result, before_pooling=view.before_pooling or view)
    return result


def _features(view: View, shape: Sequence[int]) -> View:
    return replace(view, dims=tuple((Atom(size),) for size in shape))


def _attend(view: View, shape: Sequence[int]) -> View:
    return replace(_features(_consume(view, range(len(view.dims))), shape), attended=True)


def _join(inputs: Sequence[View], shape: Sequence[int]) -> View:
    """The view of an element-wise combination of broadcast operands."""
    for view in inputs:
        if view.attended:  # no side branch to leave out, as a gate is: from here on every position sees everything
            return _features(view, shape)
    local = [view for view in inputs if not view.sees_all]
    flagged = any(view.beside_global for view in inputs) or 0 < len(local) < len(inputs)
    if not local:
        return replace(inputs[0], dims=tuple((Atom(size),) for size in shape), beside_global=flagged)
    dims: list[Dimension] = []
    for index, size in enumerate(shape):
        options = set()
        for view in local:
            dim_index = index - (len(shape) - len(view.dims))
            if dim_index >= 0 and _laid_out(view.dims[dim_index]):
                dim = view.dims[dim_index]
                if _length(dim) == size:
                    options.add(dim)
                else:  # one position spread over many: a point that goes everywhere, like a gate
                    flagged = True
        if len(options) > 1:
            raise Unknown("branches whose positions lie at different distances")
        dims.append(options.pop() if options else (Atom(size),))
    low = tuple(min(view.low[axis] for view in local) for axis in (0, 1))
    high = tuple(max(view.high[axis] for view in local) for axis in (0, 1))
    return View(tuple(dims), (low[0], low[1]), (high[0], high[1]), flagged, local[0].before_pooling)


def _concatenate(seen: Sequence[tuple[torch.Tensor, View]], args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = (args[1] if len(args) > 1 else 0) % len(shape)
    inputs = [view for _, view in seen]
    if any(_laid_out(view.dims[dim]) for view in inputs):
        # Along the picture itself, as a class token beside the patches: no plain grid is left there.
        inputs = [_consume(view, [dim]) for view in inputs]
    shared = [replace(view, dims=(*view.dims[:dim], (Atom(1),), *view.dims[dim + 1 :])) for view in inputs]
    merged = _join(shared, (*shape[:dim], 1, *shape[dim + 1 :]))
    return replace(merged, dims=(*merged.dims[:dim], (Atom(shape[dim]),), *merged.dims[dim + 1 :]))


def _product(seen: Sequence[tuple[torch.Tensor, View]], args: Sequence[Any], shape: Sequence[int], name: str) -> View:
    left, right = (args[1], args[2]) if name.startswith(("add", "badd")) else (args[0], args[1])
    sides = [(tensor, view) for tensor, view in seen if tensor is left or tensor is right]
    if len(sides) > 1:  # attention: every position looks at every other
        return _attend(sides[0][1], shape)
    if not sides:
        raise Unknown(name)
    tensor, view = sides[0]
    if tensor is left:
        mixed = _consume(view, [-1])
        return replace(mixed, dims=(*mixed.dims[: len(shape) - 1], (Atom(shape[-1]),))[: len(shape)])
    mixed = _consume(view, [-2])
    return replace(mixed, dims=(*mixed.dims[:-2], (Atom(shape[-2]),), mixed.dims[-1]))


def pair(value: Any) -> tuple[int, int]:
    """Return (height, width) of an argument that torch takes as one number or as two."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (int(values[0]), int(values[-1]))


def _remap(view: View, shape: Sequence[int], steps: Mapping[int, tuple[Number, Number, Number]]) -> View:
    """The view after some dimensions were laid out anew, as windows, slices, padding and enlarging do.

    For each dimension `steps` has what its jump is multiplied by, and how far the first and last pixel seen move, in
    jumps. `shape` gives the new sizes.
    """
    dims, low, high = list(view.dims), list(view.low), list(view.high)
    for dim_index, (factor, first, last) in steps.items():
        index = dim_index % len(dims)
        if not _laid_out(dims[index]):
            dims[index] = (Atom(shape[index]),)
            continue
        if len(dims[index]) != 1:
            raise Unknown("an operation along folded positions")
        ((axis, jump),) = [(atom.axis, atom.jump) for atom in dims[index]]
        assert axis is not None
        ends = (jump * first, jump * last)  # a mirrored map has a negative jump
        low[axis] += min(ends)
        high[axis] += max(ends)
        new = jump * factor
        dims[index] = (Atom(shape[index], axis, int(new) if new == int(new) else new),)
    return replace(view, dims=tuple(dims), low=(low[0], low[1]), high=(high[0], high[1]), before_pooling=None)


def _convolve(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    _, weight, _, *numbers, transposed = args[:7]
    if len(shape) != 4:
        raise Unknown("a convolution that is not two-dimensional")
    mixed = _consume(view, [1])  # over-wide for grouped channels that hold folded positions
    mixed = replace(mixed, dims=(mixed.dims[0], (Atom(shape[1]),), *mixed.dims[2:]))
    steps: dict[int, tuple[Number, Number, Number]] = {}
    for dim_index, kernel in ((-2, weight.shape[-2]), (-1, weight.shape[-1])):
        stride, padding, dilation = (pair(number)[dim_index] for number in numbers)
        span = dilation * (kernel - 1)
        if transposed:
            # The widest of the phases, put where the middle one lies: outputs between inputs see different numbers of them.
            middle, reach = Fraction(2 * padding - span, 2 * stride), Fraction(span // stride, 2)
            steps[dim_index] = (Fraction(1, stride), middle - reach, middle + reach)
        else:
            steps[dim_index] = (stride, -padding, span - padding)
    return _remap(mixed, shape, steps)


def _pool(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Max and average pooling; a window over the whole map is global pooling."""
    kernel = pair(args[1])
    stride = pair(args[2]) if len(args) > 2 and args[2] else kernel
    padding = pair(args[3]) if len(args) > 3 else (0, 0)
    dilation = pair(args[4]) if len(args) > 4 else (1, 1)
    sizes = [_length(dim) for dim in view.dims[-2:]]
    if tuple(shape[-2:]) == (1, 1) and kernel[0] >= sizes[0] and kernel[1] >= sizes[1] and sizes != [1, 1]:
        return _to_point(view, shape)
    steps = {k: (stride[k], -padding[k], dilation[k] * (kernel[k] - 1) - padding[k]) for k in (-2, -1)}
    return _remap(view, shape, steps)


def _to_point(view: View, shape: Sequence[int]) -> View:
    mixed = _consume(view, (-2, -1))
    return replace(mixed, dims=(*mixed.dims[:-2], (Atom(1),), (Atom(1),)))


def _adapt(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Adaptive pooling: output i of n averages inputs floor(i m / n) to ceil((i + 1) m / n) - 1 of m."""
    if tuple(shape[-2:]) == (1, 1):
        return _to_point(view, shape)
    steps = {}
    for dim_index in (-2, -1):
        size, wanted = _length(view.dims[dim_index]), shape[dim_index]
        widest = max(-(-(i + 1) * size // wanted) - i * size // wanted for i in range(wanted))
        steps[dim_index] = (Fraction(size, wanted), 0, widest - 1)
    return replace(_remap(view, shape, steps), before_pooling=view)


def _reduce(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    every = range(len(view.dims))
    wanted = args[1] if len(args) > 1 and isinstance(args[1], (int, list, tuple)) else None
    chosen = {dim % len(view.dims) for dim in ([wanted] if isinstance(wanted, int) else wanted or every)}
    mixed = _consume(view, chosen)
    keep = len(shape) == len(view.dims)
    dims = [(Atom(1),) if index in chosen else dim for index, dim in enumerate(mixed.dims) if keep or index not in chosen]
    return replace(mixed, dims=tuple(dims))


def _regroup(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """A reshape: the factors of the old dimensions, dealt out again in order."""
    if tuple(_length(dim) for dim in view.dims) == tuple(shape):
        return view
    left = [atom for dim in view.dims for atom in dim if atom.size > 1 or atom.axis is not None]
    dims: list[Dimension] = []
    for index, size in enumerate(shape):
        last, rest = index == len(shape) - 1, size
        dim: list[Atom] = []
        while left and (rest > 1 or last or (size == 1 and left[0].size == 1 and not dim)):
            atom = left.pop(0)
            if rest <= 1 < atom.size:
                raise Unknown("a reshape of another number of elements")
            if atom.size > rest:
                inner, uneven = divmod(atom.size, rest)
                if uneven:
                    raise Unknown("a reshape that cuts unevenly")
                left.insert(0, Atom(inner, atom.axis, atom.jump))
                atom = Atom(rest, atom.axis, atom.jump * inner)
            elif rest % atom.size:
                raise Unknown("a reshape that cuts unevenly")
            rest //= atom.size
            dim.append(atom)
        plain = math.prod(atom.size for atom in dim if atom.axis is None)
        dims.append(tuple(dim) if any(atom.axis is not None for atom in dim) else (Atom(plain),))
    return replace(view, dims=tuple(dims))


def _slice(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = (args[1] if len(args) > 1 else 0) % len(view.dims)
    length = _length(view.dims[dim])
    start, step = (args[2] if len(args) > 2 else 0) or 0, args[4] if len(args) > 4 else 1
    start = min(max(start + length if start < 0 else start, 0), length)
    return _cut(view, dim, start, step, shape[dim])


def _cut(view: View, dim: int, start: int, step: int, size: int) -> View:
    atoms = view.dims[dim]
    if size == _length(atoms):
        return view
    if len(atoms) > 1 and _laid_out(atoms):
        view = _consume(view, [dim])
    return _remap(
        view, [*map(_length, view.dims[:dim]), size, *map(_length, view.dims[dim + 1 :])], {dim: (step, start, start)}
    )


def _select(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = args[1] % len(view.dims)
    index = args[2] % _length(view.dims[dim])
    cut = _cut(view, dim, index, 1, 1)
    return replace(cut, dims=(*cut.dims[:dim], *cut.dims[dim + 1 :]))


def _pad(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    return _remap(view, shape, {-1 - dim_index: (1, -before, -before) for dim_index, before in enumerate(args[1][::2])})


def _enlarge(view: View, shape: Sequence[int], blended: int) -> View:
    """Interpolation: the field keeps its size (nearest) or gains the steps `blended` (bilinear 1, bicubic 3).

    Its place is right to within half a step of the smaller map, as the phase differs from position to position.
    """
    steps = {}
    for dim_index in (-2, -1):
        scale = Fraction(_length(view.dims[dim_index]), shape[dim_index])
        shift, reach = (scale - 1) / 2, Fraction(blended, 2)
        steps[dim_index] = (scale, shift - reach, shift + reach)
    return _remap(view, shape, steps)


def _permute(view: View, order: Sequence[int]) -> View:
    return replace(view, dims=tuple(view.dims[index % len(view.dims)] for index in order))


def _transpose(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    order = list(range(len(view.dims)))
    first, second = (args[1], args[2]) if len(args) > 2 else (0, len(order) - 1)
    order[first], order[second] = order[second], order[first]
    return _permute(view, order)


def _squeeze(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    chosen = args[1] if len(args) > 1 else range(len(view.dims))
    dim_indices = {dim % len(view.dims) for dim in ([chosen] if isinstance(chosen, int) else chosen)}
    kept = [dim for index, dim in enumerate(view.dims) if index not in dim_indices or _length(dim) != 1]
    gone = [atom for index, dim in enumerate(view.dims) if index in dim_indices and _length(dim) == 1 for atom in dim]
    # A map of one position keeps its place over the picture, in whatever dimension is left.
    if kept and (axes := tuple(atom for atom in gone if atom.axis is not None)):
        kept[-1] = (*kept[-1], *axes)
    return replace(view, dims=tuple(kept))


def _unsqueeze(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    dim = args[1] % (len(view.dims) + 1)
    return replace(view, dims=(*view.dims[:dim], (Atom(1),), *view.dims[dim:]))


def _flip(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    return _remap(view, shape, {dim: (-1, shape[dim] - 1, shape[dim] - 1) for dim in args[1] if _laid_out(view.dims[dim])})


def _unfold(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Tensor.unfold: windows along one dimension, their content in a new last one."""
    dim, size, step = args[1] % len(view.dims), args[2], args[3]
    windows = _remap(view, shape, {dim: (step, 0, 0)})
    return replace(windows, dims=(*windows.dims, tuple(replace(atom, size=size) for atom in view.dims[dim])))


def _unshuffle(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    """Space to depth: each block of pixels becomes channels."""
    block = args[1]
    batch, channels, *grid = view.dims
    if any(len(dim) != 1 for dim in grid):
        raise Unknown("space to depth over folded positions")
    inner = tuple(Atom(block, dim[0].axis, dim[0].jump) for dim in grid)
    outer = tuple((Atom(dim[0].size // block, dim[0].axis, dim[0].jump * block),) for dim in grid)
    return replace(view, dims=(batch, (*channels, *inner), *outer))


def _statistic(view: View, mixed: Iterable[int]) -> View:
    """Element-wise but for a statistic over the mixed dimensions; over positions it is a global side branch."""
    positions = any(atom.axis is not None and atom.size > 1 for dim in mixed for atom in view.dims[dim])
    return replace(view, beside_global=view.beside_global or positions)


def _batch_norm(view: View, args: Sequence[Any], shape: Sequence[int]) -> View:
    training = args[5] if len(args) > 5 and isinstance(args[5], bool) else False
    return _statistic(view, range(len(view.dims)) if training else ())


_RULES: dict[str, Callable[[View, Sequence[Any], Sequence[int]], View]] = {
    "convolution": _convolve,
    "_convolution": _convolve,
    "max_pool2d_with_indices": _pool,
    "avg_pool2d": lambda view, args, shape: _pool(view, args[:4], shape),  # its fifth argument is ceil_mode
    "_adaptive_avg_pool2d": _adapt,
    "adaptive_max_pool2d": _adapt,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "logsumexp", "prod", "std", "var", "any", "all"), _reduce),
    "linalg_vector_norm": lambda view, args, shape: _reduce(view, [args[0], *args[2:]], shape),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _regroup),
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(("constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _pad),
    "upsample_nearest2d": lambda view, args, shape: _enlarge(view, shape, 0),
    "upsample_bilinear2d": lambda view, args, shape: _enlarge(view, shape, 1),
    "_upsample_bilinear2d_aa": lambda view, args, shape: _enlarge(view, shape, 1),
    "upsample_bicubic2d": lambda view, args, shape: _enlarge(view, shape, 3),
    "permute": lambda view, args, shape: _permute(view, args[1]),
    "transpose": _transpose,
    "t": _transpose,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": lambda view, args, shape: _join([view], shape),
    "flip": _flip,
    "unfold": _unfold,
    "pixel_unshuffle": _unshuffle,
    "channel_shuffle": lambda view, args, shape: view,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda view, args, shape: view,
    "native_group_norm": lambda view, args, shape: _statistic(view, range(1, len(view.dims))),
    "native_layer_norm": lambda view, args, shape: _statistic(view, range(len(view.dims) - len(args[1]), len(view.dims))),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), lambda view, args, shape: _statistic(view, [args[1]])),
}


def trace_parts(view: View, name: str, args: Sequence[Any], outs: Sequence[torch.Tensor]) -> list[View]:
    """Return the views of the parts that split, chunk or unbind cut a tensor into."""
    if view is LOST:
        return [LOST] * len(outs)
    dim = args[2] if name.startswith("split") and len(args) > 2 else args[1] if name == "unbind" and len(args) > 1 else 0
    dim %= len(view.dims)
    parts, start = [], 0
    for out in outs:
        size = 1 if name == "unbind" else out.shape[dim]
        part = _cut(view, dim, start, 1, size)
        parts.append(replace(part, dims=(*part.dims[:dim], *part.dims[dim + 1 :])) if name == "unbind" else part)
        start += size
    return parts
