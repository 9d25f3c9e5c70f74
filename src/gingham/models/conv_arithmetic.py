"""Compute the output size and receptive field of one layer, along one axis.

Sources: Dumoulin & Visin, "A guide to convolution arithmetic for deep learning" (arXiv 1603.07285), and Araujo,
Norris & Sim, "Computing receptive fields of convolutional neural networks" (distill.pub, 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling along one axis. `ceil_mode` rounds the output size up."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    ceil_mode: bool = False

    @property
    def span(self) -> int:
        """Return the number of input positions from the window's first to its last: dilation (kernel - 1) + 1."""
        return self.dilation * (self.kernel - 1) + 1


@dataclass(frozen=True)
class Field:
    """The receptive field of an output position: `size` input pixels, `jump` pixels from the next position's."""

    size: int = 1
    jump: int = 1

    def through(self, window: Window) -> "Field":
        """Return the receptive field after one more layer.

        >>> Field(size=8, jump=2).through(Window(kernel=3))
        Field(size=12, jump=2)
        """
        return Field(self.size + (window.span - 1) * self.jump, self.jump * window.stride)


def output_size(size: int, window: Window) -> int:
    """Return floor((in + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, or with ceil if `ceil_mode` is set.

    The result is less than 1 if the dilated window is wider than the padded input.

    >>> output_size(28, Window(kernel=3)), output_size(22, Window(kernel=2, stride=2))
    (26, 11)
    """
    last_start = size + 2 * window.padding - window.span
    steps = -(-last_start // window.stride) if window.ceil_mode else last_start // window.stride
    # With ceil_mode the last window must start inside the input or its left padding (as in torch.nn.MaxPool2d).
    if window.ceil_mode and steps * window.stride >= size + window.padding:
        steps -= 1
    return steps + 1


# The arguments of aten's pooling operations after the input, in order. The last ones may be missing.
_POOLINGS = {
    "max_pool2d_with_indices": ("kernel", "stride", "padding", "dilation", "ceil_mode"),
    "avg_pool2d": ("kernel", "stride", "padding", "ceil_mode"),
}


def read_windows(operation: str, args: Sequence[Any]) -> list[Window]:
    """Return the windows of a 2D convolution or pooling along height and width, none for other aten operations."""
    if operation == "convolution" and args[1].dim() == 4:
        values = {"kernel": args[1].shape[2:], "stride": args[3], "padding": args[4], "dilation": args[5]}
    elif operation in _POOLINGS:
        values = dict(zip(_POOLINGS[operation], args[1:], strict=False))
        values["stride"] = values.get("stride") or values["kernel"]
    else:
        return []
    # A single number applies to both axes.
    pairs: dict[str, Any] = {name: [value] if isinstance(value, int) else value for name, value in values.items()}
    return [Window(**{name: pair[axis] for name, pair in pairs.items()}) for axis in (0, -1)]
