"""Layer and Summary: the layer table, its totals, and the arithmetic of each layer worked through, as text."""

from dataclasses import dataclass, field
from typing import Any

from gingham.errors import ModelError, suggest
from gingham.tables import count, render

Field = int | list[int] | str | None


@dataclass
class Layer:
    """One row of the table: a module without inner modules, or an operation between modules that joins or reshapes.

    `output_shape` has no batch dimension. `receptive_field` is in input pixels: an int, [height, width] where they
    differ, "all" for what sees the whole picture whatever its size, None where it cannot be said. `beside_global` marks a
    field that leaves out a side branch seeing everything. `flops` counts a multiply-add as two.
    """

    name: str
    kind: str
    kernel: str
    output_shape: list[int]
    parameters: int
    trainable_parameters: int
    flops: int
    memory_bytes: int
    receptive_field: Field
    jump: Field
    beside_global: bool
    window: dict[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        values = {key: value for key, value in vars(self).items() if key not in ("window", "beside_global")}
        return {**values, "global": self.beside_global}


@dataclass
class Summary:
    """A network's layers and totals. `print(summary)` shows the table with its formulas.

    `receptive_field` is that of the feature map that enters the classifier's pooling or flattening. `memory_bytes` is
    for one float picture: input, every layer's output (in-place ones once) and the parameters with buffers.
    """

    name: str
    input_shape: tuple[int, int, int]
    parameters: int
    trainable_parameters: int
    receptive_field: Field
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
        """Return the arithmetic of one layer, worked through with its numbers; of every window for "all".

        Raises
            ModelError: there is no such layer.
        """
        if name == "all":
            return "\n\n".join(_explain(layer, self) for layer in self.layers if layer.window)
        for layer in self.layers:
            if layer.name == name:
                return _explain(layer, self)
        raise ModelError(f"no layer {name!r} in {self.name}{suggest(name, [layer.name for layer in self.layers])}")

    def table(self) -> str:
        """Return the layer table and the totals as text."""
        rows = [
            [
                layer.name, layer.kind, layer.kernel, "x".join(map(str, layer.output_shape)) or "1", count(layer.parameters),
                count(layer.flops), count(layer.memory_bytes, "B"),
                _show(layer.receptive_field) + "*" * layer.beside_global, _show(layer.jump),
            ]
            for layer in self.layers
        ]  # fmt: skip
        columns = ["layer", "kind<", "kernel", "output", "params", "FLOPs", "memory", "field", "jump"]
        lines = [render(columns, rows), ""]
        frozen, unused = (
            self.parameters - self.trainable_parameters,
            self.parameters - sum(row.parameters for row in self.layers),
        )
        resting = f"; {unused:,} of them rest in this pass" if unused else ""
        lines.append(
            f"parameters        {self.parameters:,} ({self.trainable_parameters:,} trainable, {frozen:,} not{resting})"
        )
        shape = "x".join(map(str, self.input_shape))
        covers = _covers(self.receptive_field, self.input_shape)
        lines.append(f"receptive field   {_show(self.receptive_field)} pixels of a {shape} picture{covers}")
        lines.append(f"FLOPs             {self.flops:,} a picture (a multiply-add is two)")
        lines.append(
            f"memory            {count(self.memory_bytes, 'B')} a picture in float32: input {count(self.input_bytes, 'B')}, "
            f"activations {count(self.activation_bytes, 'B')}, parameters {count(self.parameter_bytes, 'B')}"
        )
        if any(layer.beside_global for layer in self.layers):
            lines.append("* beside a global side branch (a gate or a statistic over all positions), which is left out")
        return "\n".join(lines)

    def formulas(self) -> str:
        """Return the formulas of output size and receptive field, and each window's numbers in them."""
        windows = [layer for layer in self.layers if layer.window]
        shown = windows if len(windows) <= 12 else [*windows[:3], *windows[-1:]]
        lines = [
            "output size       out   = floor((in + 2 padding − dilation (kernel − 1) − 1) / stride) + 1",
            "receptive field   field = field before + dilation (kernel − 1) × jump before; it starts at 1",
            "jump              jump  = jump before × stride; it starts at 1",
            "",
        ]
        width = max((len(layer.name) for layer in shown), default=0)
        lines += [f"{layer.name:<{width}}  {_worked_line(layer)}" for layer in shown]
        if len(shown) < len(windows):
            lines.append(f"... {len(windows) - len(shown)} more: --explain all")
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.formulas()}"


