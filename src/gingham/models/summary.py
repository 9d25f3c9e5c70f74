"""Summarize a network by running it once and recording every layer."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gingham.errors import ModelError, one_line
from gingham.models.conv_arithmetic import Field, Window
from gingham.models.layer_table import Filters, Layer, Pixels, Slide, Summary, Windows
from gingham.models.pixel_view import UNKNOWN, Number, View, input_view
from gingham.models.receptive_field import pair, tensors_in, trace, trace_parts


def summarize(network: nn.Module, input_shape: Sequence[int] = (1, 28, 28), name: str = "network") -> Summary:
    """Return the layer table of a network for one float image of shape `input_shape` (C, H, W).

    The network is run once, in evaluation mode, and is not changed. It may have strides, dilation, padding, groups,
    branches, adaptive and global pooling.

        gingham.summarize(gingham.NETWORKS["article"](1, 10)).receptive_field   # 28

    Raises
        ModelError: the input does not fit; the message names the layer that failed.

    Source: Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks" (distill.pub, 2019).
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ModelError(f"the input shape is {tuple(input_shape)}; give channels, height and width, each at least 1")
    channels, height, width = input_shape
    first_tensor = next(iter([*network.parameters(), *network.buffers()]), torch.empty(0))
    image = torch.zeros(1, channels, height, width, device=first_tensor.device, dtype=torch.float32)
    recorder = _Recorder(network, image)
    modes = {module: module.training for module in network.modules()}
    fastpath_enabled = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    # Fused attention is one opaque operation; only its parts can be traced.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder:
            out = network(image)
    except Exception as error:
        raise ModelError(_describe_failure(recorder, error, name, tuple(input_shape))) from error
    finally:
        recorder.remove_hooks()
        for module, mode in modes.items():
            module.training = mode
        torch.backends.mha.set_fastpath_enabled(fastpath_enabled)
    parameters = list(network.parameters())
    return Summary(
        name=name,
        input_shape=(channels, height, width),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        receptive_field=_network_field(recorder, out),
        flops=recorder.flops,
        input_bytes=image.nbytes,
        activation_bytes=sum(layer.memory_bytes for layer in recorder.layers),
        parameter_bytes=sum(t.nbytes for t in [*parameters, *network.buffers()]),
        layers=recorder.layers,
    )


@dataclass
class _Call:
    """A module's forward in progress."""

    name: str
    module: nn.Module
    inputs: list[torch.Tensor]
    first_row: int
    called_inner: bool = False
    flops: int = 0
    windows: list[Windows] = field(default_factory=list)
    counted_parameters: set[int] = field(default_factory=set)  # those in the rows of the call's own operations


