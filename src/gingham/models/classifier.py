"""Classifier: a network with its preprocessing, temperature, thresholds and novelty score."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gingham.device import without_tf32
from gingham.display import html_text
from gingham.errors import ModelError
from gingham.models.backbones import Backbone
from gingham.models.novelty import Novelty, capture_statistics, watch_stages
from gingham.text import render_table

MAX_ROWS, MAX_IMAGES = 20, 33  # of predictions that are shown
MAX_BATCH_IMAGES, MAX_BATCH_PIXELS = 500, 1 << 20  # whose predictions are computed at once, on a GPU 8 times as many


@dataclass(frozen=True, repr=False)
class Predictions:
    """Predictions of a model for N images.

    `labels`, int64 (N,), has the index of the most probable class. `probabilities` is float32 (N, K); its rows sum to
    1. `unsure`, bool (N,), is True if the top probability is below the model's threshold. `novel`, bool (N,), is True
    if the image is unlike the training images: if its score in `novelty`, float32 (N,), is above the model's threshold.
    `classes` has the K names.
    """

    labels: torch.Tensor
    probabilities: torch.Tensor
    unsure: torch.Tensor
    novel: torch.Tensor
    novelty: torch.Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> list[str]:
        """Return the name of each image's most probable class."""
        return [self.classes[label] for label in self.labels.tolist()]

    def __repr__(self) -> str:
        rows = []
        shown = (self.labels, self.probabilities.amax(dim=1), self.unsure, self.novel)
        columns = zip(*(values[:MAX_ROWS].tolist() for values in shown), strict=True)
        for number, (label, confidence, unsure, novel) in enumerate(columns):
            note = "novel: unlike the training images" if novel else "not sure" if unsure else ""
            rows.append([str(number), self.classes[label], f"{confidence:.0%}", note])
        more = f"\n... {len(self) - MAX_ROWS:,} more" if len(self) > MAX_ROWS else ""
        return render_table(["image", "class<", "probability", "<"], rows) + more

    def _repr_html_(self) -> str:
        return html_text(repr(self))

    def plot(self, images: torch.Tensor | npt.NDArray[np.uint8]) -> Any:
        """Return a figure of the first of these images, uint8 (N, C, H, W), with their classes and probabilities.

        Raises
            ModelError: the number of images is not that of the predictions.
        """
        from gingham.plots import draw_image_groups

        if len(images) != len(self):
            raise ModelError(f"plot got {len(images)} images for {len(self)} predictions; give the images predicted")
        labels, confidence = self.labels[:MAX_IMAGES].tolist(), self.probabilities.amax(dim=1)[:MAX_IMAGES].tolist()
        captions = [f"{self.classes[k][:11]}\n{share:.0%}" for k, share in zip(labels, confidence, strict=True)]
        groups = [[pair] for pair in zip(torch.as_tensor(images[:MAX_IMAGES]), captions, strict=True)]
        return draw_image_groups([("the most probable class of each image", groups)])


