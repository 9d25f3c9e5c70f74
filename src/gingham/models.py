"""The networks, and the Classifier that wraps one: uint8 pictures in, logits out."""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gingham.errors import ModelError, one_line, suggest


def article(channels: int = 1, classes: int = 10) -> nn.Module:
    """Return the article's network for 28x28 pictures: float (N, channels, 28, 28) -> log-probabilities (N, classes).

    Eight convolutions without padding or bias and one max-pooling, piled up until the receptive field covers the
    picture: 28 of 28 pixels. 48,884 parameters for one channel and ten classes, in PyTorch's default initialisation.

    >>> sum(p.numel() for p in article().parameters())
    48884

    Source: "My first deep learning model using PyTorch", the beginner's article this project began from.
    """
    convolutions: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 16, 3, bias=False)),  # (N, 16, 26, 26), receptive field 3
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(16, 32, 3, bias=False)),  # (N, 32, 24, 24), 5
        ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(32, 64, 3, bias=False)),  # (N, 64, 22, 22), 7
        ("relu3", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),  # (N, 64, 11, 11), 8, and from here each step is two pixels
        ("conv4", nn.Conv2d(64, 32, 1, bias=False)),  # (N, 32, 11, 11), 8: mixes channels only
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(32, 32, 3, bias=False)),  # (N, 32, 9, 9), 12
        ("relu5", nn.ReLU()),
        ("conv6", nn.Conv2d(32, 32, 3, bias=False)),  # (N, 32, 7, 7), 16
        ("relu6", nn.ReLU()),
        ("conv7", nn.Conv2d(32, 10, 1, bias=False)),  # (N, 10, 7, 7), 16: its ReLU can die and end the learning
        ("relu7", nn.ReLU()),
        ("conv8", nn.Conv2d(10, classes, 7, bias=False)),  # (N, K, 1, 1), 28: the whole picture
        ("flatten", nn.Flatten()),  # (N, K)
        ("log_softmax", nn.LogSoftmax(dim=1)),
    ]
    return nn.Sequential(OrderedDict(convolutions))


class Residual(nn.Module):
    """x + layers(x): float (N, C, H, W) in and out, so that stacking more of them cannot block the gradient.

    Source: He et al., "Deep Residual Learning" (arXiv 1512.03385); here nothing follows the sum.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers(x)
        return out


class MeanPool(nn.Module):
    """The mean over all positions: float (N, C, H, W) -> (N, C).

    What `nn.AdaptiveAvgPool2d(1)` gives, but its gradient comes back in another memory format than the activations have, and
    the layers before it wait for the conversions: steps are 1.1 times as long (benchmarks/step_time.py).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


