"""Pretrained networks of timm, with a linear classifier on the features of all their stages."""

import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gingham.device import forked_generators
from gingham.errors import ModelError, RunError, is_exhausted, list_first, one_line, suggest
from gingham.io import read_tensors, sha256
from gingham.models.operations import OperationObserver, operation_name, tensors_in

PREFIX = "timm/"  # of the names of these networks, such as "timm/resnet18"
WEIGHTS_FILE = "model.safetensors"  # in the repositories of timm's weights
DEFAULT_BACKBONE = "tf_efficientnet_lite0"
# Suggested for an unknown name. timm has more than a thousand.
POPULAR = (
    DEFAULT_BACKBONE,
    "hgnetv2_b0",
    "mobilenetv4_conv_small",
    "regnety_004",
    "resnet18",
    "resnet50",
    "vit_small_patch16_224",
)
TRACE_SIDE = 96  # pixels of the blank image that shows the order of layers

Weights = Mapping[str, torch.Tensor]


class Backbone(nn.Module):
    """A timm network and a linear classifier on its features: float (N, 1 or 3, H, W), 0 to 1, -> logits (N, K).

    The features are those of the network before its own classifier, and the mean activations of its earlier stages,
    which contain colour and texture that a classifier of ImageNet discards. They are standardised with their mean and
    standard deviation over the training images.

    BatchNorm is folded into the convolutions. The network computes the same function in less time, and its statistics
    remain those of the pretraining, because those of small batches are too noisy.

        network = Backbone("resnet18", classes=10)
        network.classify(network.features(images))      # the same as network(images)

    Raises
        ModelError: timm is not installed, or has no network of that name.

    Source of the earlier stages' features: Evci et al., "Head2Toe" (arXiv 2201.03529).
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor
    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        self.name = name
        timm = import_timm(name)
        try:
            self.body: Any = self._create_body(timm)
            for key in ("mean", "std"):
                self.register_buffer(f"pixel_{key}", torch.tensor(self.body.pretrained_cfg[key]).view(1, -1, 1, 1))
            with torch.no_grad():
                width = self.features(_example(self.body)).shape[1]
        except Exception as error:  # a few of timm's networks take no images, or lack the methods that are used here
            if is_exhausted(error):
                raise
            raise ModelError(f"timm's network {name} cannot be used ({one_line(error)}); choose another") from error
        self.register_buffer("feature_mean", torch.zeros(width))
        self.register_buffer("feature_std", torch.ones(width))
        self.classifier = nn.Linear(width, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def _create_body(self, timm: Any, weights: Weights | None = None) -> Any:
        body = timm.create_model(self.name, num_classes=0)
        if weights is not None:
            _load_weights(body, weights, self.name)
        fold_batchnorm(body, _example(body))
        return body

    def load_pretrained(self, weights: Weights) -> None:
        """Load pretrained weights, as timm publishes them for this network.

        Raises
            ModelError: they are those of another network, or not finite.
        """
        with forked_generators():  # the initial weights are overwritten
            folded = self._create_body(import_timm(self.name), weights).state_dict()
        if broken := [f"{key} is not finite" for key, tensor in folded.items() if not tensor.isfinite().all()]:
            raise _unsuitable_weights(self.name, list_first(broken, 3))
        self.body.load_state_dict(folded)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of images with pixels from 0 to 1, float (N, D)."""
        pixels = (images.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std
        final, stages = self.body.forward_intermediates(pixels)
        pooled = self.body.forward_head(final, pre_logits=True)
        return torch.cat([pooled, *(stage.mean(dim=(2, 3)) for stage in stages)], dim=1)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, K) of features (N, D)."""
        logits: torch.Tensor = self.classifier((features - self.feature_mean) / self.feature_std)
        return logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(images))

    def freeze(self, share: float) -> None:
        """Let the layers of lower depth than a share, from 0 to 1, keep their weights in training."""
        for name, depth in self.parameter_depths().items():
            self.get_parameter(name).requires_grad_(depth >= share)

    @torch.no_grad()
    def standardize(self, features: torch.Tensor) -> None:
        """Set the mean and standard deviation to those of the training images' features (N, D)."""
        self.feature_mean.copy_(features.mean(dim=0))
        # Some features are nearly constant. Their noise must not be amplified.
        deviation = features.std(dim=0, correction=0)
        self.feature_std.copy_(deviation.clamp_min(0.01 * float(deviation.mean()) + 1e-6))

    def parameter_depths(self) -> dict[str, float]:
        """Return the depth of each parameter's layer by name, from 0 for the first layer to 1 for the classifier."""
        from timm.models import group_parameters

        layers = group_parameters(self.body, self.body.group_matcher(coarse=False))
        count = max(layers) + 1
        depths = {f"body.{name}": layer / count for layer, names in layers.items() for name in names}
        return {name: depths.get(name, 1.0) for name, _ in self.named_parameters()}


def _example(body: Any) -> torch.Tensor:
    """Return a small blank image that a timm network accepts, float (1, 3, H, W)."""
    config = body.pretrained_cfg
    side = config["input_size"][1] if config.get("fixed_input_size") else TRACE_SIDE
    return torch.zeros(1, 3, side, side)


def import_timm(name: str) -> Any:
    """Return the module timm, after checking that it has a network of this name.

    Raises
        ModelError: timm is not installed, or has no such network.
    """
    if importlib.util.find_spec("timm") is None:
        raise ModelError(f"the network {PREFIX}{name} needs the package timm; run pip install 'gingham[backbones]'")
    import timm

    # A name of another form, such as an address on a hub, would make timm download and run other models.
    known = timm.is_model(name) and ":" not in name and "/" not in name
    try:
        known = known and ("." not in name or timm.get_pretrained_cfg(name) is not None)  # a tag, such as .a1_in1k
    except RuntimeError:
        known = False
    if not known:
        raise ModelError(f"timm has no network {name!r}{suggest(name, POPULAR, timm.list_models())}, ...")
    return timm