class Classifier(nn.Module):
    """A network with its preprocessing and calibration: uint8 (N, C, H, W) in, float logits (N, K) out.

    Normalisation, temperature and the thresholds for "not sure" are buffers, so they are saved with the weights;
    `photo_threshold` is that for prepared photos. `novelty` scores how unlike the training images an image is; it is
    None until it has been fitted. With tta "flip", in evaluation mode, the logits are the mean over each image and its
    mirror image. With tta "shift", half of the weight is on this mean, and half on those of two shifted images: by a
    pixel to the lower right, and to the upper left.

        model = Classifier(article(), classes=("cat", "dog", ...), input_shape=(1, 28, 28))
        model.predict(torch.zeros(5, 1, 28, 28, dtype=torch.uint8)).probabilities   # (5, 10)

    Raises
        ModelError: `mean` or `std` has neither one value nor one per channel, or the images have the wrong shape or
            dtype.
    """

    mean: torch.Tensor
    std: torch.Tensor
    temperature: torch.Tensor
    threshold: torch.Tensor
    photo_threshold: torch.Tensor

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        input_shape: tuple[int, int, int],
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        tta: str = "none",
    ) -> None:
        super().__init__()
        self.network = network
        self.tta = tta
        self.classes = tuple(classes)
        self.input_shape = input_shape
        channels = input_shape[0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise ModelError(
                    f"{name} got {len(values)} values for images of shape {input_shape}; give one, or one per channel"
                )
            self.register_buffer(name, torch.tensor(values).repeat(channels // len(values)).view(1, channels, 1, 1))
        self.register_buffer("temperature", torch.tensor(1.0))  # fitted after training; the logits are divided by it
        self.register_buffer("threshold", torch.tensor(0.0))  # predictions with a lower probability are "not sure"
        self.register_buffer("photo_threshold", torch.tensor(0.0))
        self.novelty: Novelty | None = None
        self._watched = set[str]()
        # Convolutions are faster in NHWC: with NCHW a step takes 1.2 to 1.3 times as long (benchmarks/step_time.py).
        self.to(memory_format=torch.channels_last)

    def __repr__(self) -> str:
        return f"<Classifier: {type(self.network).__name__}, {self.input_shape} images, {len(self.classes)} classes>"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        network, is_float = self.network, images.is_floating_point()
        if isinstance(network, Backbone) and is_float and images.shape[1:] == network.feature_mean.shape:
            return network.classify(images) / self.temperature  # features, computed by `features`
        # In training, crops may be smaller.
        shape = (*images.shape[1:2], *self.input_shape[1:]) if self.training else images.shape[1:]
        if images.dtype != torch.uint8 or shape != self.input_shape:
            expected_shape = ", ".join(map(str, self.input_shape))
            raise ModelError(
                f"the model got {str(images.dtype).removeprefix('torch.')} images of shape {tuple(images.shape)}; "
                f"it takes uint8 of shape (N, {expected_shape}) with values from 0 to 255"
            )
        tta = "none" if self.training else self.tta
        logits = self._network_logits(images, mirrored=tta != "none")
        if tta == "shift":
            height, width = shape[1:]
            padded = nn.functional.pad(images.float(), (1, 1, 1, 1))  # with black, as in training
            shifted = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]  # to the lower right, to the upper left
            logits = logits / 2 + sum(self._network_logits(view, mirrored=True) for view in shifted) / 4
        return logits / self.temperature

    @property
    def num_views(self) -> int:
        """The number of versions of each image that the network sees in a prediction; the first is the image itself."""
        return {"none": 1, "flip": 2, "shift": 6}[self.tta]

    def _network_logits(self, images: torch.Tensor, *, mirrored: bool) -> torch.Tensor:
        """Return the network's logits for pixels from 0 to 255, if `mirrored` the mean with those of mirror images."""
        pixels = self._normalize(images)
        logits: torch.Tensor = self.network(pixels)
        return (logits + self.network(pixels.flip(3))) / 2 if mirrored else logits

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - self.mean) / self.std

    def predict(self, images: torch.Tensor | npt.NDArray[np.uint8], batch_size: int | None = None) -> Predictions:
        """Return the model's predictions for uint8 images (N, C, H, W), computed in float32, `batch_size` at a time: by
        default 500 (on a GPU 4,000), or fewer if the images are large.

        Raises
            ModelError: the images have the wrong shape or dtype, or the predictions or scores are not finite.
        """
        logits, novelty = self.score(torch.as_tensor(images), batch_size)
        probabilities = logits.softmax(dim=1)
        if not bool(probabilities.isfinite().all() & novelty.isfinite().all()):
            raise ModelError(
                "the model's predictions are not finite numbers; restore its weights from a copy or train it again"
            )
        confidence, labels = probabilities.max(dim=1)
        threshold, novelty_threshold = self.thresholds()
        return Predictions(
            labels, probabilities, confidence < threshold, novelty > novelty_threshold, novelty, self.classes
        )

    def thresholds(self, *, for_photos: bool = False) -> tuple[float, float]:
        """Return the probability below which predictions are not sure, and the score above which images are novel.

        Those for prepared photos were fitted to simulated photos, if the model was trained on garments.
        """
        prefix = "photo_" if for_photos else ""
        novelty = torch.inf if self.novelty is None else float(getattr(self.novelty, f"{prefix}threshold"))
        return float(getattr(self, f"{prefix}threshold")), novelty

    def set_novelty(self, novelty: Novelty) -> None:
        """Use a fitted novelty score, in place of the current one."""
        self.watch(novelty.stages)
        self.novelty = novelty.to(self.mean.device)

    def watch(self, stages: Sequence[str]) -> None:
        """Let the layers of these names report their activations to `capture_statistics`."""
        watch_stages(self.network, [name for name in stages if name not in self._watched])
        self._watched.update(stages)

    def score(self, images: torch.Tensor, batch_size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logits (N, K) and novelty scores (N,) on the CPU. Without a fitted score, they are 0.

        `images` is as for `logits`.
        """
        columns = self.map_batches(lambda batch: torch.cat(self.forward_with_novelty(batch), dim=1), images, batch_size)
        return columns[:, :-1], columns[:, -1]

    def forward_with_novelty(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (N, K) of one batch and its novelty scores, float (N, 1)."""
        if self.novelty is None:
            logits = self(images)
            return logits, torch.zeros_like(logits[:, :1])  # len(images) would fix the batch size of an ONNX export
        with capture_statistics() as statistics:
            logits = self(images)
        return logits, self.novelty(statistics, logits)[:, None]

    def logits(self, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Return float32 logits (N, K) on the CPU, computed in evaluation mode without gradients.

        `images` is uint8 (N, C, H, W) or, for a pretrained network, its features, float32 (N, D).
        """
        return self.map_batches(self, images, batch_size)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return a pretrained network's features of images, float32 (N, D) on the CPU, to which `logits` is applied.

        `images` is uint8 (N, C, H, W).
        """
        network = self.network
        assert isinstance(network, Backbone)
        return self.map_batches(lambda batch: network.features(self._normalize(batch)), images)

    @torch.no_grad()
    def map_batches(
        self, function: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, batch_size: int | None = None
    ) -> torch.Tensor:
        """Return a function's outputs for images, float32 on the CPU, computed batch by batch in evaluation mode."""
        device = self.mean.device
        limit = max(1, min(MAX_BATCH_IMAGES, MAX_BATCH_PIXELS // max(1, images.shape[2:].numel())))
        size = batch_size or limit * (8 if device.type == "cuda" else 1)
        with evaluation_mode(self), without_tf32(device):
            return torch.cat([function(batch.to(device)).float().cpu() for batch in torch.split(images, size)])


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Temporarily put a network in evaluation mode, and then restore the mode of each module."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
