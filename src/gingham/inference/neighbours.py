"""Find the training images whose features are most similar to those of another image."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gingham.data.sampler import evenly_spaced, limit_count
from gingham.data.splits import Split
from gingham.models.classifier import Classifier

GALLERY_SIZE = 2000  # training images that a page or a server searches
GALLERY_PIXELS = 1 << 25  # in all of them, whose features a pretrained network computes in some seconds
NUM_NEIGHBOURS = 6  # nearest images that are shown


def features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return the features of images, float (N, D): the inputs of the network's last linear layer, or its logits if it
    has none. Images that the network treats as similar have similar features.

    `images` is uint8 (N, C, H, W).
    """
    with capture_features(model) as captured:
        logits = model.logits(images)
    # With TTA each batch is followed by its other views.
    return torch.cat(captured[:: model.num_views]).cpu() if captured else logits


@contextlib.contextmanager
def capture_features(model: Classifier) -> Iterator[list[torch.Tensor]]:
    """Yield a list to which forward passes in this thread append the last linear layer's inputs, (N, D), if any."""
    layers = [module for module in model.network.modules() if isinstance(module, torch.nn.Linear)]
    captured, thread = list[torch.Tensor](), threading.get_ident()

    def append_input(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == thread:  # other threads of a server run the same network
            captured.append(inputs[0].flatten(1))

    with layers[-1].register_forward_pre_hook(append_input) if layers else contextlib.nullcontext():
        yield captured


@dataclass(frozen=True)
class Gallery:
    """Training images to compare others with: `images` uint8 (M, C, H, W), class names `labels`, `features` (M, D)."""

    images: torch.Tensor
    labels: tuple[str, ...]
    features: torch.Tensor

    def nearest(self, query: torch.Tensor, count: int) -> list[int]:
        """Return the indices of the `count` images most similar to one with features `query` (D,), best first."""
        similarities = F.cosine_similarity(query[None], self.features)
        return similarities.topk(min(count, len(similarities))).indices.tolist()


def gallery(model: Classifier, train: Split | None, count: int) -> Gallery | None:
    """Return up to `count` training images, evenly spaced over the split; None if it has none of the model's shape.

    There are fewer of large images: 668 of 224x224 pixels.
    """
    if train is None or train.images.shape[1:] != model.input_shape or not count:
        return None
    indices = evenly_spaced(len(train), limit_count(count, train.images, GALLERY_PIXELS))
    images = train.images[indices].cpu()
    labels = tuple(train.classes[label] for label in train.labels[indices].tolist())
    return Gallery(images, labels, features(model, images))
