"""The features of a frozen network, which are computed once for all epochs, and cached for later trainings."""

import contextlib
import hashlib
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from gingham.data.splits import Split
from gingham.distributed import DistributedContext
from gingham.errors import GinghamError
from gingham.io import cache_folder, read_tensors, tensors_sha256, write_tensors
from gingham.models.backbones import Backbone
from gingham.models.classifier import Classifier
from gingham.training.callbacks import print_line
from gingham.training.trainer import Trainer

BATCH_SIZE = 64  # images between two updates of the progress bar
NUM_CACHED = 20  # files; the features of 10,000 images take about 70 MB


def use_features(trainer: Trainer) -> None:
    """Replace the images of a training by their features, if only the classifier of a pretrained network is trained."""
    model, context, network = trainer.model, trainer.context, trainer.model.network
    if not trainer.recipe.trains_head_only or not isinstance(network, Backbone):
        return
    start = time.perf_counter()
    features = compute_features(model, trainer.train, context)
    if not trainer.step and trainer.options.start is None:
        network.standardize(features.to(trainer.device))
    trainer.inputs = trainer.loader.train = replace(trainer.train, images=features, block=1)
    if trainer.validation is not None:
        features = compute_features(model, trainer.validation, context)
        trainer.validation_inputs = replace(trainer.validation, images=features, block=1)
    trainer.clock.before += time.perf_counter() - start


def compute_features(model: Classifier, split: Split, context: DistributedContext) -> torch.Tensor:
    """Return the features of a split's images, float32 (N, D) on the CPU, from the user's cache if they are there.

    They are cached by the content of the images and of the network. The last NUM_CACHED files are kept.
    """
    assert isinstance(model.network, Backbone)
    content = hashlib.sha256(tensors_sha256(model.network.body.state_dict()).encode())
    content.update(f"{model.network.name} {tuple(split.images.shape)}".encode())
    for images in torch.split(split.images, 1024):  # may be on disk
        content.update(images.contiguous().numpy().data)
    file = cache_folder() / "features" / f"{content.hexdigest()[:32]}.safetensors"
    found = None
    with contextlib.suppress(GinghamError, KeyError):
        tensors, stored = read_tensors(file)
        if stored["sha256"] == tensors_sha256(tensors):  # not damaged
            found = tensors["features"]
            file.touch()
    if not context.any(found is None)[0]:
        assert found is not None
        return found

    if context.is_main:
        size = "x".join(map(str, split.image_shape[1:]))
        print_line(f"computing the features of {len(split):,} {split.name} images of {size} pixels, once")
    bar = tqdm(total=len(split), desc=f"{split.name} features", unit=" images", disable=None, leave=False)

    def extract(images: torch.Tensor) -> torch.Tensor:
        parts = []
        for batch in torch.split(images, BATCH_SIZE):
            parts.append(model.features(batch))
            bar.update(len(batch) * context.size)
        return torch.cat(parts)

    with bar:
        features = context.map_sharded(extract, split.images)
    if context.is_main:
        with contextlib.suppress(GinghamError, OSError):  # without a cache the result is the same, only slower
            tensors = {"features": features}
            write_tensors(file, tensors, {"sha256": tensors_sha256(tensors)})
            by_age = sorted(file.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in by_age[NUM_CACHED:]:
                old.unlink(missing_ok=True)
    return features
