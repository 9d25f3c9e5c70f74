"""Find the training images that look most like another one to the network."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gingham.data.sampler import evenly_spaced
from gingham.data.similarity import nearest_neighbours
from gingham.data.splits import Split
from gingham.models.classifier import Classifier

GALLERY_SIZE, NUM_NEIGHBOURS = (
    2000,
    6,
)  # training pictures that a page or a server compares with, and how many of them are shown


def features(model: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Return what a network makes of pictures, float (N, D): what goes into its last linear layer or, where it has none, its
    logits. Pictures that are alike to the network lie close together in it.

    `images` is uint8 (N, C, H, W).
    """
    with capture_features(model) as found:
        logits = torch.cat([model.logits(part) for part in torch.split(images, 500)])
    if not found:
        return logits
    views = len(found) // -(-len(images) // 500)  # the mirror image comes after each batch
    return torch.cat(found[::views]).cpu()


@contextlib.contextmanager
def capture_features(model: Classifier) -> Iterator[list[torch.Tensor]]:
    """Collect what goes into a network's last linear layer while this thread asks it, (N, D) a call; nothing where it has none."""
    layers = [module for module in model.network.modules() if isinstance(module, torch.nn.Linear)]
    found, here = list[torch.Tensor](), threading.get_ident()

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if threading.get_ident() == here:  # a server's other threads ask the same network other things
            found.append(inputs[0].flatten(1))

    handles = [layer.register_forward_pre_hook(keep) for layer in layers[-1:]]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Gallery:
    """Training pictures to compare others with: `images` uint8 (M, C, H, W), their `labels` by name, and `features` (M, D)."""

    images: torch.Tensor
    labels: tuple[str, ...]
    features: torch.Tensor

    def nearest(self, seen: torch.Tensor, count: int) -> list[int]:
        """Return the places of the pictures most like one of features (D,), best first."""
        places: list[int] = nearest_neighbours(seen[None], self.features, count)[0].tolist()
        return places


def gallery(model: Classifier, train: Split, count: int) -> Gallery | None:
    """Return `count` of the training pictures, or all, evenly spread over the split; None where they are not of the model's shape."""
    if tuple(train.images.shape[1:]) != model.input_shape or not count:
        return None
    some = evenly_spaced(len(train), count)
    images = train.images[some].cpu()
    labels = tuple(train.classes[label] for label in train.labels[some].tolist())
    return Gallery(images, labels, features(model, images))
