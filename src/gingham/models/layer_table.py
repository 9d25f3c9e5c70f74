"""The layer table of a network: its rows, its totals, and the formulas of each layer as text."""

from dataclasses import dataclass, field
from typing import Any

from gingham.display import Displayable
from gingham.errors import ModelError, suggest
from gingham.models.conv_arithmetic import Field, Window, output_size
from gingham.text import count, render_table

Pixels = int | list[int] | str | None  # an int, [height, width] if they differ, "all", or None if unknown


_SIZE = "((in + 2 padding − dilation (kernel − 1) − 1) / stride) + 1"
_FIELD = "field before + dilation (kernel − 1) × jump before"
_JUMP = "jump before × stride"


@dataclass(frozen=True)
class Slide:
    """A window along one axis, the size of its input, and the receptive field of each input position if known."""

    window: Window
    size: int
    before: Field | None

    @property
    def out_size(self) -> int:
        return output_size(self.size, self.window)

    @property
    def rounding(self) -> str:
        return "ceil" if self.window.ceil_mode else "floor"

    def arithmetic(self, compact: bool) -> list[str]:
        """Return the formulas of output size, field and jump with their numbers, or only the size if unknown."""
        window, before = self.window, self.before
        taps, times = (f"{window.kernel - 1}", "×") if compact else (f"({window.kernel} − 1)", " × ")
        padding = 2 * window.padding if compact else f"2·{window.padding}"
        span = f"{window.dilation}·{taps}"
        steps = f"({self.size} + {padding} − {span} − 1) / {window.stride}"
        size = f"{self.rounding}({steps}) + 1 = {self.out_size}"
        if before is None:
            return [size]
        after = before.through(window)
        field_size = f"{before.size} + {span}{times}{before.jump} = {after.size}"
        return [size, field_size, f"{before.jump}{times}{window.stride} = {after.jump}"]


@dataclass(frozen=True)
class Filters:
    """The weight of a convolution: `shape` is (out channels, in channels per group, height, width)."""

    shape: tuple[int, int, int, int]
    groups: int
    biased: bool


@dataclass
class Layer:
    """One row of the table: a module without inner modules, or an operation between modules that joins or reshapes.

    `output_shape` has no batch dimension. `receptive_field` is in input pixels: an int, [height, width] if they differ,
    "all" for the whole image whatever its size, or None if unknown. `beside_global` is True if the field leaves out a
    side branch that sees the whole image. `flops` counts a multiply-add as two operations. `slides` has the windows of
    a convolution or pooling along height and width, and `filters` the weight of a convolution.
    """

    name: str
    kind: str
    kernel: str
    output_shape: list[int]
    parameters: int
    trainable_parameters: int
    flops: int
    memory_bytes: int
    receptive_field: Pixels
    jump: Pixels
    beside_global: bool
    slides: list[Slide] = field(default_factory=list, repr=False)
    filters: Filters | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        values = {**vars(self), "global": self.beside_global}
        return {key: value for key, value in values.items() if key not in ("slides", "filters", "beside_global")}