def count_parameters(name: str) -> int:
    """Return the number of parameters of a timm network without its classifier, without allocating them.

    Raises
        ModelError: timm is not installed, or has no such network.
    """
    timm = import_timm(name)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, num_classes=0).parameters())


def fold_batchnorm(network: nn.Module, example: torch.Tensor) -> None:
    """Fold each BatchNorm of a network into the convolution before it, in place, and set evaluation mode.

    `example` is an input, float (N, C, H, W), with which the network is run once to see the order of its layers.
    """
    operations: list[tuple[str, list[torch.Tensor], Any]] = []  # keeps the tensors alive, so that no id is reused

    def record(operation: Any, args: Any, kwargs: Any, out: Any) -> None:
        operations.append((operation_name(operation), tensors_in((args, kwargs)), out))

    network.eval()
    with torch.no_grad(), OperationObserver(record):
        network(example)
    uses = Counter(id(tensor) for _, inputs, _ in operations for tensor in inputs)
    names = {module: name for name, module in network.named_modules()}
    # Layers that are called twice, or whose weight another layer has, are left out.
    by_weight = {
        id(module.weight): module
        for module in names
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and uses[id(module.weight)] == 1
    }
    convolutions: dict[int, nn.Conv2d] = {}  # by the id of their output
    for kind, inputs, out in operations:
        layer = next((by_weight[id(tensor)] for tensor in inputs if id(tensor) in by_weight), None)
        if isinstance(layer, nn.Conv2d) and kind == "convolution":  # subclasses may change their weight before
            convolutions[id(out)] = layer
        # The output of the convolution must have no other use, such as a residual connection.
        elif isinstance(layer, nn.BatchNorm2d) and id(inputs[0]) in convolutions and uses[id(inputs[0])] == 1:
            convolution = convolutions[id(inputs[0])]
            folded = fuse_conv_bn_eval(convolution, layer).requires_grad_()
            convolution.weight, convolution.bias = folded.weight, folded.bias
            # timm's BatchNorm layers contain the activation that follows.
            rest = [part for part in (getattr(layer, "drop", None), getattr(layer, "act", None)) if part is not None]
            network.set_submodule(names[layer], nn.Sequential(*rest) if rest else nn.Identity())


def _load_weights(body: Any, weights: Weights, name: str) -> None:
    """Load pretrained weights into a timm network without its classifier."""
    classifiers = body.pretrained_cfg["classifier"] or []
    # The modules of classifiers, which may have more layers than the last one that timm names.
    heads = tuple(
        f"{part.partition('.')[0]}." for part in ([classifiers] if isinstance(classifiers, str) else classifiers)
    )
    try:
        missing, unexpected = body.load_state_dict(weights, strict=False)
        unexpected = [key for key in unexpected if not key.startswith(heads)]
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        differences = list_first([f"no {key}" for key in missing] + [f"also {key}" for key in unexpected], 3)
    except RuntimeError as error:
        shapes = {
            key: (tuple(weights[key].shape), tuple(own.shape))
            for key, own in body.state_dict().items()
            if key in weights
        }
        wrong = [f"{key} has shape {given}, not {own}" for key, (given, own) in shapes.items() if given != own]
        differences = list_first(wrong, 3) or one_line(error)
    if differences:
        raise _unsuitable_weights(name, differences)


def _unsuitable_weights(name: str, reason: str) -> ModelError:
    return ModelError(f"the weights are not those of timm's {name} ({reason}); give the file of that network")


def find_weights(
    name: str, file: Path | None = None, say: Callable[[str], None] = lambda message: None
) -> tuple[Weights, str]:
    """Return the pretrained weights of a timm network, and the SHA-256 of their file.

    `file` is a safetensors file. Without it, the weights that timm lists for the name come from the Hugging Face Hub
    (`$HF_ENDPOINT` names a mirror) or from its cache. Before a download, `say` gets a sentence with size and licence.

    Raises
        ModelError: timm lists no weights for the network, they cannot be downloaded, or the file cannot be read.
    """
    timm = import_timm(name)
    path = Path(file) if file else _download(timm, name, say)
    try:
        return read_tensors(path)[0], sha256(path)
    except RunError as error:
        reason = str(error).partition(";")[0]
        advice = "give a safetensors file of them" if file else "remove it, so that it is downloaded again"
        raise ModelError(f"the pretrained weights of {name}: {reason}; {advice}") from error


def _download(timm: Any, name: str, say: Callable[[str], None]) -> Path:
    import huggingface_hub as hub

    config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    if config is None or not config.hf_hub_id:
        raise ModelError(f"timm lists no pretrained weights for {name}; give a file (--weights), or another network")
    repository = config.hf_hub_id
    try:
        return Path(hub.hf_hub_download(repository, WEIGHTS_FILE, local_files_only=True))
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        size = hub.get_hf_file_metadata(hub.hf_hub_url(repository, WEIGHTS_FILE), timeout=10).size or 0
        origin = f"{hub.constants.ENDPOINT}/{repository}, licence {config.license or 'not stated'}"
        say(f"downloading {size / 1e6:.0f} MB of pretrained weights from {origin}")
        return Path(hub.hf_hub_download(repository, WEIGHTS_FILE))
    except Exception as error:  # the library of each version raises other errors without a network
        raise ModelError(
            f"cannot download the pretrained weights of {name} from {hub.constants.ENDPOINT} ({one_line(error)}); "
            f"connect to the internet, or give their file, {WEIGHTS_FILE} of {repository} (--weights FILE)"
        ) from error
