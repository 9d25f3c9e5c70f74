"""Trainer: the state of a training, and what its processes must agree on."""

import contextlib
import json
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.device import choose_device, choose_precision, forked_generators
from gingham.distributed import DistributedContext
from gingham.errors import RunError, one_line, plural
from gingham.io import tensors_sha256
from gingham.models.backbones import PREFIX, Backbone
from gingham.models.registry import build_classifier
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, parse_checkpoint, read_checkpoint, save_checkpoint
from gingham.runs.run import Run
from gingham.training import state
from gingham.training.batches import Batch, BatchLoader
from gingham.training.clock import Clock
from gingham.training.distillation import DistillationLoss, TeacherEnsemble, teacher_checksums
from gingham.training.ema import EMA, ema_weights, update_ema
from gingham.training.history import History
from gingham.training.loss import ClassWeightedLoss, CrossEntropyLoss, Loss, class_weights
from gingham.training.optimizer import build_optimizer
from gingham.training.options import FitOptions
from gingham.training.step import CUDAGraphStep, EagerStep, StepOutput, TrainStep, compile_step, dummy_batch, warm_up
from gingham.training.stop_request import StopRequest
from gingham.training.threads import AdaptiveStep, can_adapt

SAMPLE_SIZE = 500  # training images to evaluate, in a tenth of the time that 5,000 validation images take
MIN_CHECKPOINT_AGE = 1.0  # seconds, at the end of an epoch; a GPU may train dozens of epochs per second


