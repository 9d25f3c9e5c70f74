"""Turn a finished training into a Run."""

from typing import Any

import torch

from gingham.data.image_hashes import hash_images
from gingham.data.splits import Split
from gingham.data.statistics import median_border, object_share
from gingham.device import describe_environment
from gingham.runs.run import Run
from gingham.training.ema import copy_weights
from gingham.training.trainer import Trainer


def build_run(trainer: Trainer) -> Run:
    """Return the run of a finished training, with its final weights."""
    # With patience the best weights, which include the EMA; otherwise the EMA if there is one, or the model's own.
    copy_weights(trainer.model, trainer.best or trainer.ema)
    trainer.context.broadcast(trainer.model.buffers())
    trainer.model.eval()
    train, history = trainer.train, trainer.history
    data: dict[str, Any] = {
        "name": train.dataset,
        "fingerprint": train.fingerprint,
        "train_images": len(train),
        "background": (background := median_border(train.images)),
        "object_share": object_share(train.images, background),
    }
    for name in ("skip_unreadable", "keeps_trained", "label_from", "grey_bits"):
        if (value := getattr(train, name)) != getattr(Split, name):  # the default
            data[name] = value
    if trainer.origin:
        data["origin"] = trainer.origin
    if trainer.options.teachers:
        data["teachers"] = [
            {"recipe": teacher.recipe.name, "seed": teacher.recipe.seed, "weights_sha256": checksum}
            for teacher, checksum in zip(trainer.options.teachers, trainer.settings["teachers"], strict=True)
        ]
    environment = describe_environment(trainer.device)
    run = Run(trainer.model, trainer.recipe, history.entries(trainer.step), _metrics(trainer), data, environment)
    before = trainer.options.start.image_hashes if trainer.options.start else {}
    for name, split in (("train", train), ("validation", trainer.validation)):
        hashes = [before[name]] if name in before else []
        hashes += [hash_images(split.images)] if split else []
        if hashes:
            run.image_hashes[name] = torch.unique(torch.cat(hashes))
    return run


def _metrics(trainer: Trainer) -> dict[str, Any]:
    history, seconds = trainer.history, trainer.clock.seconds
    images_seen = int(history.sizes[: trainer.step].sum())
    chosen = history.chosen_epoch()  # the last one unless patience chose another
    return {
        "recipe": trainer.recipe.name,
        "seed": trainer.recipe.seed,
        "device": str(trainer.device),
        "precision": trainer.precision,
        "processes": trainer.context.size,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "train_images": len(trainer.train),
        "epochs": trainer.sampler.epochs(trainer.step),
        "steps": trainer.step,
        "images_seen": images_seen,
        "images_per_second_per_process": images_seen / seconds / trainer.context.size if seconds else None,
        "train_seconds": seconds,
        "wall_seconds": None,  # set by the command line
        "validation_accuracy": chosen["validation_accuracy"],
        "chosen_epoch": chosen["epoch"],
        "resumed_from_step": trainer.first_step or None,
    }
