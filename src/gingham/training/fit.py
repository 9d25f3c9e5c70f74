"""fit(): the only training loop, and its clock."""

import contextlib
import functools
import json
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gingham.data.augment_photos import simulate_photos
from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.device import choose_device, choose_precision, cudnn_benchmark, describe_environment, retain_freed_memory
from gingham.distributed import DistributedContext, init_distributed
from gingham.errors import DataError, GinghamError, ModelError, one_line
from gingham.evaluation.calibrate import calibrate
from gingham.models.classifier import Classifier
from gingham.models.registry import NetworkFactory, build_classifier, create_network, factory_name
from gingham.models.summary import summarize
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, parse_checkpoint, read_checkpoint
from gingham.runs.run import Run
from gingham.training.batches import draw_batches
from gingham.training.callbacks import ProgressBar, create_tensorboard_logger
from gingham.training.distillation import TeacherEnsemble, create_ensemble, validate_teachers
from gingham.training.ema import ema_weights, update_ema
from gingham.training.health import HealthMonitor
from gingham.training.history import History
from gingham.training.optimizer import build_optimizer, lr_at, set_learning_rate
from gingham.training.state import TrainingState, numeric_environment
from gingham.training.step import CUDAGraphStep, StepOutput, TrainStep, compile_model, dummy_batch, train_step, warm_up
from gingham.training.stop_request import deferred_signals

MIN_CHECKPOINT_SECONDS = 1.0  # between checkpoints at the ends of epochs, as a GPU does dozens of epochs a second


