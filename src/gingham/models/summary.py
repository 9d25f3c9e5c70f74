"""Create the layer table of a network by running it once and recording every layer."""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import flop_registry

from gingham.errors import ModelError, one_line
from gingham.models.classifier import Classifier, evaluation_mode
from gingham.models.conv_arithmetic import Field, read_windows
from gingham.models.layer_table import Filters, Layer, Pixels, Slide, Summary
from gingham.models.operations import OperationObserver, operation_name, tensors_in
from gingham.models.receptive_field import UNKNOWN, View, input_view, trace

_LOCK = threading.Lock()  # the hooks of a network, and torch's setting for attention, are shared by all threads


def summarize(network: nn.Module, input_shape: Sequence[int] = (1, 28, 28), name: str = "network") -> Summary:
    """Return the layer table of a network for one float image of shape `input_shape` (C, H, W).

    The network is run once, in evaluation mode. It is not changed, except that lazy layers get their shape. It may have
    strides, dilation, padding, groups, branches, adaptive and global pooling. If it is a Classifier, such as the
    `model` of a run, the table is of its network, for images of the shape that it takes.

        gingham.summarize(gingham.NETWORKS["article"](1, 10)).receptive_field   # 28

    Raises
        ModelError: the network cannot take the image, or never calls a lazy layer; the message names the layer.

    Source: Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks" (distill.pub, 2019).
    """
    if isinstance(network, Classifier):
        input_shape, network = network.input_shape, network.network
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ModelError(f"the input shape is {tuple(input_shape)}; give channels, height and width, each at least 1")
    channels, height, width = input_shape
    first_tensor = next(iter([*network.parameters(), *network.buffers()]), torch.empty(0))
    image = torch.zeros(1, channels, height, width, device=first_tensor.device, dtype=torch.float32)
    recorder = _Recorder(network, image)
    with _LOCK, ExitStack() as stack:
        for module_name, module in network.named_modules():
            enter_module = partial(recorder.enter_module, module_name)
            stack.enter_context(module.register_forward_pre_hook(enter_module, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(recorder.leave_module))
        # Fused attention is a single operation that cannot be traced, so it is disabled.
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with evaluation_mode(network), torch.no_grad(), OperationObserver(recorder.record):
                outputs = tensors_in(network(image))
        except Exception as error:
            raise ModelError(_describe_failure(recorder.calls[-1], error, name, tuple(input_shape))) from error
    view = recorder.view_by_id.get(id(outputs[0]), UNKNOWN) if outputs else UNKNOWN
    if unused := [name for name, parameter in network.named_parameters() if is_lazy(parameter)]:
        raise ModelError(f"{name} never calls the layer of {unused[0]}, so the layer has no shape; remove the layer")
    parameters = list(network.parameters())
    return Summary(
        name=name,
        input_shape=(channels, height, width),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        receptive_field=_field(view if view.attended else view.before_pooling or view),
        flops=recorder.calls[0].flops,
        input_bytes=image.nbytes,
        activation_bytes=sum(layer.memory_bytes for layer in recorder.layers),
        parameter_bytes=sum(t.nbytes for t in [*parameters, *network.buffers()]),
        layers=recorder.layers,
    )


@dataclass
class _Call:
    """A module whose forward is running, or an operation between modules."""

    name: str
    kind: str
    inputs: list[torch.Tensor]
    module: nn.Module | None = None
    first_row: int = 0
    first_counted: int = 0
    called_inner: bool = False
    flops: int = 0
    slides: list[Slide] = field(default_factory=list)  # of each operation, along height and width
    filters: Filters | None = None


# Operations between modules that get a row in the table: they join branches, slide windows, mix or reshape.
_TABLE_OPERATIONS = {
    "convolution", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "mean",
    "amax", "cat", "addmm", "mm", "bmm", "upsample_nearest2d", "upsample_bilinear2d", "pixel_unshuffle",
}  # fmt: skip


class _Recorder:
    """Traces a forward pass: records the view of every tensor and a table row for every module."""

    def __init__(self, network: nn.Module, image: torch.Tensor) -> None:
        self.layers: list[Layer] = []
        self.times_named: Counter[str] = Counter()  # a module that is called twice has two rows
        self.calls = [_Call("", type(network).__name__, [image])]  # the first call counts all operations
        self.parameters = set(map(id, network.parameters()))
        self.counted: list[int] = []  # the ids of the parameters that are in a row already
        self.view_by_id = {id(image): input_view(image.shape)}  # of the tensors that depend on the image
        self.kept = [image]  # keeps these tensors alive, so that no id is reused

    def uncounted(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return those tensors that are parameters and in no row yet."""
        return [x for x in tensors if id(x) in self.parameters and id(x) not in self.counted]

    def enter_module(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[-1].called_inner = True
        inputs = tensors_in((args, kwargs))
        self.calls.append(_Call(name, type(module).__name__, inputs, module, len(self.layers), len(self.counted)))

    def leave_module(self, module: nn.Module, _args: Any, out: Any) -> None:
        call = self.calls.pop()
        outputs = tensors_in(out)
        if not call.called_inner and outputs:  # a module that calls no other modules is one row
            del self.layers[call.first_row :], self.counted[call.first_counted :]
            self._add_row(call, outputs[0], self.uncounted(module.parameters()))

    def record(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Trace an operation, and add its FLOPs to every module that is running."""
        outputs, inputs = tensors_in(out), tensors_in(args)
        traced = {id(tensor): self.view_by_id[id(tensor)] for tensor in inputs if id(tensor) in self.view_by_id}
        if traced:
            self.view_by_id.update(zip(map(id, outputs), trace(operation, args, outputs, traced), strict=True))
            self.kept += outputs
        count_flops = flop_registry.get(operation._overloadpacket)
        flops = count_flops(*args, **kwargs, out_val=out) if count_flops else 0
        for call in self.calls:
            call.flops += flops
        if outputs:
            self._add_operation(_Call("", operation_name(operation), inputs, flops=flops), args, outputs[0], traced)

    def _add_operation(self, operation: _Call, args: Sequence[Any], out: torch.Tensor, traced: dict[int, View]) -> None:
        """Record an operation in its module, and add a row if it joins, slides, mixes or has parameters of its own."""
        module, kind = self.calls[-1], operation.kind
        operation.name = f"{module.name}.{kind}".lstrip(".")
        operation.slides = _slides(kind, args, traced)
        if operation.slides and kind == "convolution":
            operation.filters = module.filters = Filters(tuple(args[1].shape), args[8], args[2] is not None)
        module.slides += operation.slides
        parameters = self.uncounted(operation.inputs)
        joins_branches = len(traced) > 1 and kind in ("add", "mul", "sub")
        if kind in _TABLE_OPERATIONS or parameters or joins_branches:
            self._add_row(operation, out, parameters)

    def _add_row(self, call: _Call, out: torch.Tensor, parameters: Sequence[torch.Tensor]) -> None:
        view, name = self.view_by_id.get(id(out), UNKNOWN), call.name or call.kind
        slides = call.slides if len(call.slides) == 2 else []
        input_storages = {tensor.untyped_storage()._cdata for tensor in call.inputs}
        self.times_named[name] += 1
        self.counted += map(id, parameters)
        self.layers.append(
            Layer(
                name=name if self.times_named[name] == 1 else f"{name}#{self.times_named[name]}",
                kind=call.kind,
                kernel="x".join(str(slide.window.kernel) for slide in slides),
                output_shape=list(out.shape[1:]),
                parameters=sum(p.numel() for p in parameters),
                trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
                flops=call.flops,
                memory_bytes=0 if out.untyped_storage()._cdata in input_storages else out.nbytes,
                receptive_field=_field(view),
                jump=_pixels(view.jump) if view.jump else None,
                beside_global=view.beside_global and not view.sees_all,
                slides=slides,
                filters=call.filters if slides else None,
            )
        )


def _slides(operation: str, args: Sequence[Any], traced: dict[int, View]) -> list[Slide]:
    """Return the windows of a convolution or pooling along height and width, none for other operations."""
    windows = read_windows(operation, args)
    if not windows or (operation == "convolution" and args[6]):  # args[6]: transposed
        return []
    view = traced.get(id(args[0]), UNKNOWN)
    sizes = [span.size for span in view.spans]
    fields: Iterable[Field | None] = map(Field, sizes, view.jump) if view.jump else [None, None]
    return list(map(Slide, windows, args[0].shape[-2:], fields))


def _pixels(pair: Sequence[int]) -> Pixels:
    height, width = pair
    return height if height == width else [height, width]


def _field(view: View) -> Pixels:
    return None if view is UNKNOWN else "all" if view.sees_all else _pixels([span.size for span in view.spans])


def _describe_failure(call: _Call, error: Exception, name: str, input_shape: tuple[int, ...]) -> str:
    shape = "x".join(map(str, input_shape))
    layer = f"{call.name or name} ({call.kind})"
    got = call.inputs[0].shape if call.inputs else ()
    size = "x".join(map(str, got[1:])) if call.inputs else "nothing"
    for kind, unit, axis, more in ((nn.Linear, "features", -1, ""), (nn.Conv2d, "channels", 1, ", ...")):
        if not got or not isinstance(call.module, kind):
            continue
        given, taken = got[axis], getattr(call.module, f"in_{unit}")
        if given != taken:
            reached = f"an image of {shape} reaches {layer} with {given} {unit}, but the layer takes {taken}"
            fitting = f"{kind.__name__}({given}, {getattr(call.module, f'out_{unit}')}{more})"
            size_taken = "another size" if kind is nn.Linear else "x".join(map(str, (taken, *input_shape[1:])))
            return f"{reached}; make it {fitting}, or give images of {size_taken}"
    signs = ("Kernel size can't be greater", "too small", "output size is", "Output size")
    if any(sign in str(error) for sign in signs):
        return f"an image of {shape} is too small for {layer}, which got an input of {size}; give larger images"
    failure = f"{layer}, which got {size}, failed ({one_line(error)})"
    return f"{name} cannot take an image of {shape}: {failure}; give images of another size"