def residual(channels: int = 1, classes: int = 10, *, widths: Sequence[int], blocks: Sequence[int]) -> nn.Module:
    """Return a residual network for pictures of any size: float (N, channels, H, W) -> logits (N, classes).

    A stage for each of `widths`, its number of channels: a convolution of stride 2, which halves the picture, then as
    many residual blocks as `blocks` says. The first stage's convolution is 5x5, all others 3x3. BatchNorm follows every
    convolution. The mean over the positions that are left goes into one linear layer.

    >>> residual(widths=(16, 32, 64), blocks=(0, 1, 1))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def convolution(before: int, after: int, size: int, stride: int) -> nn.Module:
        # Strides and no pooling: a max-pooling costs as much time on a CPU as the convolution before it.
        conv = nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(after), relu=nn.ReLU(inplace=True)))

    stages: list[tuple[str, nn.Module]] = []
    before = channels
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True), 1):
        stages.append((f"stage{number}", convolution(before, width, 5 if number == 1 else 3, stride=2)))
        stages += [(f"stage{number}_block{k}", Residual(convolution(width, width, 3, 1))) for k in range(1, count + 1)]
        before = width
    return nn.Sequential(OrderedDict([*stages, ("pool", MeanPool()), ("linear", nn.Linear(before, classes, bias=False))]))


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, beside a shortcut: float (N, C, H, W) -> (N, K, H / stride, W / stride)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if (before, stride) != (after, 1) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ready = torch.relu(self.norm1(x))
        skipped = x if self.shortcut is None else self.shortcut(ready)
        out: torch.Tensor = skipped + self.conv2(torch.relu(self.norm2(self.conv1(ready))))
        return out


def wide_residual(channels: int = 1, classes: int = 10, *, depth: int, widen: int) -> nn.Module:
    """Return a wide residual network (WRN) for pictures of any size: float (N, channels, H, W) -> logits (N, classes).

    Three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `widen` channels, at the picture's own size, a half and a
    quarter of it: as accurate as any on small pictures, and heavy. For a GPU.

    >>> sum(p.numel() for p in wide_residual(3, 10, depth=28, widen=10).parameters())
    36479194

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (arXiv 1605.07146), without dropout.
    """
    layers: list[tuple[str, nn.Module]] = [("stem", nn.Conv2d(channels, 16, 3, padding=1, bias=False))]
    before = 16
    for number, width in enumerate((16, 32, 64), 1):
        for k in range(1, (depth - 4) // 6 + 1):
            layers.append((f"stage{number}_block{k}", WideBlock(before, width * widen, 2 if number > 1 and k == 1 else 1)))
            before = width * widen
    layers += [("norm", nn.BatchNorm2d(before)), ("relu", nn.ReLU(inplace=True)), ("pool", MeanPool())]
    return nn.Sequential(OrderedDict([*layers, ("linear", nn.Linear(before, classes))]))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "article": article,
    "tiny": partial(residual, widths=(16, 32, 64), blocks=(0, 0, 0)),  # 24,304 parameters, 0.6 million multiply-adds
    "small": partial(residual, widths=(16, 32, 64), blocks=(0, 1, 1)),
    "medium": partial(residual, widths=(32, 64, 128), blocks=(0, 1, 1)),
    "large": partial(residual, widths=(32, 64, 128), blocks=(1, 1, 1)),
    "broad": partial(residual, widths=(40, 80, 160), blocks=(1, 1, 1)),
    "huge": partial(residual, widths=(48, 96, 192), blocks=(2, 1, 1)),
    # For GPUs, whose matrix units work on channels by the 64.
    "giant": partial(residual, widths=(64, 128, 256), blocks=(2, 2, 2)),
    "wrn-16-4": partial(wide_residual, depth=16, widen=4),
    "wrn-28-10": partial(wide_residual, depth=28, widen=10),
}


TRIED_SIDE = 128  # pixels of the blank picture that a network is tried on, at most


@dataclass(frozen=True)
class Predictions:
    """What a model says of N pictures.

    `labels` is int64 (N,), the index of the most probable class; `probabilities` is float32 (N, K), rows summing to 1;
    `unsure` is bool (N,), true where the top probability is below the model's threshold; `classes` holds the K names.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    unsure: torch.Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """The name of each picture's most probable class."""
        return [self.classes[label] for label in self.labels.tolist()]


class Classifier(nn.Module):
    """A network with all it needs to be used: uint8 (N, C, H, W) in, logits float (N, K) out.

    Normalisation, temperature and the threshold for "not sure" are buffers, so they travel with the weights. With views
    "flip" the answer, outside of training, is the mean of the logits of each picture and of its mirror image.

        model = Classifier(article(), classes=("cat", "dog", ...), input_shape=(1, 28, 28))
        model.predict(torch.zeros(5, 1, 28, 28, dtype=torch.uint8)).probabilities   # (5, 10)

    Raises
        ModelError: `mean` or `std` fit neither one nor all channels, or pictures of another shape or dtype come in.
    """

    mean: torch.Tensor
    std: torch.Tensor
    temperature: torch.Tensor
    threshold: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        input_shape: tuple[int, int, int],
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        views: str = "one",
    ) -> None:
        super().__init__()
        self.network = network
        self.views = views
        self.classes = tuple(classes)
        self.input_shape = input_shape
        channels = input_shape[0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ModelError(
                    f"{name} has {len(values)} numbers for pictures of {channels} channels; give one, or one a channel"
                )
            spread = tuple(values) * (channels if len(values) == 1 else 1)
            self.register_buffer(name, torch.tensor(spread).view(1, channels, 1, 1))
        self.register_buffer("temperature", torch.tensor(1.0))  # fitted after training; divides the logits
        self.register_buffer("threshold", torch.tensor(0.0))  # a top probability below it is "not sure"
        # Convolutions are faster on NHWC: as NCHW steps are 1.2 to 1.3 times as long (benchmarks/step_time.py).
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8 or images.shape[1:] != self.input_shape:
            wanted = ", ".join(map(str, self.input_shape))
            raise ModelError(
                f"the model got {str(images.dtype).removeprefix('torch.')} pictures of shape {tuple(images.shape)}; "
                f"it takes uint8 of shape (N, {wanted}) with values from 0 to 255"
            )
        pixels = (images.float() / 255 - self.mean) / self.std
        logits: torch.Tensor = self.network(pixels)
        if self.views == "flip" and not self.training:
            logits = (logits + self.network(pixels.flip(3))) / 2
        return logits / self.temperature

    def predict(self, images: torch.Tensor | npt.NDArray[np.uint8], batch_size: int = 500) -> Predictions:
        """Return the model's answers for uint8 pictures (N, C, H, W), in float32, `batch_size` at a time."""
        logits = self.logits(torch.as_tensor(images), batch_size)
        probabilities = logits.softmax(dim=1)
        if not bool(probabilities.isfinite().all()):
            raise ModelError("the model's answers are not finite numbers; restore its weights from a copy, or train again")
        top, labels = probabilities.max(dim=1)
        return Predictions(labels, probabilities, top < self.threshold.cpu(), self.classes)

    @torch.no_grad()
    def logits(self, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
        """Return float32 logits (N, K) on the CPU, in evaluation mode and without gradients."""
        modes = {module: module.training for module in self.modules()}
        self.eval()
        cudnn = torch.backends.cudnn
        was_allowed, cudnn.allow_tf32 = cudnn.allow_tf32, False  # on a GPU "float32" convolutions may round to 10 bits
        try:
            device = self.mean.device
            parts = [self(part.to(device)).float().cpu() for part in torch.split(images, batch_size)]
            return torch.cat(parts) if parts else torch.empty(0, len(self.classes))
        finally:
            cudnn.allow_tf32 = was_allowed
            for module, mode in modes.items():
                module.training = mode


NetworkFactory = Callable[..., nn.Module]


def name_of(factory: NetworkFactory) -> str:
    """Return what a run calls a network of the user's own: `package.module:Class`."""
    return f"{factory.__module__}:{factory.__qualname__}"


def construct(network: str, factory: NetworkFactory | None, channels: int = 1, classes: int = 10) -> nn.Module:
    """Return a fresh network: Gingham's of that name or, given a factory, what that makes.

    A factory is a class or function; it gets `channels` and `classes` where it has parameters of these names.

    Raises
        ModelError: no network has that name, or the factory fails or makes no torch.nn.Module.
    """
    if factory is None and network not in NETWORKS:
        raise ModelError(f"unknown network {network!r}{suggest(network, NETWORKS)}")
    try:
        maker: NetworkFactory = factory if factory is not None else NETWORKS[network]
        taken = inspect.signature(maker).parameters
        given = {name: value for name, value in (("channels", channels), ("classes", classes)) if name in taken}
        made: Any = maker(**given)
    except Exception as error:
        raise ModelError(
            f"cannot make {network} ({type(error).__name__}: {one_line(error)}); it must be a torch.nn.Module that needs no "
            "arguments other than channels and classes"
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{network} makes a {type(made).__name__}; a torch.nn.Module is needed")
    return made


def build(
    network: str,
    classes: Sequence[str],
    input_shape: tuple[int, int, int],
    mean: Sequence[float] = (0.5,),
    std: Sequence[float] = (0.5,),
    views: str = "one",
    factory: NetworkFactory | None = None,
) -> Classifier:
    """Return a Classifier around a freshly initialised network, tried on one blank picture.

    `input_shape` is (C, H, W). `network` is a name in NETWORKS or, with a `factory` that makes it, a name to call it by.
    The initialisation draws from torch's global generator.

    Raises
        ModelError: no network has that name, or it does not fit the pictures or the number of classes.
    """
    made = construct(network, factory, input_shape[0], len(classes))
    model = Classifier(made, classes, input_shape, mean, std, views)
    # Those of gingham's take pictures of any size or of a small one: no file of a stranger's makes room for a larger one here.
    channels, height, width = input_shape
    tried = input_shape if factory is not None else (channels, min(height, TRIED_SIDE), min(width, TRIED_SIDE))
    shape = "x".join(map(str, tried))
    failures: type[Exception] = RuntimeError if factory is None else Exception  # a user's forward may fail in any way
    try:
        model.input_shape = tried
        got = tuple(model.logits(torch.zeros(1, *tried, dtype=torch.uint8)).shape)
        model.input_shape = input_shape
    except failures as error:
        raise ModelError(
            f"the network {network!r} cannot take pictures of {shape} ({one_line(error)}); "
            f"gingham summary {network} --input {shape} names the layer"
        ) from error
    if got != (1, len(classes)) and factory is not None:
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {got}, where (1, {len(classes)}) logits are needed; "
            f"let it end in {len(classes)} outputs a picture, such as nn.Linear(..., {len(classes)})"
        )
    if got != (1, len(classes)):
        raise ModelError(
            f"the network {network!r} turns one picture of {shape} into {got}, where (1, {len(classes)}) logits are "
            "needed; choose another network or pictures of the size it was made for (article: 28x28)"
        )
    return model
