"""Summarize a network: run it once and record every layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gingham.errors import ModelError, one_line
from gingham.models.conv_arithmetic import Field, Window
from gingham.models.layer_table import Filters, Layer, Pixels, Slide, Summary
from gingham.models.receptive_field import LOST, Number, View, pair, picture, trace, trace_parts


def summarize(network: nn.Module, input_shape: Sequence[int] = (1, 28, 28), name: str = "network") -> Summary:
    """Return the layer table of a network fed with one float picture of shape `input_shape` (C, H, W).

    The network is run once, in evaluation mode, and left as it was. It may hold strides, dilation, padding, groups,
    branches, adaptive and global pooling.

        gingham.summarize(gingham.NETWORKS["article"](1, 10)).receptive_field   # 28

    Raises
        ModelError: the input does not fit; the message names the layer where it ran out.

    Source: Araujo, Norris & Sim, "Computing receptive fields of convolutional neural networks" (distill.pub, 2019).
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise ModelError(f"the input shape is {tuple(input_shape)}; give channels, height and width, each at least 1")
    channels, height, width = input_shape
    anchor = next(iter([*network.parameters(), *network.buffers()]), torch.empty(0))
    blank = torch.zeros(1, channels, height, width, device=anchor.device, dtype=torch.float32)
    recorder = _Recorder(network, blank)
    modes = {module: module.training for module in network.modules()}
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    # The fused attention is one opaque operation; its parts can be followed.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), recorder:
            out = network(blank)
    except Exception as error:
        raise ModelError(_where_it_ran_out(recorder, error, name, tuple(input_shape))) from error
    finally:
        recorder.remove_hooks()
        for module, mode in modes.items():
            module.training = mode
        torch.backends.mha.set_fastpath_enabled(fast_attention)
    parameters = list(network.parameters())
    return Summary(
        name=name,
        input_shape=(channels, height, width),
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        receptive_field=_network_field(recorder, out),
        flops=recorder.flops,
        input_bytes=blank.nbytes,
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
    slides: list[tuple[Slide, Slide]] = field(default_factory=list)
    filters: Filters | None = None
    claimed: set[int] = field(default_factory=set)  # parameters on the rows of its own operations


# Operations between modules that deserve a row: they join branches, slide, mix or reshape.
_SHOWN = {
    "convolution", "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "mean", "amax",
    "cat", "addmm", "mm", "bmm", "upsample_nearest2d", "upsample_bilinear2d", "pixel_unshuffle",
}  # fmt: skip


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class carries no annotations
    """Follows a forward pass: views by tensor, rows by module."""

    def __init__(self, network: nn.Module, blank: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.calls: list[_Call] = []
        self.flops = 0
        self.entered: View | None = None  # the last map that entered a global pooling or a classifier
        self.counted: set[int] = set()
        # Tensors are kept alive here, so that an id never comes back for another one.
        self.kept: dict[int, tuple[torch.Tensor, View | None]] = {id(blank): (blank, picture(blank.shape))}
        self.parameters = {id(parameter) for parameter in network.parameters()}
        self.handles = []
        for name, module in network.named_modules():
            self.handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._leave))

    def remove_hooks(self) -> None:
        for handle in self.handles:
            handle.remove()

    def view(self, tensor: Any) -> View | None:
        return self.kept[id(tensor)][1] if id(tensor) in self.kept else None

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.calls:
                self.calls[-1].called_inner = True
            inputs = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
            self.calls.append(_Call(name, module, inputs, len(self.layers)))

        return hook

    def _leave(self, module: nn.Module, _args: Any, out: Any) -> None:
        call = self.calls.pop()
        if self.calls:
            self.calls[-1].flops += call.flops
        tensor = out if torch.is_tensor(out) else next((x for x in out if torch.is_tensor(x)), None) if out else None
        if call.called_inner or tensor is None:
            return
        del self.layers[call.first_row :]  # a module that computes by itself is one row
        self.counted -= call.claimed
        parameters = [p for p in module.parameters() if id(p) not in self.counted]
        self.counted.update(map(id, parameters))
        slides = call.slides[0] if len(call.slides) == 1 else None
        kind, name = type(module).__name__, call.name or type(module).__name__
        self._add(name, kind, tensor, call.inputs, parameters, call.flops, slides, call.filters)

    def _add(
        self,
        name: str,
        kind: str,
        out: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        flops: int,
        slides: tuple[Slide, Slide] | None,
        filters: Filters | None,
    ) -> None:
        view = self.view(out)
        shared = {x.untyped_storage()._cdata for x in inputs if torch.is_tensor(x)}
        names = {layer.name for layer in self.layers}
        unique = name if name not in names else next(f"{name}#{n}" for n in range(2, 10**9) if f"{name}#{n}" not in names)
        self.layers.append(
            Layer(
                name=unique,
                kind=kind,
                kernel="x".join(str(slide.window.kernel) for slide in slides) if slides else "",
                output_shape=list(out.shape[1:]),
                parameters=sum(p.numel() for p in parameters),
                trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
                flops=flops,
                memory_bytes=0 if out.untyped_storage()._cdata in shared else out.nbytes,
                receptive_field=_field_of(view),
                jump=_jump_of(view),
                beside_global=view is not None and view.beside_global and not view.sees_all,
                slides=slides,
                filters=filters if slides else None,
            )
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {id(arg): self.view(arg) for arg in args if torch.is_tensor(arg)}  # in-place work changes them
        out = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        self.flops += flops
        plain = name.removesuffix("_") if not name.startswith("_") else name
        self._follow(plain, args, out, before)
        if self.calls:
            self._note(plain, args, out, flops, before)
        return out

    def _follow(self, name: str, args: Any, out: Any, before: dict[int, View | None]) -> None:
        outs = [x for x in (out if isinstance(out, (list, tuple)) else [out]) if torch.is_tensor(x)]
        source = before.get(id(args[0])) if args and torch.is_tensor(args[0]) else None

        def look(tensor: Any) -> View | None:
            return before[id(tensor)] if id(tensor) in before else self.view(tensor)

        if name in ("split", "split_with_sizes", "chunk", "unbind") and source is not None:
            for tensor, part in zip(outs, trace_parts(source, name, args, outs), strict=True):
                self.kept[id(tensor)] = (tensor, part)
            return
        for tensor in outs:
            view = trace(name, args, tensor, look)
            self.kept[id(tensor)] = (tensor, view)
            if view is not None and view.sees_all and view.before_pooling is not None:
                inputs = [look(x) for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
                if any(seen is not None and not seen.sees_all for seen in inputs):
                    self.entered = view.before_pooling

    def _note(self, name: str, args: Any, out: Any, flops: int, before: dict[int, View | None]) -> None:
        call = self.calls[-1]
        call.flops += flops
        tensor = out[0] if isinstance(out, (list, tuple)) and out else out
        if not torch.is_tensor(tensor):
            return
        slides = _slides(name, args, tensor, before.get(id(args[0])) if args else None)
        filters = None
        if slides is not None:
            call.slides.append(slides)
            if "convolution" in name:
                filters = call.filters = Filters(tuple(args[1].shape), int(args[8]), args[2] is not None)
        inputs = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if torch.is_tensor(x)]
        joins = sum(self.view(x) is not None or before.get(id(x)) is not None for x in inputs) > 1
        parameters = [x for x in inputs if id(x) in self.parameters and id(x) not in self.counted]
        if name in _SHOWN or parameters or (joins and name in ("add", "mul", "sub")):
            self.counted.update(map(id, parameters))
            call.claimed.update(map(id, parameters))
            kind = name.strip("_")
            self._add(f"{call.name}.{kind}".lstrip("."), kind, tensor, inputs, parameters, flops, slides, filters)


def _slides(name: str, args: Any, out: torch.Tensor, view: View | None) -> tuple[Slide, Slide] | None:
    """A sliding window's numbers along height and width, and what it slid over; None for anything else."""
    if out.dim() != 4:
        return None
    ceil_mode = False
    if name in ("convolution", "_convolution") and not args[6]:
        numbers = (list(args[1].shape[2:]), args[3], args[4], args[5])
    elif name in ("max_pool2d_with_indices", "avg_pool2d"):
        given = [*args, *[None] * 6]
        maximum = name.startswith("max")
        numbers = (given[1], given[2] or given[1], given[3] or 0, (given[4] or 1) if maximum else 1)
        ceil_mode = bool(given[5] if maximum else given[4])
    else:
        return None
    kernel, stride, padding, dilation = (pair(value) for value in numbers)
    seen = view is not None and not view.sees_all and view.jump is not None
    slides = []
    for axis in (0, 1):
        window = Window(kernel[axis], stride[axis], padding[axis], dilation[axis])
        before = Field(view.size[axis], abs(round(view.jump[axis]))) if seen and view and view.jump else None
        slides.append(Slide(window, args[0].shape[2 + axis], before, ceil_mode))
    return slides[0], slides[1]


def _one_or_two(pair: Sequence[Number]) -> Pixels:
    first, second = (abs(round(number)) for number in pair)
    return first if first == second else [first, second]


def _field_of(view: View | None) -> Pixels:
    return None if view is None or view is LOST else "all" if view.sees_all else _one_or_two(view.size)


def _jump_of(view: View | None) -> Pixels:
    if view is None or view is LOST or view.jump is None:
        return None
    return _one_or_two(view.jump)  # negative where the map is flipped


def _network_field(recorder: _Recorder, out: Any) -> Pixels:
    tensor = out if torch.is_tensor(out) else next((x for x in out if torch.is_tensor(x)), None) if out else None
    view = recorder.view(tensor)
    if view is None or view is LOST:
        return None
    if view.attended:
        return "all"
    if not view.sees_all:
        return _field_of(view.before_pooling or view)
    return _field_of(recorder.entered)


def _where_it_ran_out(recorder: _Recorder, error: Exception, name: str, input_shape: tuple[int, ...]) -> str:
    shape = "x".join(map(str, input_shape))
    if not recorder.calls:
        return f"{name} cannot take a picture of {shape} ({one_line(error)}); give another --input"
    call = recorder.calls[-1]
    layer = f"{call.name or name} ({type(call.module).__name__})"
    got = "x".join(map(str, call.inputs[0].shape[1:])) if call.inputs else "nothing"
    module = call.module
    if isinstance(module, nn.Linear) and call.inputs and call.inputs[0].shape[-1] != module.in_features:
        return (
            f"a picture of {shape} reaches {layer} with {call.inputs[0].shape[-1]} features, it takes {module.in_features}; "
            f"make it Linear({call.inputs[0].shape[-1]}, {module.out_features}), or give pictures of another size"
        )
    if isinstance(module, nn.Conv2d) and call.inputs and call.inputs[0].shape[1] != module.in_channels:
        return (
            f"a picture of {shape} reaches {layer} with {call.inputs[0].shape[1]} channels, it takes {module.in_channels}; "
            f"make it Conv2d({call.inputs[0].shape[1]}, {module.out_channels}, ...), or give pictures of "
            f"{module.in_channels}x{input_shape[1]}x{input_shape[2]}"
        )
    too_small = any(
        text in str(error) for text in ("Kernel size can't be greater", "too small", "output size is", "Output size")
    )
    if too_small:
        return f"a picture of {shape} is too small: it ran out at {layer}, which got {got}; give a larger --input"
    return (
        f"{name} cannot take a picture of {shape}: {layer}, which got {got}, failed ({one_line(error)}); give another --input"
    )