class Trainer:
    """Everything that changes during training: model, optimizer, sampler, history, EMA, step and clock.

    `fit` calls the methods in every process at the same step, because some of them communicate. The constructor checks
    that all processes have the same recipe, data and teachers.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: Split,
        validation: Split | None,
        options: FitOptions,
        folder: Path | None,
        context: DistributedContext,
    ) -> None:
        self.recipe, self.train, self.validation = recipe, train, validation
        # The splits that the model is trained and evaluated on; `use_features` replaces their images.
        self.inputs, self.validation_inputs = train, validation
        self.options, self.folder, self.context = options, folder, context
        self.device = choose_device(options.device, context.local_rank if context.size > 1 else None)
        self.precision = choose_precision(recipe.precision, self.device)
        if recipe.network.startswith(PREFIX) and recipe.precision == "auto" and self.device.type == "cpu":
            self.precision = "float32"  # the depthwise convolutions of small pretrained networks are slow in bfloat16
        # Compiled steps are for a fixed number of threads.
        self.adapts_threads = options.adapt_threads and can_adapt(self.device, context) and not recipe.compile
        # What rounding depends on. Resuming in a different one prints a warning.
        self.numeric_environment = state.numeric_environment(self.device, self.precision, context.size)
        # Creating the network uses the generators of these devices and the CPU. The caller's state is restored.
        self.rng_devices = [self.device] if self.device.type == "cuda" else []
        with forked_generators(self.rng_devices):
            torch.manual_seed(recipe.seed)
            model = build_classifier(
                recipe.network, train.classes, train.image_shape, recipe.mean, recipe.std, recipe.tta, options.network
            )
        if isinstance(model.network, Backbone):
            model.network.freeze(recipe.frozen_layers)
        self.model = model.to(self.device)
        self.optimizer = build_optimizer(self.model, recipe)
        self.sampler = Sampler(recipe, len(train), self.device, train.block)
        self.history = History(recipe, self.sampler, self.device)
        self.ema: EMA = {}  # averaged weights by name; empty if the recipe has no `ema_decay`
        self.best: dict[str, torch.Tensor] = {}  # the weights of the best evaluation; empty without patience
        self.step = self.first_step = 0  # the number of steps done, and of steps done before resuming
        self.total_steps = self.sampler.steps
        self.stop_step = self.total_steps  # smaller once patience has run out
        self.stop_request = StopRequest()  # of this process; `fit` sets the one that receives signals
        self.interrupted = False  # whether any process had a stop request when they last agreed
        self.checkpoint_due = False  # as of the last agreement
        self.clock = Clock(self.device)
        self.last_checkpoint = 0.0  # by time.monotonic()
        self.origin: dict[str, Any] = {}  # of the weights before the first step: pretraining, or another run
        self.steps_gathered = 0  # steps whose records are for whole batches instead of this process's shards

        self.loss = _build_loss(recipe, options.teachers, self.device, self.precision)
        if recipe.class_balance:
            # Of the whole training split, so that they do not depend on this process's shards.
            weights = class_weights(train.labels, len(train.classes), recipe.class_balance)
            self.loss = ClassWeightedLoss(self.loss, weights.to(self.device))
        # If any teacher was not trained on simulated photos, simulated photos are not distilled.
        self.mask_photos = recipe.photo_share > 0 and any(not run.recipe.photo_share for run in options.teachers)
        self.loader = BatchLoader(
            train, recipe, self.sampler, self.device, context.rank, context.size, self.mask_photos
        )
        # These must be the same in every process, and in a checkpoint to resume from.
        self.settings: dict[str, Any] = {
            "recipe": recipe.to_dict(),
            "fingerprint": train.fingerprint,
            "train_images": len(train),
            "teachers": teacher_checksums(options.teachers),
            "start": tensors_sha256(options.start.model.state_dict()) if options.start else None,
        }
        context.require_same("recipe and data", json.dumps(self.settings))

    # --- before the first step

    def resume(self, warn: Callable[[str], None]) -> bool:
        """Continue from the last checkpoint in the main process's folder, and return whether there is one.

        Raises
            RunError: the checkpoint has other settings, or does not fit this training.
        """
        folder = self.folder
        assert folder is not None

        def read() -> bytes:
            data, torn = read_checkpoint(folder) if has_checkpoint(folder) else (b"", [])
            for sentence in torn:
                warn(f"{sentence}; resuming from the one before it")
            return data

        if not (data := self.context.from_main(read)):
            return False
        checkpoint = parse_checkpoint(data, folder)
        state.require_same_settings(checkpoint.metadata, self.settings, folder)
        try:
            self._load_state(checkpoint.tensors, checkpoint.metadata)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            path = folder / "checkpoint"
            raise RunError(
                f"the checkpoint in {folder} does not fit this run ({one_line(error)}); remove {path} to start over"
            ) from error
        environment = checkpoint.metadata.get("environment")
        if self.adapts_threads and (threads := state.saved_threads(environment)):
            self._set_threads(threads)
        if warning := state.resume_warning(environment, self.numeric_environment):
            warn(warning)
        return True

    def create_train_step(self, warn: Callable[[str], None]) -> TrainStep:
        """Return the fastest step for this device: eager, compiled if the recipe says so, or a CUDA graph on a GPU."""
        recipe = self.recipe
        # One dummy batch for each batch size. Compiled steps communicate, so every process needs the same number of
        # batches in the same order.
        sizes = self.loader.shard_sizes(sorted({int(size) for size in self.history.sizes.tolist()}))
        batches = [dummy_batch(size, self.model, recipe, self.mask_photos) for size in sizes]
        self.model.train()
        train_step = EagerStep(self.model, self.optimizer, self.loss, self.precision, with_losses=recipe.hard_share < 1)
        # Warm up with a copy of the model, also for evaluations, which take 500 images at a time. This shows whether
        # any parameter gets no gradient, which DistributedDataParallel needs to know.
        num_predicted = len(self.validation.sample(500)[0]) if self.validation else 0
        twin_step, has_unused_parameters = warm_up(self.model, train_step, batches, recipe, num_predicted)
        train_step = replace(train_step, model=self.context.data_parallel(self.model, unused=has_unused_parameters))
        if recipe.compile:
            train_step = compile_step(train_step, batches, recipe.network)
        if self.adapts_threads and torch.get_num_threads() > 1:

            def change(threads: int) -> None:
                self.numeric_environment["threads"] = threads
                warn(f"other work keeps the cores busy: training on {plural(threads, 'thread')} from here")

            return AdaptiveStep(train_step, lambda: twin_step(batches[-1]), change)
        # A graph only repeats the kernels of one step. It would not run the Python code of a user's network, and
        # cannot repeat the communication between processes.
        if self.device.type == "cuda" and self.options.network is None and self.context.size == 1:
            try:
                return CUDAGraphStep(train_step, batches)
            except RuntimeError as error:
                warn(f"the steps could not be captured as a CUDA graph, so they take longer ({one_line(error)})")
        return train_step

    def _set_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self.numeric_environment["threads"] = threads

    def start_clock(self) -> None:
        """Start the training time, and the time to the first checkpoint."""
        self.clock.start()
        self.last_checkpoint = time.monotonic()

    # --- the steps

    def batches(self) -> Iterator[Batch]:
        """Yield this process's shard of each remaining batch."""
        # `stop_step` is less than `total_steps` if a resumed training had already stopped early.
        for batch in self.loader.batches(self.step, self.stop_step):
            if self.options.network is not None:
                # Dropout in a user's network draws from torch's global generator. It is seeded with the step, so that
                # training can resume at any step, and with the rank, so that processes drop different activations.
                rank = f" {self.context.rank}" if self.context.rank else ""
                torch.manual_seed(zlib.crc32(f"{self.recipe.seed} {self.step}{rank}".encode()))
            yield batch

    def record(self, batch: Batch, output: StepOutput) -> None:
        """Count a step, and update the history, the losses by image and the EMA."""
        correct = output.correct
        if self.context.size > 1:
            # Until `_gather_records`, the history has the loss and the number of correct predictions of this shard,
            # scaled to the batch. The loss already includes the weight, which is 0 for a shard that repeats another's.
            correct = correct * self.context.size * (batch.weight > 0)
        self.history.record(self.step, output.loss, correct)
        if output.losses is not None and batch.indices is not None:
            self.sampler.record(batch.indices, output.losses)
        if self.recipe.ema_decay:
            update_ema(self.ema, self.model, self.step, self.recipe.ema_decay)
        self.step += 1
        if self.step == self.total_steps:
            self.clock.stop()  # the weights are final; only evaluation and saving follow

    def agree_on_stop_and_save(self) -> None:
        """Agree with the other processes whether to stop and to save.

        Before either, and at the end of each epoch, check that losses and weights are finite. In most steps this is the
        only collective apart from those of DistributedDataParallel.

        Raises
            TrainingError: a loss or a weight is not finite.
        """
        seconds = time.monotonic() - self.last_checkpoint
        due = seconds >= self.recipe.checkpoint_seconds or (self.epoch_ended and seconds >= MIN_CHECKPOINT_AGE)
        # Only the main process saves, so its time counts.
        self.interrupted, self.checkpoint_due = self.context.any(bool(self.stop_request), due and self.context.is_main)
        if self.epoch_ended or self.checkpoint_due or self.interrupted:
            self._gather_records()
            self.history.require_finite(self.step, self.model)

    def _gather_records(self) -> None:
        """Replace the records of this process's shards since the last call by those of whole batches.

        The steps must belong to the current epoch, because the sampler has the order of no other epoch.
        """
        if self.context.size == 1:
            return
        history, sampler, steps = self.history, self.sampler, slice(self.steps_gathered, self.step)
        means = torch.stack([history.losses[steps], history.correct[steps]]) / self.context.size
        history.losses[steps], history.correct[steps] = self.context.add(means)
        if self.recipe.hard_share < 1:
            batches = [sampler.batch(sampler.position(step)[1]) for step in range(steps.start, steps.stop)]
            mine = [torch.arange(len(batch)) % self.context.size == self.context.rank for batch in batches]
            indices = torch.cat(batches)
            losses = torch.where(torch.cat(mine).to(self.device), sampler.losses[indices], 0.0)
            sampler.record(indices, self.context.add(losses))
        self.steps_gathered = self.step

    @property
    def epoch_ended(self) -> bool:
        """Whether an epoch ended with the last step. The last epoch may be incomplete."""
        return self.sampler.position(self.step)[1] == 0 or self.step == self.total_steps

    @property
    def should_stop(self) -> bool:
        """Whether to stop: after the last step, when patience has run out, or when a process was interrupted."""
        return self.interrupted or self.step >= self.stop_step

    # --- the end of an epoch

    def evaluation_weights(self) -> contextlib.AbstractContextManager[None]:
        """Temporarily swap in the weights to evaluate: the EMA if the recipe has one."""
        return ema_weights(self.model, self.ema)

    def evaluate(self) -> None:
        """Add the epoch to the history, with results on the validation split if an evaluation is due.

        A fixed sample of the training split is evaluated with the same weights, for comparison. Call this inside
        `evaluation_weights`, because it keeps the weights of the best evaluation.

        Raises
            TrainingError: the validation loss is not finite.
        """
        validation = sample = None
        if self.validation_inputs is not None and self.history.evaluation_due(self.step):
            self.context.broadcast(self.model.buffers())  # each process has the BatchNorm statistics of its own shard
            validation = self._measure(self.validation_inputs.images, self.validation_inputs.labels)
            self.history.require_finite_validation(self.step, validation[0])
            sample = self._measure(*self.inputs.sample(SAMPLE_SIZE))
            # The sample may have images that were not trained on yet. Nothing depends on their loss.
            sample = sample if math.isfinite(sample[0]) else None
        self.history.end_epoch(self.step, validation, sample)
        if self.recipe.patience and validation is not None:
            since_best = self.history.evaluations_since_best()
            if since_best == 0:
                self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            if since_best >= self.recipe.patience:
                self.stop_step = self.step
            if self.step >= self.stop_step:
                self.clock.stop()  # again, because only this evaluation shows which weights are final

    def _measure(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Return the loss and accuracy of the model on images, uint8 (N, C, H, W)."""
        logits = self.context.map_sharded(self.model.logits, images)
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(dim=1) == labels).double().mean())

    def checkpoint_if_due(self) -> None:
        """Save a checkpoint in the main process if one is due or the training stops."""
        if not (self.checkpoint_due or self.should_stop):
            return
        if self.folder is not None and self.context.is_main:
            metadata = {
                "step": self.step,
                "train_seconds": self.clock.seconds,
                "epochs": self.history.epochs,
                "environment": self.numeric_environment,  # not the environment of the Run
                "dataset": self.train.dataset,
                "origin": self.origin,
                **self.settings,
            }
            save_checkpoint(self.folder, self.step, self._state_tensors(), metadata)
        self.last_checkpoint = time.monotonic()  # also without a folder, or a checkpoint would be due at every step

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of a checkpoint.

        They include the order of the epoch, because it may depend on past losses. Every other random draw depends only
        on the seed and the step.
        """
        parts = {
            "model": self.model.state_dict(),
            "optimizer": state.optimizer_tensors(self.optimizer),
            "best": self.best,
            "ema": self.ema,
            "sampler": {"order": self.sampler.order, "losses": self.sampler.losses},
            "history": {"losses": self.history.losses[: self.step], "correct": self.history.correct[: self.step]},
        }
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _load_state(self, tensors: state.Tensors, metadata: dict[str, Any]) -> None:
        """Load the state that `checkpoint_if_due` saved."""
        state.validate_state(tensors, metadata, self.sampler)
        self.step = self.first_step = self.steps_gathered = metadata["step"]
        self.clock.before = float(metadata["train_seconds"])
        self.origin = dict(metadata.get("origin") or {})
        self.model.load_state_dict(state.tensors_under("model.", tensors))
        weights = self.model.state_dict()
        self.best, self.ema = (
            {name: state.with_layout_of(weights[name], tensor) for name, tensor in found.items()}
            for found in (state.tensors_under("best.", tensors), state.tensors_under("ema.", tensors))
        )
        state.load_optimizer_tensors(self.optimizer, state.tensors_under("optimizer.", tensors))
        self.sampler.order = tensors["sampler.order"].to(self.device)
        self.sampler.losses = tensors["sampler.losses"].to(self.device)
        self.history.losses[: self.step] = tensors["history.losses"]
        self.history.correct[: self.step] = tensors["history.correct"]
        self.history.epochs = metadata["epochs"]
        if self.recipe.patience and self.history.evaluations_since_best() >= self.recipe.patience:
            self.stop_step = self.step  # the interrupted run had just stopped early
        if self.should_stop:
            self.clock.stop()

    # --- after the last step

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt, or Terminated if SIGTERM came to this process, if any process was interrupted."""
        # A single process also obeys a signal that came after the last agreement. Several would have to agree again.
        if self.interrupted or (self.stop_request and self.context.size == 1):
            self.stop_request.stop()


def _build_loss(recipe: Recipe, teachers: Sequence[Run], device: torch.device, precision: str) -> Loss:
    label_loss = CrossEntropyLoss(recipe.label_smoothing, with_outliers=recipe.outlier_share > 0)
    if not teachers:
        return label_loss
    ensemble = TeacherEnsemble([teacher.model for teacher in teachers], recipe.distillation_temperature).to(device)
    return DistillationLoss(label_loss, ensemble, recipe.distillation_weight, precision)
