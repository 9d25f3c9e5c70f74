"""View: which image pixels each position of a tensor sees, and what mixing, joining and resampling make of it.

`receptive_field.py` traces the operations of a network with these.
"""

import math
from collections.abc import Iterable, Sequence
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


def feature_dim(size: int) -> Dimension:
    """Return a dimension that is not spatial."""
    return (Atom(size),)


def dim_size(dim: Dimension) -> int:
    """Return the number of positions along a dimension."""
    return math.prod(atom.size for atom in dim)


def is_spatial(dim: Iterable[Atom]) -> bool:
    """Return whether different positions along a dimension see different pixels."""
    return any(atom.axis is not None for atom in dim)


@dataclass(frozen=True)
class View:
    """The image pixels that a tensor sees. The position with atom indices i sees, along each axis, the pixels from
    `low` to `high`, moved by the sum of i * jump over the axis's atoms.

    `beside_global` is True if a side branch that sees everything (a gate fed by global pooling, a statistic over all
    positions) was left out. `before_pooling` is the view of the input of an adaptive or global pooling, as long as only
    element-wise operations follow. `attended` is True after attention, in which every position sees every other.
    """

    dims: tuple[Dimension, ...]
    low: tuple[Number, ...]
    high: tuple[Number, ...]
    beside_global: bool = False
    before_pooling: "View | None" = None
    attended: bool = False

    @property
    def sees_all(self) -> bool:
        """Return whether no dimension is spatial any more."""
        return not any(map(is_spatial, self.dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the tensor."""
        return tuple(map(dim_size, self.dims))

    @property
    def size(self) -> tuple[int, int]:
        """Return the receptive field in pixels, height and width."""
        height, width = (math.floor(high - low) + 1 for low, high in zip(self.low, self.high, strict=True))
        return height, width

    @property
    def jump(self) -> tuple[int, int] | None:
        """Return the pixels between neighbouring positions, or None without a regular grid (after flattening)."""
        jumps = []
        for axis in (0, 1):
            grids = [dim for dim in self.dims if any(atom.axis == axis for atom in dim)]
            if len(grids) != 1 or len(grids[0]) != 1:
                return None
            jumps.append(abs(round(grids[0][0].jump)))  # negative where the map is flipped
        return jumps[0], jumps[1]

    def with_dim(self, index: int, *dims: Dimension) -> "View":
        """Return the view with other dimensions, or none, in place of one."""
        index %= len(self.dims)
        return replace(self, dims=(*self.dims[:index], *dims, *self.dims[index + 1 :]))

    def stretch(self, axis: int, *moves: Number) -> "View":
        """Return the view that sees, along an axis, all that it sees when it is moved by each of some distances."""
        low, high = list(self.low), list(self.high)
        low[axis] += min(moves)
        high[axis] += max(moves)
        return replace(self, low=tuple(low), high=tuple(high))

    def mix(self, dims: Iterable[int], size: int | None = None) -> "View":
        """Return the view after all positions along these dimensions were mixed, so that they are no longer spatial.

        Each of them then has `size` positions, by default as many as before.
        """
        mixed = self
        for index in {dim % len(self.dims) for dim in dims}:
            for atom in self.dims[index]:
                if atom.axis is not None:
                    mixed = mixed.stretch(atom.axis, 0, atom.jump * (atom.size - 1))
            mixed = mixed.with_dim(index, feature_dim(self.shape[index] if size is None else size))
        return mixed if mixed.sees_all == self.sees_all else replace(mixed, before_pooling=self.before_pooling or self)

    def resample(self, dim: int, size: int, factor: Number, first: Number, last: Number) -> "View":
        """Return the view after a dimension was resampled to `size` by windows, slices, padding or upsampling.

        `factor` multiplies its jump; the first and the last pixel seen move by `first` and `last` jumps.
        """
        view = replace(self, before_pooling=None)
        (atom,) = view.dims[dim]  # a ValueError along folded positions, which is not traced
        if atom.axis is None:
            return view.with_dim(dim, feature_dim(size))
        moved = view.stretch(atom.axis, atom.jump * first, atom.jump * last)
        return moved.with_dim(dim, (Atom(size, atom.axis, atom.jump * factor),))

    def narrow(self, dim: int, start: int, step: int, size: int) -> "View":
        """Return the view of every `step`-th of `size` positions along a dimension, from `start`."""
        if size == self.shape[dim]:
            return self
        view = self.mix([dim]) if len(self.dims[dim]) > 1 else self
        return view.resample(dim, size, step, start, start)

    def features(self, shape: Sequence[int]) -> "View":
        """Return the view of a tensor without spatial dimensions that sees the same pixels."""
        return replace(self, dims=tuple(map(feature_dim, shape)))


UNKNOWN = View((), (0, 0), (0, 0))  # the view of a tensor that could not be traced


def input_view(shape: Sequence[int]) -> View:
    """Return the view of an input of shape (N, C, H, W), in which each position sees its own pixel."""
    batch, channels, height, width = shape
    dims = (feature_dim(batch), feature_dim(channels), (Atom(height, 0, 1),), (Atom(width, 1, 1),))
    return View(dims, (0, 0), (0, 0))


def join(operands: Sequence[View], shape: Sequence[int]) -> View:
    """Return the view of an element-wise combination of broadcast operands."""
    for view in operands:
        if view.attended:  # unlike a gate this cannot be left out: every position sees everything
            return view.features(shape)
    local = [view for view in operands if not view.sees_all]
    beside_global = any(view.beside_global for view in operands) or 0 < len(local) < len(operands)
    if not local:
        return replace(operands[0].features(shape), beside_global=beside_global)
    dims: list[Dimension] = []
    for index, size in enumerate(shape, start=-len(shape)):
        spatial = {view.dims[index] for view in local if len(view.dims) >= -index and is_spatial(view.dims[index])}
        candidates = {dim for dim in spatial if dim_size(dim) == size}
        if len(candidates) > 1:
            raise ValueError("branches whose positions lie at different distances")
        if candidates != spatial:  # one position is broadcast to many, like a gate
            beside_global = True
        dims.append(candidates.pop() if candidates else feature_dim(size))
    low = tuple(min(view.low[axis] for view in local) for axis in (0, 1))
    high = tuple(max(view.high[axis] for view in local) for axis in (0, 1))
    return View(tuple(dims), low, high, beside_global, local[0].before_pooling)