def _covers(receptive_field: Field, shape: tuple[int, int, int]) -> str:
    if receptive_field is None or isinstance(receptive_field, str):
        return ""
    height, width = receptive_field if isinstance(receptive_field, list) else (receptive_field, receptive_field)
    return ": it covers the picture" if height >= shape[1] and width >= shape[2] else ": it does not cover the picture"


def _show(value: Field) -> str:
    return "-" if value is None else "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _worked_line(layer: Layer) -> str:
    window = layer.window
    assert window is not None
    kernel, stride, padding, dilation = (window[key][0] for key in ("kernel", "stride", "padding", "dilation"))
    rounding = "ceil" if window["ceil"] else "floor"
    size = f"{rounding}(({window['in'][0]} + {2 * padding} − {dilation}·{kernel - 1} − 1) / {stride}) + 1 = {window['out'][0]}"
    if window["field"] is None or window["jump"] is None:
        return f"out {size}"
    field_before, jump = window["field"][0], window["jump"][0]
    reach = f"{field_before} + {dilation}·{kernel - 1}×{jump} = {field_before + dilation * (kernel - 1) * jump}"
    return f"out {size:<38}  field {reach:<18}  jump {jump}×{stride} = {jump * stride}"


def _explain(layer: Layer, summary: Summary) -> str:
    shape = "x".join(map(str, layer.output_shape))
    head = f"{layer.name} ({layer.kind}): output {shape}, {layer.parameters:,} parameters, {layer.flops:,} FLOPs"
    window = layer.window
    if window is None:
        seen = {"all": "sees the whole picture", "-": "has no receptive field that can be said"}
        here = _show(layer.receptive_field)
        return f"{head}\n  no window slides here: each output {seen.get(here, f'sees {here} pixels, as its input does')}"
    lines = [head]
    for axis, label in ((0, "height"), (1, "width")) if _differs(window) else ((0, ""),):
        kernel, stride, padding, dilation = (window[key][axis] for key in ("kernel", "stride", "padding", "dilation"))
        rounding = "ceil" if window["ceil"] else "floor"
        numbers = f"{rounding}(({window['in'][axis]} + 2·{padding} − {dilation}·({kernel} − 1) − 1) / {stride}) + 1"
        if label:
            lines.append(f"  {label}")
        lines += [
            f"  output size      {rounding}((in + 2 padding − dilation (kernel − 1) − 1) / stride) + 1",
            f"                 = {numbers} = {window['out'][axis]}",
        ]
        if window["field"] is not None and window["jump"] is not None:
            before, jump, pixels = window["field"][axis], window["jump"][axis], summary.input_shape[1 + axis]
            seen = before + dilation * (kernel - 1) * jump
            lines += [
                "  receptive field  field before + dilation (kernel − 1) × jump before",
                f"                 = {before} + {dilation}·({kernel} − 1) × {jump} = {seen} of {pixels} pixels",
                f"  jump             jump before × stride = {jump} × {stride} = {jump * stride}",
            ]
    if window["weight"] is not None:
        out, inner, height, width = window["weight"]
        bias = f" + {out} biases" if window["biased"] else ", no bias"
        grouped = f" (of {inner * window['groups']} in {window['groups']} groups)" if window["groups"] > 1 else ""
        total = out * inner * height * width + (out if window["biased"] else 0)
        lines.append(f"  parameters       {out} filters × {inner} channels{grouped} × {height}×{width}{bias} = {total:,}")
        places = window["out"][0] * window["out"][1]
        lines.append(
            f"  FLOPs            2 × {out * inner * height * width:,} weights × {places:,} positions = {layer.flops:,}"
        )
    return "\n".join(lines)


def _differs(window: dict[str, Any]) -> bool:
    pairs = [window[key] for key in ("kernel", "stride", "padding", "dilation", "in", "field", "jump") if window[key]]
    return any(pair[0] != pair[1] for pair in pairs)