@dataclass(repr=False)
class Summary(Displayable):
    """The layers and totals of a network. `print(summary)` shows the table and its formulas.

    `receptive_field` is that of the feature map that the classifier pools or flattens. `memory_bytes` is for one float
    image: the input, the output of every layer (in-place outputs count once), parameters and buffers.
    """

    name: str
    input_shape: tuple[int, int, int]
    parameters: int
    trainable_parameters: int
    receptive_field: Pixels
    flops: int
    input_bytes: int
    activation_bytes: int
    parameter_bytes: int
    layers: list[Layer]

    @property
    def memory_bytes(self) -> int:
        return self.input_bytes + self.activation_bytes + self.parameter_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = {**vars(self), "memory_bytes": self.memory_bytes, "input_shape": list(self.input_shape)}
        return {**values, "layers": [layer.to_dict() for layer in self.layers]}

    def explain(self, name: str) -> str:
        """Return a layer's formulas with its numbers, or with "all" those of all convolutions and poolings.

        Raises
            ModelError: there is no layer with this name.
        """
        if name == "all":
            return "\n\n".join(_explain(layer, self) for layer in self.layers if layer.slides)
        layers = {layer.name: layer for layer in self.layers}
        if name not in layers:
            raise ModelError(f"no layer {name!r} in {self.name}{suggest(name, layers)}")
        return _explain(layers[name], self)

    def table(self) -> str:
        """Return the layer table and the totals as text."""
        rows = [
            [
                layer.name, layer.kind, layer.kernel, _format(layer.output_shape) or "1", count(layer.parameters),
                count(layer.flops), count(layer.memory_bytes, "B"),
                _format(layer.receptive_field) + "*" * layer.beside_global, _format(layer.jump),
            ]
            for layer in self.layers
        ]  # fmt: skip
        columns = ["layer", "kind<", "kernel", "output", "params", "FLOPs", "memory", "field", "jump"]
        trainable, frozen = self.trainable_parameters, self.parameters - self.trainable_parameters
        unused = self.parameters - sum(layer.parameters for layer in self.layers)
        unused_note = f"; {unused:,} of them not used in this forward pass" if unused else ""
        sizes = {"input": self.input_bytes, "activations": self.activation_bytes, "parameters": self.parameter_bytes}
        memory = ", ".join(f"{name} {count(size, 'B')}" for name, size in sizes.items())
        lines = [
            render_table(columns, rows),
            "",
            f"parameters        {self.parameters:,} ({trainable:,} trainable, {frozen:,} not{unused_note})",
            f"receptive field   {self._describe_field()} (image: {_format([*self.input_shape])})",
            f"FLOPs             {self.flops:,} per image (a multiply-add counts as two)",
            f"memory            {count(self.memory_bytes, 'B')} per image in float32: {memory}",
        ]
        if any(layer.beside_global for layer in self.layers):
            lines.append("* without a side branch that sees the whole image (a gate or a statistic over all positions)")
        return "\n".join(lines)

    def _describe_field(self) -> str:
        if self.receptive_field is None:
            return "unknown: an operation before it cannot be traced"
        if isinstance(self.receptive_field, str):
            return "all of the image"
        height, width = self.receptive_field if isinstance(self.receptive_field, list) else [self.receptive_field] * 2
        covers = height >= self.input_shape[1] and width >= self.input_shape[2]
        verdict = "which covers the image" if covers else "less than the image"
        pixels = f"{_format(self.receptive_field)} pixels, {verdict}"
        pooled_later = any(layer.receptive_field == "all" for layer in self.layers)
        return f"{pixels}; the classifier sees all of it" if pooled_later and not covers else pixels

    def formulas(self) -> str:
        """Return the formulas of output size and receptive field, and their numbers for convolutions and poolings."""
        sliding = [layer for layer in self.layers if layer.slides]
        shown = sliding if len(sliding) <= 12 else [*sliding[:3], *sliding[-1:]]
        lines = [
            f"output size       out   = floor{_SIZE}",
            f"receptive field   field = {_FIELD}; it starts at 1",
            f"jump              jump  = {_JUMP}; it starts at 1",
            "",
        ]
        width = max((len(layer.name) for layer in shown), default=0)
        for layer in shown:
            size, *rest = layer.slides[0].arithmetic(compact=True)
            numbers = f"{size:<38}  field {rest[0]:<18}  jump {rest[1]}" if rest else size
            lines.append(f"{layer.name:<{width}}  out {numbers}")
        if len(shown) < len(sliding):
            lines.append(f"... {len(sliding) - len(shown)} more: --explain all")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.formulas()}"

    def plot(self) -> Any:
        """Return a figure of the parameters, the operations and the receptive field of each layer."""
        from gingham.plots import draw_layers

        height = self.input_shape[1]
        fields = [layer.receptive_field for layer in self.layers]
        pixels = [value[0] if isinstance(value, list) else value for value in fields]
        known = [height if value == "all" else float(value or 0) for value in pixels]
        columns: dict[str, list[float]] = {
            "parameters": [float(layer.parameters) for layer in self.layers],
            "operations for an image": [float(layer.flops) for layer in self.layers],
            f"receptive field, of {height} pixels": known,
        }
        return draw_layers(
            [layer.name for layer in self.layers], columns, f"{self.name}: {self.parameters:,} parameters"
        )


def _format(value: Pixels) -> str:
    return "-" if value is None else "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _explain(layer: Layer, summary: Summary) -> str:
    shape = _format(layer.output_shape)
    title = f"{layer.name} ({layer.kind}): output {shape}, {layer.parameters:,} parameters, {layer.flops:,} FLOPs"
    if not layer.slides:
        pixels = _format(layer.receptive_field)
        texts = {"all": "sees the whole image", "-": "has an unknown receptive field"}
        seen = texts.get(pixels, f"sees {pixels} pixels, as its input does")
        return f"{title}\n  no sliding window: each output {seen}"
    lines = [title]
    height, width = layer.slides
    if height == width:
        lines += _explain_slide(height, summary.input_shape[1])
    else:
        lines += ["  height", *_explain_slide(height, summary.input_shape[1])]
        lines += ["  width", *_explain_slide(width, summary.input_shape[2])]
    if layer.filters:
        lines += _explain_filters(layer.filters, height.out_size * width.out_size, layer.flops)
    return "\n".join(lines)


def _explain_slide(slide: Slide, extent: int) -> list[str]:
    size, *rest = slide.arithmetic(compact=False)
    lines = [f"  output size      {slide.rounding}{_SIZE}", f"                 = {size}"]
    if rest:
        lines += [
            f"  receptive field  {_FIELD}",
            f"                 = {rest[0]} of {extent} pixels",
            f"  jump             {_JUMP} = {rest[1]}",
        ]
    return lines


def _explain_filters(filters: Filters, positions: int, flops: int) -> list[str]:
    number, channels, height, width = filters.shape
    weights = number * channels * height * width
    bias, total = (f" + {number} biases", weights + number) if filters.biased else (", no bias", weights)
    grouping = f" (of {channels * filters.groups} in {filters.groups} groups)" if filters.groups > 1 else ""
    return [
        f"  parameters       {number} filters × {channels} channels{grouping} × {height}×{width}{bias} = {total:,}",
        f"  FLOPs            2 × {weights:,} weights × {positions:,} positions = {flops:,}",
    ]
