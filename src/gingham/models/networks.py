"""The network architectures that come with Gingham."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from gingham.errors import Catalogue, ModelError


def article(channels: int = 1, classes: int = 10) -> nn.Module:
    """Return the article's network for 28x28 images: float (N, channels, 28, 28) -> log-probabilities (N, classes).

    Eight convolutions without padding or bias and one max-pooling, so that the receptive field covers all of the
    image's 28 pixels. For one channel and ten classes it has 48,884 parameters, with PyTorch's default initialisation.

    >>> sum(p.numel() for p in article().parameters())
    48884

    Source: "My first deep learning model using PyTorch", the beginner's article that this project is based on.
    """
    convolutions: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(channels, 16, 3, bias=False)),  # (N, 16, 26, 26), receptive field 3
        ("relu1", nn.ReLU()),
        ("conv2", nn.Conv2d(16, 32, 3, bias=False)),  # (N, 32, 24, 24), 5
        ("relu2", nn.ReLU()),
        ("conv3", nn.Conv2d(32, 64, 3, bias=False)),  # (N, 64, 22, 22), 7
        ("relu3", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),  # (N, 64, 11, 11), 8; from here on the jump is two pixels
        ("conv4", nn.Conv2d(64, 32, 1, bias=False)),  # (N, 32, 11, 11), 8: mixes channels only
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(32, 32, 3, bias=False)),  # (N, 32, 9, 9), 12
        ("relu5", nn.ReLU()),
        ("conv6", nn.Conv2d(32, 32, 3, bias=False)),  # (N, 32, 7, 7), 16
        ("relu6", nn.ReLU()),
        ("conv7", nn.Conv2d(32, 10, 1, bias=False)),  # (N, 10, 7, 7), 16; if its ReLU is dead, nothing is learned
        ("relu7", nn.ReLU()),
        ("conv8", nn.Conv2d(10, classes, 7, bias=False)),  # (N, K, 1, 1), 28: the whole image
        ("flatten", nn.Flatten()),  # (N, K)
        ("log_softmax", nn.LogSoftmax(dim=1)),
    ]
    return nn.Sequential(OrderedDict(convolutions))


class Residual(nn.Module):
    """Return x + layers(x), so that the gradient passes through any number of blocks: float (N, C, H, W) in and out.

    Source: He et al., "Deep Residual Learning" (arXiv 1512.03385), but without a ReLU after the sum.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.layers(x)
        return out


class MeanPool(nn.Module):
    """Return the mean over all positions: float (N, C, H, W) -> (N, C).

    It is used instead of `nn.AdaptiveAvgPool2d(1)`, whose gradient has a different memory format than the activations:
    converting it makes a step 1.1 times as long (benchmarks/step_time.py).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1)


def residual(channels: int = 1, classes: int = 10, *, widths: Sequence[int], blocks: Sequence[int]) -> nn.Module:
    """Return a residual network for images of any size: float (N, channels, H, W) -> logits (N, classes).

    Each stage has a convolution of stride 2, which halves the image, followed by residual blocks. `widths` has the
    number of channels of each stage, and `blocks` its number of blocks. The first stage's convolution is 5x5, all
    others are 3x3. BatchNorm follows every convolution. The mean over the remaining positions enters a linear layer.

    >>> residual(widths=(16, 32, 64), blocks=(0, 1, 1))(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def convolution(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Module:
        # Strides instead of pooling, because on a CPU max-pooling takes as long as the convolution before it.
        conv = nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels), relu=nn.ReLU(inplace=True)))

    stages: list[tuple[str, nn.Module]] = []
    in_channels = channels
    for number, (width, depth) in enumerate(zip(widths, blocks, strict=True), 1):
        stages.append((f"stage{number}", convolution(in_channels, width, 5 if number == 1 else 3, stride=2)))
        stages += [(f"stage{number}_block{k}", Residual(convolution(width, width, 3, 1))) for k in range(1, depth + 1)]
        in_channels = width
    stages += [("pool", MeanPool()), ("linear", nn.Linear(in_channels, classes, bias=False))]
    return nn.Sequential(OrderedDict(stages))


class WideBlock(nn.Module):
    """A residual block of two 3x3 convolutions, each after BatchNorm and ReLU.

    float (N, C, H, W) -> (N, K, H / stride, W / stride), with C `in_channels` and K `out_channels`.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same_shape = (in_channels, stride) == (out_channels, 1)
        self.shortcut = None if same_shape else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = torch.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        out: torch.Tensor = shortcut + self.conv2(torch.relu(self.norm2(self.conv1(activated))))
        return out


def wide_residual(channels: int = 1, classes: int = 10, *, depth: int, widen: int) -> nn.Module:
    """Return a wide residual network (WRN) for images of any size: float (N, channels, H, W) -> logits (N, classes).

    Three stages of (depth - 4) / 6 blocks each, with 16, 32 and 64 times `widen` channels, at the image's size, half of
    it and a quarter of it. Very accurate on small images, but slow without a GPU.

    >>> sum(p.numel() for p in wide_residual(3, 10, depth=28, widen=10).parameters())
    36479194

    Source: Zagoruyko & Komodakis, "Wide Residual Networks" (arXiv 1605.07146), without dropout.
    """
    layers: list[tuple[str, nn.Module]] = [("stem", nn.Conv2d(channels, 16, 3, padding=1, bias=False))]
    in_channels = 16
    for number, width in enumerate((16, 32, 64), 1):
        for k in range(1, (depth - 4) // 6 + 1):
            stride = 2 if number > 1 and k == 1 else 1
            layers.append((f"stage{number}_block{k}", WideBlock(in_channels, width * widen, stride)))
            in_channels = width * widen
    layers += [("norm", nn.BatchNorm2d(in_channels)), ("relu", nn.ReLU(inplace=True)), ("pool", MeanPool())]
    return nn.Sequential(OrderedDict([*layers, ("linear", nn.Linear(in_channels, classes))]))


_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "article": article,
    "tiny": partial(residual, widths=(16, 32, 64), blocks=(0, 0, 0)),  # 24,304 parameters, 0.6 million multiply-adds
    "small": partial(residual, widths=(16, 32, 64), blocks=(0, 1, 1)),
    "medium": partial(residual, widths=(32, 64, 128), blocks=(0, 1, 1)),
    "large": partial(residual, widths=(32, 64, 128), blocks=(1, 1, 1)),
    "broad": partial(residual, widths=(40, 80, 160), blocks=(1, 1, 1)),
    "huge": partial(residual, widths=(48, 96, 192), blocks=(2, 1, 1)),
    # For GPUs, whose matrix units process channels in multiples of 64.
    "giant": partial(residual, widths=(64, 128, 256), blocks=(1, 1, 1)),
    "wrn-10-3": partial(wide_residual, depth=10, widen=3),
    "wrn-10-4": partial(wide_residual, depth=10, widen=4),
    "wrn-16-4": partial(wide_residual, depth=16, widen=4),
    "wrn-28-10": partial(wide_residual, depth=28, widen=10),
}
NETWORKS = Catalogue("network", ModelError, _NETWORKS)
