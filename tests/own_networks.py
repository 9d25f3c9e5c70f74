"""Networks as users write them, with and without faults, for `--model` and the checks of runs."""

import torch
import torch.nn.functional as F
from torch import nn


class Plain(nn.Module):
    """Two convolutions, a pooling, dropout, two linear layers: what most first networks look like."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3)
        self.dropout = nn.Dropout(0.25)
        self.fc1, self.fc2 = nn.Linear(32 * 12 * 12, 64), nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        return self.fc2(F.relu(self.fc1(self.dropout(x.flatten(1)))))


class WrongLinear(Plain):
    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.fc1 = nn.Linear(1000, 64)


class WrongOutputs(Plain):
    def __init__(self) -> None:
        super().__init__(classes=7)


class TwiceSoftmax(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(dim=1)


class Dead(Plain):
    """A bias so low that every output of the second convolution's ReLU is 0 for every image."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        nn.init.constant_(self.conv2.bias, -1e3)


class InfiniteWithSeedOne(Plain):
    """A loss that is not finite if the weights were drawn with seed 1."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.factor = float("inf") if torch.initial_seed() == 1 else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (self.factor if self.training else 1)


class UnbuiltWithSeedOne(Plain):
    """A network that cannot be created with seed 1."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        if torch.initial_seed() == 1:
            raise ValueError("no seed 1, please")


class Norms(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.hidden, self.norm = nn.Linear(8 * 13 * 13, 16), nn.BatchNorm1d(16)
        self.out = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.relu(self.norm(self.hidden(self.features(x)))))


class Lazy(nn.Sequential):
    """Layers that get their shape, and draw their weights, in the first forward pass."""

    def __init__(self, classes: int = 10) -> None:
        layers = nn.LazyConv2d(4, 3, stride=2), nn.LazyBatchNorm2d(affine=False), nn.ReLU(), nn.Flatten()
        super().__init__(*layers, nn.LazyLinear(classes))


class LazyUncalled(Lazy):
    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.add_module("spare", nn.LazyLinear(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in list(self)[:5]:
            x = layer(x)
        return x


class NoParameters(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :4]


class Frozen(Plain):
    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.requires_grad_(requires_grad=False)


class Flat(nn.Sequential):
    """No convolution at all."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, classes))


class Zero(Flat):
    """All weights zero: nothing can be learned, and not only because of a ReLU."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__(classes)
        self.gate = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.gate


class NeedsArguments(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


NOT_CALLABLE = 3


def not_a_module() -> int:
    return 3


class Tied(nn.Module):
    """Two layers with the same weights."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(784, 784), nn.Linear(784, 784), nn.Linear(784, classes)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.out(self.second(self.first(x.flatten(1)).relu()).relu()), dim=1)


tied = Tied()  # an object in place of a class
