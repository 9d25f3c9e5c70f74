"""Score how unlike the training images an image is, from the activations inside the network."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gingham.errors import ModelError
from gingham.models.backbones import Backbone

NUM_STAGES = 3  # layers with positions whose activations are used
NUM_AXES = 64  # directions in which a layer's covariance is known; it is constant in all others
_captured: ContextVar[dict[str, Tensor] | None] = ContextVar("captured", default=None)


class GaussianMixture(nn.Module):
    """The distance of feature vectors to the nearest of M Gaussians, float (N, D) -> (N,).

    It is the logarithm of the squared Mahalanobis distance, for features standardised by `shift` and `scale`. All
    Gaussians have the same covariance: that along R orthonormal axes is stored, and it is constant in all other
    directions. `quadratic`, `linear` and `constant` are the coefficients of the expanded squares: for a standardised
    vector x they give |x|^2 / rest + (x @ axes)^2 @ quadratic + x @ linear + constant.

    Source: Lee et al., "A simple unified framework for detecting out-of-distribution samples" (arXiv 1807.03888), with
    several Gaussians for each class; Tipping & Bishop, "Probabilistic principal component analysis" (1999).
    """

    shift: Tensor
    scale: Tensor
    axes: Tensor
    rest: Tensor
    quadratic: Tensor
    linear: Tensor
    constant: Tensor

    def __init__(self, features: int, centres: int, axes: int) -> None:
        super().__init__()
        shapes = {
            "shift": (features,),
            "scale": (features,),
            "axes": (features, axes),
            "rest": (),
            "quadratic": (axes,),
        }
        for name, shape in (shapes | {"linear": (features, centres), "constant": (centres,)}).items():
            self.register_buffer(name, torch.ones(shape))

    @classmethod
    def from_parameters(
        cls, shift: Tensor, scale: Tensor, centres: Tensor, axes: Tensor, variances: Tensor, rest: Tensor
    ) -> "GaussianMixture":
        """Return the Gaussians with standardised `centres` (M, D), and `variances` (R,) along `axes` (D, R).

        The variance in every direction that is orthogonal to the axes is `rest`, a scalar.
        """
        quadratic = 1 / variances - 1 / rest
        projected = centres @ axes
        linear = -2 * (centres / rest + (projected * quadratic) @ axes.T).T
        constant = centres.square().sum(dim=1) / rest + projected.square() @ quadratic
        mixture = cls(len(shift), len(centres), len(variances))
        values = {"shift": shift, "scale": scale, "axes": axes, "rest": rest, "quadratic": quadratic}
        mixture.load_state_dict(values | {"linear": linear, "constant": constant})
        return mixture

    def forward(self, features: Tensor) -> Tensor:
        x = (features - self.shift) / self.scale
        shared = x.square().sum(dim=1) / self.rest + (x @ self.axes).square() @ self.quadratic
        nearest = (x @ self.linear + self.constant).amin(dim=1) + shared
        return nearest.clamp(min=1e-6).log()


class Novelty(nn.Module):
    """The novelty score of images: activations of the layers in `stages` and logits (N, K) -> scores, float (N,).

    The score is the sum of one term for each layer, its distance to the activations of training images, and one for the
    negative largest logit, which is left out for pretrained networks. Each term has mean 0 and standard deviation 1 on
    training images. Higher scores are less like them. Scores above `threshold` mean "unlike anything it was trained
    on"; `photo_threshold` is for prepared photos. `evaluation/novelty.py` fits all of them.

    Source: the largest logit is that of Hendrycks et al., "Scaling out-of-distribution detection for real-world
    settings" (arXiv 1911.11132).
    """

    term_mean: Tensor
    term_std: Tensor
    threshold: Tensor
    photo_threshold: Tensor

    def __init__(self, stages: Sequence[str], layers: Sequence[GaussianMixture]) -> None:
        super().__init__()
        self.stages, self.layers = tuple(stages), nn.ModuleList(layers)
        self.register_buffer("term_mean", torch.zeros(len(layers) + 1))
        self.register_buffer("term_std", torch.ones(len(layers) + 1))
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.register_buffer("photo_threshold", torch.tensor(torch.inf))

    @classmethod
    def with_shapes_of(cls, tensors: Mapping[str, Tensor], stages: Sequence[str]) -> "Novelty":
        """Return a score for these layers, to load the tensors of a model into: those of its score have their shapes.

        Raises
            KeyError, ValueError: tensors are missing or have shapes that do not fit together.
        """
        layers = []
        for number in range(len(stages)):
            shift, axes, linear = (tensors[f"novelty.layers.{number}.{name}"] for name in ("shift", "axes", "linear"))
            (features,), (_, count), (_, centres) = shift.shape, axes.shape, linear.shape
            # Checked before memory is allocated: it is then no more than the tensors have.
            if not (features == len(axes) == len(linear) > 0 < centres):
                raise ValueError(f"the tensors of novelty.layers.{number} have shapes that do not fit together")
            layers.append(GaussianMixture(features, centres, count))
        return cls(stages, layers)

    def metadata(self) -> dict[str, Any]:
        """Return the names of the layers and the thresholds as JSON values."""
        thresholds = {"threshold": float(self.threshold), "photo_threshold": float(self.photo_threshold)}
        return {"stages": list(self.stages), **thresholds}

    def forward(self, statistics: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        return ((self.terms(statistics, logits) - self.term_mean) / self.term_std).sum(dim=1)

    def terms(self, statistics: Mapping[str, Tensor], logits: Tensor) -> Tensor:
        """Return the terms of the score before they are standardised, float (N, L + 1).

        Raises
            ModelError: the network has no such layers, or theirs are other activations.
        """
        distances = []
        for layer, name in zip(self.layers, self.stages, strict=True):
            expected = len(layer.get_buffer("shift"))
            if name not in statistics or statistics[name].shape[1] != expected:
                given = f"{statistics[name].shape[1]:,}" if name in statistics else "no"
                raise ModelError(
                    f"the layer {name!r} has {given} features for the novelty score, not {expected:,}; restore "
                    "model.json from a copy or train again"
                )
            distances.append(layer(statistics[name]))
        return torch.stack([*distances, -logits.float().amax(dim=1)], dim=1)


def layer_statistics(activations: Tensor) -> Tensor:
    """Return feature vectors of a layer's activations, float (N, D): for (N, C, H, W), of each channel the mean of each
    quadrant, the standard deviation and the cube root of the third central moment, 6C in all.

    The quadrants overlap in the middle row and column if their number is odd.
    """
    activations = activations.float()
    if activations.dim() == 2:
        return activations
    weights = torch.from_numpy(_mean_weights(*activations.shape[2:])).to(activations.device)
    values = activations.permute(0, 2, 3, 1).flatten(1, 2)  # (N, H * W, C), without a copy if they are channels last
    squares = values.square()
    means = weights @ values
    mean, second, third = means[:, 0], squares.mean(dim=1), (squares * values).mean(dim=1)
    deviation = (second - mean.square()).clamp(min=0).sqrt()
    skewness = (third - 3 * mean * second + 2 * mean**3).abs().pow(1 / 3)
    return torch.cat([means[:, 1:].flatten(1), deviation, skewness], dim=1)


@functools.cache
def _mean_weights(height: int, width: int) -> npt.NDArray[np.float32]:
    """Return the weights of each position, float (5, H * W), in the mean over all and in those over the quadrants."""
    rows, columns = ((slice(0, (side + 1) // 2), slice(side // 2, side)) for side in (height, width))
    weights = np.zeros((5, height, width), np.float32)
    parts = [(slice(None), slice(None)), *((row, column) for row in rows for column in columns)]
    for weight, part in zip(weights, parts, strict=True):
        weight[part] = 1 / weight[part].size
    return weights.reshape(5, -1)


def find_stages(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Return the names of the layers whose activations a novelty score uses.

    For a convolutional network they are the last layers at each of the three lowest resolutions; if there are fewer
    resolutions, and for a pretrained network, the last linear layer joins them, with its input. `example` is an input
    of the network, float (1, C, H, W).
    """
    last: dict[tuple[int, int], str] = {}
    ran = set[str]()

    def record(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ran.add(name)
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2:].numel() > 1:
            size = (output.shape[2], output.shape[3])
            last.pop(size, None)  # the order is that of the last layers
            last[size] = name

    handles = [
        module.register_forward_hook(functools.partial(record, name))
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    # Features of a pretrained network are computed once, so its stages are not available.
    # One layer may run at several resolutions.
    stages = [] if isinstance(network, Backbone) else list(dict.fromkeys(last.values()))[-NUM_STAGES:]
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name in ran]
    return (*stages, *linear[-1:]) if len(stages) < NUM_STAGES else tuple(stages)


def watch_stages(network: nn.Module, stages: Sequence[str]) -> None:
    """Let the layers of these names report their statistics to `capture_statistics`."""
    for name in stages:
        layer = network.get_submodule(name)
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(functools.partial(_capture_input, name), with_kwargs=True)
        else:
            layer.register_forward_hook(functools.partial(_capture_output, name))


@contextmanager
def capture_statistics() -> Iterator[dict[str, Tensor]]:
    """Yield a dict that gets the `layer_statistics` of each watched layer in the next forward pass of this thread."""
    captured: dict[str, Tensor] = {}
    token = _captured.set(captured)
    try:
        yield captured
    finally:
        _captured.reset(token)


def _capture_input(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
    captured = _captured.get()
    if captured is not None and name not in captured:  # with TTA, only the image itself
        captured[name] = layer_statistics((*inputs, *keywords.values())[0].flatten(1))


def _capture_output(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    captured = _captured.get()
    if captured is not None and name not in captured and isinstance(output, Tensor) and output.dim() in (2, 4):
        captured[name] = layer_statistics(output)
