"""FitOptions: the options of `fit` other than recipe and data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gingham.models.classifier import Classifier
from gingham.models.registry import NetworkFactory
from gingham.runs.run import Run


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit` that most callers leave at their defaults.

    `device` is "auto", "cpu", "cuda", "cuda:1" or "mps". `network` is a class or function that creates your own network
    in place of the recipe's: float (N, C, H, W) in, logits (N, K) out. `teachers` are runs trained on the same split;
    the network learns from their predictions in addition to the labels, with the recipe's `distillation_weight`. If
    `track` is "tensorboard", the history is also written for TensorBoard, to `tensorboard/` in the folder.
    `on_epoch(model, epoch)` is called in every process after each complete epoch, counted from 1. The model then has
    the weights that are evaluated: the EMA if the recipe has one.

    `weights` is a safetensors file with the pretrained weights of a timm network; without it they are downloaded. If
    `start` is a run with the same network, training starts with its weights. Classes may be added and left out.

    With `adapt_threads`, training on a CPU continues with fewer threads if other work keeps the cores busy, and a
    resumed training starts with the threads of its checkpoint. Afterwards the process has as many threads as before.

        run = gingham.fit(recipe, data.train, options=gingham.FitOptions(network=MyNetwork, device="cpu"))
    """

    device: str = "auto"
    network: NetworkFactory | None = None
    teachers: Sequence[Run] = ()
    track: str | None = None
    weights: Path | None = None
    start: Run | None = None
    on_epoch: Callable[[Classifier, int], None] | None = None
    adapt_threads: bool = False
