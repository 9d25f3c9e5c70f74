"""View: which image pixels each position of a tensor sees, and what mixing, joining and resampling make of it.

`receptive_field.py` traces the operations of a network with these.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

Number = int | Fraction


@dataclass(frozen=True)
class Atom:
    """A factor of a dimension: one step along it moves `jump` pixels along the image's `axis` (0 height, 1 width).
    Channels and the batch have no axis."""

    size: int
    axis: int | None = None
    jump: Number = 0


Dimension = tuple[Atom, ...]


@dataclass(frozen=True)
class View:
    """The image pixels that a tensor sees. The position with atom indices i sees, along each axis, the pixels from
    `low` to `high`, moved by the sum of i * jump over the axis's atoms.

    `beside_global` is True if a side branch that sees everything (a gate fed by global pooling, a statistic over all
    positions) was left out. `before_pooling` is the view of the input of an adaptive or global pooling, as long as only
    element-wise operations follow. `attended` is True after attention, in which every position sees every other.
    """

    dims: tuple[Dimension, ...]
    low: tuple[Number, Number]
    high: tuple[Number, Number]
    beside_global: bool = False
    before_pooling: "View | None" = None
    attended: bool = False

    @property
    def sees_all(self) -> bool:
        """Return whether no dimension is spatial any more."""
        return not any(atom.axis is not None for dim in self.dims for atom in dim)

    @property
    def size(self) -> tuple[int, int]:
        """Return the receptive field in pixels, height and width."""
        return (math.floor(self.high[0] - self.low[0]) + 1, math.floor(self.high[1] - self.low[1]) + 1)

    @property
    def jump(self) -> tuple[Number, Number] | None:
        """Return the pixels between neighbouring positions, or None without a regular grid (after flattening)."""
        jumps = []
        for axis in (0, 1):
            grids = [dim for dim in self.dims if any(atom.axis == axis for atom in dim)]
            if len(grids) != 1 or len(grids[0]) != 1:
                return None
            jumps.append(grids[0][0].jump)
        return jumps[0], jumps[1]


UNKNOWN = View((), (0, 0), (0, 0))  # the view of a tensor that could not be traced


class UntraceableError(Exception):
    """An operation whose output cannot be traced: ends the tracing of one tensor, whose view is then UNKNOWN."""


def input_view(shape: Sequence[int]) -> View:
    """Return the view of an input of shape (N, C, H, W), in which each position sees its own pixel."""
    batch, channels, height, width = shape
    dims = ((Atom(batch),), (Atom(channels),), (Atom(height, 0, 1),), (Atom(width, 1, 1),))
    return View(dims, (0, 0), (0, 0))


def dim_size(dim: Dimension) -> int:
    """Return the number of positions along a dimension."""
    return math.prod(atom.size for atom in dim)


def is_spatial(dim: Dimension) -> bool:
    """Return whether different positions along a dimension see different pixels."""
    return any(atom.axis is not None for atom in dim)


def widen(view: View, atoms: Iterable[Atom]) -> View:
    """Return the view after an operation over all positions of these atoms."""
    low, high = list(view.low), list(view.high)
    for atom in atoms:
        if atom.axis is not None:
            reach = atom.jump * (atom.size - 1)
            low[atom.axis] += min(reach, 0)
            high[atom.axis] += max(reach, 0)
    return replace(view, low=(low[0], low[1]), high=(high[0], high[1]))


def mix(view: View, dims: Iterable[int]) -> View:
    """Return the view after all positions along these dimensions were mixed, so that they are no longer spatial."""
    mixed = {dim % len(view.dims) for dim in dims}
    wide = widen(view, (atom for dim in mixed for atom in view.dims[dim]))
    new_dims = tuple((Atom(dim_size(dim)),) if index in mixed else dim for index, dim in enumerate(view.dims))
    result = replace(wide, dims=new_dims)
    if result.sees_all != view.sees_all:
        result = replace(result, before_pooling=view.before_pooling or view)
    return result


def features(view: View, shape: Sequence[int]) -> View:
    """Return the view of a tensor without spatial dimensions that sees the same pixels."""
    return replace(view, dims=tuple((Atom(size),) for size in shape))


def join(operands: Sequence[View], shape: Sequence[int]) -> View:
    """Return the view of an element-wise combination of broadcast operands."""
    for view in operands:
        if view.attended:  # unlike a gate this cannot be left out: every position sees everything
            return features(view, shape)
    local = [view for view in operands if not view.sees_all]
    beside_global = any(view.beside_global for view in operands) or 0 < len(local) < len(operands)
    if not local:
        return replace(operands[0], dims=tuple((Atom(size),) for size in shape), beside_global=beside_global)
    dims: list[Dimension] = []
    for index, size in enumerate(shape):
        candidates = set()
        for view in local:
            dim_index = index - (len(shape) - len(view.dims))
            if dim_index >= 0 and is_spatial(view.dims[dim_index]):
                dim = view.dims[dim_index]
                if dim_size(dim) == size:
                    candidates.add(dim)
                else:  # one position is broadcast to many, like a gate
                    beside_global = True
        if len(candidates) > 1:
            raise UntraceableError("branches whose positions lie at different distances")
        dims.append(candidates.pop() if candidates else (Atom(size),))
    low = tuple(min(view.low[axis] for view in local) for axis in (0, 1))
    high = tuple(max(view.high[axis] for view in local) for axis in (0, 1))
    return View(tuple(dims), (low[0], low[1]), (high[0], high[1]), beside_global, local[0].before_pooling)


def remap(view: View, shape: Sequence[int], steps: Mapping[int, tuple[Number, Number, Number]]) -> View:
    """Return the view after some dimensions were resampled by windows, slices, padding or upsampling.

    For each dimension `steps` has the factor of its jump, and how far the first and the last pixel seen move, in jumps.
    `shape` has the new sizes.
    """
    dims, low, high = list(view.dims), list(view.low), list(view.high)
    for dim_index, (factor, first, last) in steps.items():
        index = dim_index % len(dims)
        if not is_spatial(dims[index]):
            dims[index] = (Atom(shape[index]),)
            continue
        if len(dims[index]) != 1:
            raise UntraceableError("an operation along folded positions")
        ((axis, jump),) = [(atom.axis, atom.jump) for atom in dims[index]]
        assert axis is not None
        ends = (jump * first, jump * last)  # a mirrored map has a negative jump
        low[axis] += min(ends)
        high[axis] += max(ends)
        new_jump = jump * factor
        dims[index] = (Atom(shape[index], axis, int(new_jump) if new_jump == int(new_jump) else new_jump),)
    return replace(view, dims=tuple(dims), low=(low[0], low[1]), high=(high[0], high[1]), before_pooling=None)


def narrow(view: View, dim: int, start: int, step: int, size: int) -> View:
    """Return the view of every `step`-th of `size` positions along a dimension, from `start`."""
    atoms = view.dims[dim]
    if size == dim_size(atoms):
        return view
    if len(atoms) > 1 and is_spatial(atoms):
        view = mix(view, [dim])
    return remap(
        view,
        [*map(dim_size, view.dims[:dim]), size, *map(dim_size, view.dims[dim + 1 :])],
        {dim: (step, start, start)},
    )