# Operations between modules that get a row in the table: they join branches, slide, mix or reshape.
_TABLE_OPERATIONS = {
    "convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax",
    "cat", "addmm", "mm", "bmm", "upsample_nearest2d", "upsample_bilinear2d", "pixel_unshuffle",
}  # fmt: skip


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class carries no annotations
    """Traces a forward pass: the view of every tensor, a table row for every module."""

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.times_named: Counter[str] = Counter()  # a module that is called twice has two rows
        self.calls: list[_Call] = []
        self.flops = 0
        self.classifier_input: View | None = None  # the last input of a global pooling or a linear layer
        self.counted_parameters: set[int] = set()
        # Holds the tensors as well, so that no id is reused.
        self.traced: dict[int, tuple[torch.Tensor, View | None]] = {id(image): (image, input_view(image.shape))}
        self.parameters = {id(parameter) for parameter in network.parameters()}
        self.hooks = []
        for name, module in network.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self._make_pre_hook(name), with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._post_hook))

    def remove_hooks(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def view_of(self, tensor: Any) -> View | None:
        return self.traced[id(tensor)][1] if id(tensor) in self.traced else None

    def _make_pre_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.calls:
                self.calls[-1].called_inner = True
            self.calls.append(_Call(name, module, tensors_in((args, kwargs)), len(self.layers)))

        return hook

    def _post_hook(self, module: nn.Module, _args: Any, out: Any) -> None:
        call = self.calls.pop()
        if self.calls:
            self.calls[-1].flops += call.flops
        outputs = tensors_in(out)
        if call.called_inner or not outputs:
            return
        del self.layers[call.first_row :]  # a module without inner modules is one row
        self.counted_parameters -= call.counted_parameters
        parameters = [p for p in module.parameters() if id(p) not in self.counted_parameters]
        self.counted_parameters.update(map(id, parameters))
        windows = call.windows[0] if len(call.windows) == 1 else None
        kind = type(module).__name__
        self._add_row(call.name or kind, kind, outputs[0], call.inputs, parameters, call.flops, windows)

    def _add_row(
        self,
        name: str,
        kind: str,
        out: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        flops: int,
        windows: Windows | None,
    ) -> None:
        view = self.view_of(out)
        input_storages = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.times_named[name] += 1
        self.layers.append(
            Layer(
                name=name if self.times_named[name] == 1 else f"{name}#{self.times_named[name]}",
                kind=kind,
                kernel=f"{windows.height.window.kernel}x{windows.width.window.kernel}" if windows else "",
                output_shape=list(out.shape[1:]),
                parameters=sum(p.numel() for p in parameters),
                trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
                flops=flops,
                memory_bytes=0 if out.untyped_storage()._cdata in input_storages else out.nbytes,
                receptive_field=_view_field(view),
                jump=_view_jump(view),
                beside_global=view is not None and view.beside_global and not view.sees_all,
                windows=windows,
            )
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in(args)
        before = {id(tensor): self.view_of(tensor) for tensor in inputs}  # in-place operations change them
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        name = packet.__name__.removesuffix("_")
        flops = flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
        self.flops += flops
        outputs = tensors_in(out)
        self._trace_outputs(name, args, outputs, before)
        if self.calls and outputs:
            self.calls[-1].flops += flops
            self._record_operation(name, args, outputs[0], flops, before)
        return out

    def _trace_outputs(
        self, name: str, args: Any, outputs: Sequence[torch.Tensor], before: dict[int, View | None]
    ) -> None:
        source = before.get(id(args[0])) if args else None
        if name in ("split", "split_with_sizes", "chunk", "unbind") and source is not None:
            for tensor, part_view in zip(outputs, trace_parts(source, name, args, outputs), strict=True):
                self.traced[id(tensor)] = (tensor, part_view)
            return
        for tensor in outputs:
            view = trace(name, args, tensor, lambda operand: before.get(id(operand)))
            self.traced[id(tensor)] = (tensor, view)
            from_map = any(operand is not None and not operand.sees_all for operand in before.values())
            if view is not None and view.sees_all and view.before_pooling is not None and from_map:
                self.classifier_input = view.before_pooling

    def _record_operation(
        self, name: str, args: Any, out: torch.Tensor, flops: int, before: dict[int, View | None]
    ) -> None:
        """Add a row for an operation that is not inside a module of its own."""
        call, inputs = self.calls[-1], tensors_in(args)
        windows = _windows(name, args, out, before.get(id(args[0])) if args else None)
        if windows is not None:
            call.windows.append(windows)
        joins_branches = sum(view is not None for view in before.values()) > 1
        parameters = [x for x in inputs if id(x) in self.parameters and id(x) not in self.counted_parameters]
        if name in _TABLE_OPERATIONS or parameters or (joins_branches and name in ("add", "mul", "sub")):
            self.counted_parameters.update(map(id, parameters))
            call.counted_parameters.update(map(id, parameters))
            kind = name.strip("_")
            self._add_row(f"{call.name}.{kind}".lstrip("."), kind, out, inputs, parameters, flops, windows)


def _windows(name: str, args: Any, out: torch.Tensor, view: View | None) -> Windows | None:
    """Return the sliding windows of a convolution or pooling along height and width, None for other operations."""
    if out.dim() != 4:
        return None
    ceil_mode = False
    if name in ("convolution", "_convolution") and not args[6]:
        numbers = (list(args[1].shape[2:]), args[3], args[4], args[5])
    elif name in ("max_pool2d_with_indices", "avg_pool2d"):
        values = [*args, *[None] * 6]
        is_max = name.startswith("max")
        numbers = (values[1], values[2] or values[1], values[3] or 0, (values[4] or 1) if is_max else 1)
        ceil_mode = bool(values[5] if is_max else values[4])
    else:
        return None
    kernel, stride, padding, dilation = (pair(value) for value in numbers)
    has_grid = view is not None and not view.sees_all and view.jump is not None
    slides = []
    for axis in (0, 1):
        window = Window(kernel[axis], stride[axis], padding[axis], dilation[axis])
        before = Field(view.size[axis], abs(round(view.jump[axis]))) if has_grid and view and view.jump else None
        slides.append(Slide(window, args[0].shape[2 + axis], before, ceil_mode))
    filters = Filters(tuple(args[1].shape), int(args[8]), args[2] is not None) if "convolution" in name else None
    height, width = slides
    return Windows(height, width, filters)


def _to_pixels(pair: Sequence[Number]) -> Pixels:
    first, second = (abs(round(number)) for number in pair)
    return first if first == second else [first, second]


def _view_field(view: View | None) -> Pixels:
    return None if view is None or view is UNKNOWN else "all" if view.sees_all else _to_pixels(view.size)


def _view_jump(view: View | None) -> Pixels:
    if view is None or view is UNKNOWN or view.jump is None:
        return None
    return _to_pixels(view.jump)  # negative where the map is flipped


def _network_field(recorder: _Recorder, out: Any) -> Pixels:
    view = recorder.view_of(next(iter(tensors_in(out)), None))
    if view is None or view is UNKNOWN:
        return None
    if view.attended:
        return "all"
    if not view.sees_all:
        return _view_field(view.before_pooling or view)
    return _view_field(recorder.classifier_input)


def _describe_failure(recorder: _Recorder, error: Exception, name: str, input_shape: tuple[int, ...]) -> str:
    shape = "x".join(map(str, input_shape))
    if not recorder.calls:
        return f"{name} cannot take a picture of {shape} ({one_line(error)}); give another --input"
    call = recorder.calls[-1]
    layer = f"{call.name or name} ({type(call.module).__name__})"
    size = "x".join(map(str, call.inputs[0].shape[1:])) if call.inputs else "nothing"
    module = call.module
    if isinstance(module, nn.Linear) and call.inputs and call.inputs[0].shape[-1] != module.in_features:
        return (
            f"a picture of {shape} reaches {layer} with {call.inputs[0].shape[-1]} features, it takes "
            f"{module.in_features}; make it Linear({call.inputs[0].shape[-1]}, {module.out_features}), or give "
            "pictures of another size"
        )
    if isinstance(module, nn.Conv2d) and call.inputs and call.inputs[0].shape[1] != module.in_channels:
        return (
            f"a picture of {shape} reaches {layer} with {call.inputs[0].shape[1]} channels, it takes "
            f"{module.in_channels}; make it Conv2d({call.inputs[0].shape[1]}, {module.out_channels}, ...), or give "
            f"pictures of {module.in_channels}x{input_shape[1]}x{input_shape[2]}"
        )
    too_small = any(
        text in str(error) for text in ("Kernel size can't be greater", "too small", "output size is", "Output size")
    )
    if too_small:
        return f"a picture of {shape} is too small: it ran out at {layer}, which got {size}; give a larger --input"
    return f"{name} cannot take a picture of {shape}: {layer}, which got {size}, failed ({one_line(error)}); give another --input"