def fit(
    recipe: Recipe,
    train: Split,
    validation: Split | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    network: NetworkFactory | None = None,
    teachers: Sequence[Run] = (),
    track: str | None = None,
    progress: bool = True,
    on_epoch: Callable[[Classifier, int], None] | None = None,
) -> Run:
    """Train a network as a recipe says and return the Run.

    Unless `progress` is False it shows a progress bar on a terminal, and plain lines elsewhere, on stderr, and warns
    there of the issues that `training/checks.py` finds. With a `folder`, a checkpoint is saved there every
    `checkpoint_seconds` and at the end of each epoch, and `resume` continues from it to the same weights (byte for byte
    on the same CPU and thread count).

    `network` is a class or function that creates a network of your own in place of the recipe's: float (N, C, H, W) in,
    logits (N, K) out. `teachers` are runs, trained on the same split, from whose predictions the network learns beside
    the labels, with the recipe's `distillation_weight`. With `track` "tensorboard" the history is also written for
    TensorBoard, to `tensorboard/` in the folder. `on_epoch(model, epoch)` is called after each epoch, counted from 1,
    with the model as it is then.

    With a validation split, the model's temperature and its threshold for "unsure" are fitted to it at the end. With
    the recipe's `patience` it also stops the training early, and the weights are those of the best evaluation.

    Ctrl-C and SIGTERM take effect between steps; with a `folder` the state is saved first. In processes started by
    torchrun each takes its shard of every batch and returns the same Run; only the first writes checkpoints, and only
    the first should save.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: a test split, splits of different datasets, an empty split, or a teacher that was trained on other
        images.
        ModelError: the network cannot be created, or does not fit the images or the number of classes.
        GinghamError: an unknown device, a checkpoint of another recipe, or another process that failed or trains
        something else.
        TrainingError: a loss that is no longer finite.
        KeyboardInterrupt, Terminated: on Ctrl-C and SIGTERM, after the state was saved in the folder.
    """
    _validate_splits(train, validation)
    # What is held out and how the images were read, which may differ from what the recipe asks for.
    recipe = recipe.replace(validation_images=len(validation) if validation else 0, size=train.size)
    if recipe.patience and validation is None:
        raise GinghamError(
            f"patience is {recipe.patience}, and no validation split is held out to look at; "
            "hold pictures out (--set validation_images=5000), or set patience=0"
        )
    if recipe.photo_share:
        simulate_photos(
            train.images[:0], train.labels[:0], train.classes, recipe, 0
        )  # raises an error for images in colour
    teacher_checksums = validate_teachers(teachers, recipe, train, validation)
    if network is not None:
        recipe = recipe.replace(network=factory_name(network))
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(init_distributed())
        train_device = choose_device(device, context.local_rank if context.size > 1 else None)
        precision = choose_precision(recipe.precision, train_device)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            model = _build_model(recipe, train, network).to(train_device)
        optimizer = build_optimizer(model, recipe)
        sampler = Sampler(recipe, len(train), train_device, train.block)
        history = History(recipe, sampler, train_device)
        ensemble = create_ensemble(teachers, recipe, train_device)
        environment = numeric_environment(train_device, precision, context.size)
        state = TrainingState(recipe, train, model, optimizer, sampler, history, environment, teacher_checksums)
        context.require_same("recipe and data", json.dumps(state.identity()))
        start, seconds_before, notes = _restore(state, folder, context) if resume else (0, 0.0, [])

        def seconds_so_far() -> float:
            if train_device.type == "cuda":
                torch.cuda.synchronize(train_device)  # kernels that are still queued belong to the training
            return seconds_before + time.perf_counter() - clock

        def save_checkpoint(done: int, train_seconds: float) -> None:
            if folder is not None and context.is_main:
                state.save(Path(folder), done, train_seconds)

        model.train()
        stack.enter_context(retain_freed_memory())
        stack.enter_context(cudnn_benchmark(train_device))
        progress_bar = stack.enter_context(ProgressBar(history, start, progress and context.is_main, notes))
        tensorboard = create_tensorboard_logger(track, history, folder, start) if context.is_main else None
        if tensorboard:
            stack.callback(tensorboard.close)
        health = HealthMonitor(recipe, model, history, train, progress_bar.warn)
        if network is not None:
            stack.enter_context(torch.random.fork_rng())  # dropout in it draws from torch's global generator
        shard_sizes = sorted({len(range(size)[context.shard(size)]) for size in {*history.sizes.int().tolist()}})
        num_predicted = min(len(validation), 500) if validation else 0
        unused = warm_up(model, recipe, precision, shard_sizes, num_predicted, ensemble)
        take_step = _create_train_step(
            state, precision, ensemble, shard_sizes, context, unused, network is None, progress_bar.warn
        )
        # torchrun sends its own signal again to its children.
        stop_request = stack.enter_context(deferred_signals(ignore_repeats=context.size > 1))
        clock = time.perf_counter()
        images = train.images.to(train_device) if _fits(train, train_device) else train.images  # uint8
        labels = train.labels.to(train_device)
        last_checkpoint = time.monotonic()
        train_seconds = seconds_before
        batches = draw_batches(images, labels, train, recipe, sampler, start, history.steps, context, ensemble)
        for step, indices, batch in batches:
            set_learning_rate(optimizer, lr_at(step, sampler.steps, recipe))
            epoch, _ = sampler.position(step)
            if network is not None:
                # Seeded by the step, so that training can resume at any; processes that share a batch use different
                # dropout.
                torch.manual_seed(
                    zlib.crc32(f"{recipe.seed} {step}{f' {context.rank}' if context.rank else ''}".encode())
                )
            output = _gather(take_step(batch, context.weight(len(indices))), len(indices), context)

            history.record(step, output.loss, output.correct)
            if output.losses is not None:
                sampler.record(indices, output.losses)
            if recipe.ema_decay:
                update_ema(state.ema, model, step, recipe.ema_decay)
            done = step + 1
            progress_bar.on_step_end(done)
            epoch_ended = sampler.position(done)[1] == 0
            last = done == sampler.steps
            since = time.monotonic() - last_checkpoint
            checkpoint_due = since >= recipe.checkpoint_seconds or (epoch_ended and since >= MIN_CHECKPOINT_SECONDS)
            should_stop, checkpoint_due = context.any(bool(stop_request), checkpoint_due)
            if epoch_ended or checkpoint_due or last or should_stop:
                history.require_finite(done, model)
            if last:
                train_seconds = seconds_so_far()  # the weights are final; what follows evaluates and saves them
            if epoch_ended or last:
                with ema_weights(model, state.ema):
                    history.end_epoch(done, model, validation, context)
                    if recipe.patience:
                        patience_ended = state.keep_best(done)
                        if patience_ended or last:  # only now is it known which weights are final
                            train_seconds, last = seconds_so_far(), True
                    progress_bar.on_epoch_end(train_seconds if last else seconds_so_far())
                    health.on_epoch_end(done)
                    if tensorboard:
                        tensorboard.on_epoch_end(done)
                    if on_epoch is not None and epoch_ended:
                        on_epoch(model, epoch + 1)
            if checkpoint_due or last or should_stop:
                save_checkpoint(done, train_seconds if last else seconds_so_far())
                last_checkpoint = time.monotonic()
            if should_stop:
                stop_request.stop()
            if last:
                break
        state.load_final_weights()
        context.broadcast(model.buffers())
        model.eval()
        run = _create_run(state, train_seconds, start, context)
        if teachers:
            run.data["teachers"] = [
                {"recipe": teacher.recipe.name, "seed": teacher.recipe.seed, "weights_sha256": checksum}
                for teacher, checksum in zip(teachers, state.teachers, strict=True)
            ]
        if validation is not None:
            calibrate(run, validation, context)
        return run


def _create_train_step(
    state: TrainingState,
    precision: str,
    teachers: TeacherEnsemble | None,
    shard_sizes: Sequence[int],
    context: DistributedContext,
    unused: bool,
    builtin_network: bool,
    warn: Callable[[str], None],
) -> TrainStep:
    """Return the fastest way to take a step here: eager, compiled if the recipe says so, as a CUDA graph on a GPU."""
    model, optimizer, recipe = context.wrap(state.model, unused=unused), state.optimizer, state.recipe
    batches = [dummy_batch(size, state.model, recipe, teachers) for size in shard_sizes]
    if recipe.compile:
        model = compile_model(model, optimizer, recipe, precision, teachers, batches)
    if (
        state.model.mean.is_cuda and builtin_network and context.size == 1
    ):  # a user's forward may do what cannot be captured
        try:
            return CUDAGraphStep(model, optimizer, recipe, precision, teachers, batches)
        except RuntimeError as error:
            warn(f"the steps cannot be recorded for the GPU and take longer ({one_line(error)})")
    return functools.partial(train_step, model, optimizer, recipe, precision, teachers)


def _create_run(state: TrainingState, train_seconds: float, start: int, context: DistributedContext) -> Run:
    recipe, train, model, sampler, history = state.recipe, state.train, state.model, state.sampler, state.history
    images_seen = int(history.sizes[: history.steps].sum())
    metrics = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": state.environment["device"],
        "precision": state.environment["precision"],
        "processes": context.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train),
        "epochs": sampler.epochs(history.steps),
        "steps": history.steps,
        "images_seen": images_seen,
        "images_per_second_per_process": images_seen / train_seconds / context.size if train_seconds else None,
        "train_seconds": train_seconds,
        "wall_seconds": None,  # set by the command line
        "validation_accuracy": history.chosen_epoch()["validation_accuracy"],
        "chosen_epoch": history.chosen_epoch()["epoch"],  # the last one unless patience chose another
        "resumed_from_step": start or None,
    }
    data: dict[str, Any] = {"name": train.dataset, "fingerprint": train.fingerprint, "train_images": len(train)}
    data["background"] = _background(train)
    if train.skip_unreadable:
        data["skip_unreadable"] = True
    return Run(model, recipe, history.entries(), metrics, data, describe_environment(model.mean.device))


def _restore(
    state: TrainingState, folder: str | Path | None, context: DistributedContext
) -> tuple[int, float, list[str]]:
    """Load the last checkpoint of the main process's folder in every process; return the step, the seconds spent and notes to print."""
    if folder is None:
        return 0, 0.0, []
    data, notes = b"", []
    if context.is_main and has_checkpoint(Path(folder)):
        data, torn = read_checkpoint(Path(folder))
        notes = [f"{sentence}; going on from the one before it" for sentence in torn]
    data = context.broadcast_bytes(data)
    if not data:
        return 0, 0.0, []
    checkpoint = parse_checkpoint(data, Path(folder))
    step, seconds = state.restore(checkpoint, Path(folder))
    return step, seconds, notes + state.resume_warnings(checkpoint)


def _gather(output: StepOutput, count: int, context: DistributedContext) -> StepOutput:
    """Return the output of a step for the whole batch of `count` images, from those of every process's shard."""
    if context.size == 1:
        return output
    values = torch.zeros(2 if output.losses is None else 2 + count, device=output.loss.device)
    if context.rank < count:  # else its image belongs to another shard too
        values[0], values[1] = output.loss / context.size, output.correct
        if output.losses is not None:
            values[2:][context.shard(count)] = output.losses
    context.add(values)
    return StepOutput(values[0], values[1], None if output.losses is None else values[2:])


def _build_model(recipe: Recipe, train: Split, network: NetworkFactory | None) -> Classifier:
    shape = train.image_shape
    try:
        return build_classifier(recipe.network, train.classes, shape, recipe.mean, recipe.std, recipe.tta, network)
    except ModelError:
        if network is not None:
            # This error names the layer that does not fit, and what would.
            summarize(create_network(recipe.network, network, shape[0], len(train.classes)), shape, recipe.network)
        raise


def _fits(split: Split, device: torch.device) -> bool:
    """Return whether the images may be kept on the device: not if they are on disk, nor if they take over half of a GPU's free memory."""
    if device.type != "cuda":
        return split.block == 1
    return split.block == 1 and split.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _background(split: Split) -> float:
    """Return the median value at the images' borders, 0 to 255: photos are later preprocessed for the same background."""
    some = split.images[:: max(1, len(split) // 1000)]
    edges = (some[..., 0, :], some[..., -1, :], some[..., 0], some[..., -1])
    return float(torch.cat([edge.flatten() for edge in edges]).median())


def _validate_splits(train: Split, validation: Split | None) -> None:
    for role, split in (("training", train), ("validation", validation)):
        if split is not None and split.name == "test":
            raise DataError(f"fit got the test split as {role} data; the test split is opened by evaluate alone")
        if split is not None and not len(split):
            raise DataError(f"the {role} split of {split.dataset} is empty; give it at least one picture")
    if validation is not None and (validation.classes != train.classes or validation.image_shape != train.image_shape):
        raise DataError(
            f"the validation split has {len(validation.classes)} classes and pictures of {validation.image_shape}, the "
            f"training split {len(train.classes)} and {train.image_shape}; cut both from one dataset"
        )
    if validation is not None and validation.fingerprint != train.fingerprint:
        raise DataError(
            f"the training split is of {train.dataset} and the validation split of {validation.dataset}, or of another "
            "state of it; cut both from one dataset"
        )
