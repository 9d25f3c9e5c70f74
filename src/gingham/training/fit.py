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

from gingham.data.augment_photos import photograph_some
from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.device import choose_device, choose_precision, describe_environment, kept_pages, tuned
from gingham.distributed import Crew, joined
from gingham.errors import DataError, GinghamError, ModelError, one_line
from gingham.evaluation.calibrate import calibrate
from gingham.models.classifier import Classifier
from gingham.models.registry import NetworkFactory, build, construct, name_of
from gingham.models.summary import summarize
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, parse_checkpoint, read_checkpoint
from gingham.runs.run import Run
from gingham.training.batches import draw_batches
from gingham.training.callbacks import Display, create_tensorboard_logger
from gingham.training.distillation import Teachers, load_teachers, require_teachers
from gingham.training.health import Watch
from gingham.training.history import History
from gingham.training.optimizer import build_optimizer, lr_at, set_rate
from gingham.training.state import State, environment_of
from gingham.training.step import Learned, Learner, Recording, compiled, learn, noise_like, warm_up
from gingham.training.stop_request import postponed

EPOCH_SECONDS = 1.0  # of which a checkpoint at the end of an epoch saves at least as many: a GPU does dozens of epochs a second


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

    Shows a progress bar on a terminal and plain lines elsewhere, on stderr, unless `progress` is False, and warns there of
    what `training/checks.py` finds on the way. With a `folder`
    a checkpoint is kept there, every `checkpoint_seconds` and at the end of each epoch, and `resume` goes on from it to
    the same weights (byte for byte on the same CPU and thread count). `network` is a class or function that makes a
    network of your own, in place of the recipe's: float (N, C, H, W) in, logits (N, K) out. `teachers` are runs, trained on the same
    split, whose answers the network learns beside the labels, in the recipe's `teacher_share`. `track` "tensorboard" writes
    the history there too, to `tensorboard/` in the folder. `on_epoch(model, epoch)` is called after each
    epoch, counted from 1, with the model as it is then.

    With a validation split the model's temperature and its threshold for "not sure" are fitted to it at the end; with the
    recipe's `patience` it also ends the training, and the weights are those of the best look at it.

    Ctrl-C and SIGTERM are heard between two steps; with a `folder` the state is kept first. In processes that torchrun has started, each
    takes its share of every batch and gets the same Run; only the first writes checkpoints, and only it should save.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: given a test split, splits that do not belong together, no pictures, or a teacher that was trained on others.
        ModelError: the network cannot be made, or does not fit the pictures or the number of classes.
        GinghamError: an unknown device, a checkpoint of another recipe, or another process that is lost or trains something else.
        TrainingError: a loss that is no longer finite.
        KeyboardInterrupt, Terminated: on Ctrl-C and SIGTERM, which leave what was trained in the folder's checkpoint.
    """
    _refuse_wrong_splits(train, validation)
    # What was held out and how it was read, not what was meant.
    recipe = recipe.replace(validation_images=len(validation) if validation else 0, size=train.size)
    if recipe.patience and validation is None:
        raise GinghamError(
            f"patience is {recipe.patience}, and no validation split is held out to look at; "
            "hold pictures out (--set validation_images=5000), or set patience=0"
        )
    if recipe.photo_share:
        photograph_some(train.images[:0], train.labels[:0], train.classes, recipe, 0)  # refuses colour
    checksums = require_teachers(teachers, recipe, train, validation)
    if network is not None:
        recipe = recipe.replace(network=name_of(network))
    with contextlib.ExitStack() as stack:
        crew = stack.enter_context(joined())
        place = choose_device(device, crew.local_rank if crew.size > 1 else None)
        precision = choose_precision(recipe.precision, place)
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            model = _build(recipe, train, network).to(place)
        optimizer = build_optimizer(model, recipe)
        sampler = Sampler(recipe, len(train), place, train.block)
        history = History(recipe, sampler, place)
        teaching = load_teachers(teachers, recipe, place)
        state = State(recipe, train, model, optimizer, sampler, history, environment_of(place, precision, crew.size), checksums)
        crew.require_same("recipe and data", json.dumps(state.identity()))
        start, seconds_before, notes = _restore(state, folder, crew) if resume else (0, 0.0, [])

        def seconds_so_far() -> float:
            if place.type == "cuda":
                torch.cuda.synchronize(place)  # kernels still queued are training too
            return seconds_before + time.perf_counter() - clock

        def checkpoint(done: int, train_seconds: float) -> None:
            if folder is not None and crew.leads:
                state.save(Path(folder), done, train_seconds)

        model.train()
        stack.enter_context(kept_pages())
        stack.enter_context(tuned(place))
        display = stack.enter_context(Display(history, start, progress and crew.leads, notes))
        tracker = create_tensorboard_logger(track, history, folder, start) if crew.leads else None
        if tracker:
            stack.callback(tracker.close)
        watch = Watch(recipe, model, history, train, display.warn)
        if network is not None:
            stack.enter_context(torch.random.fork_rng())  # its dropout draws from torch's own stream
        sizes = sorted({len(range(size)[crew.part(size)]) for size in {*history.sizes.int().tolist()}})
        answers = min(len(validation), 500) if validation else 0
        unused = warm_up(model, recipe, precision, sizes, answers, teaching)
        learner = _learner(state, precision, teaching, sizes, crew, unused, network is None, display.warn)
        asked = stack.enter_context(postponed(patient=crew.size > 1))  # torchrun passes on what its children got too
        clock = time.perf_counter()
        images = train.images.to(place) if _fits(train, place) else train.images  # bytes, resident wherever they fit
        labels = train.labels.to(place)
        last_checkpoint = time.monotonic()
        train_seconds = seconds_before
        for step, indices, batch in draw_batches(images, labels, train, recipe, sampler, start, history.steps, crew, teaching):
            set_rate(optimizer, lr_at(step, sampler.steps, recipe))
            epoch, _ = sampler.position(step)
            if network is not None:
                # So that training can go on at any step; processes that share a batch drop out each its own.
                torch.manual_seed(zlib.crc32(f"{recipe.seed} {step}{f' {crew.rank}' if crew.rank else ''}".encode()))
            learned = _gathered(learner(batch, crew.weight(len(indices))), len(indices), crew)

            history.note(step, learned.loss, learned.hits)
            if learned.losses is not None:
                sampler.note(indices, learned.losses)
            state.note_weights(step)
            done = step + 1
            display.update(done)
            ends_epoch = sampler.position(done)[1] == 0
            last = done == sampler.steps
            since = time.monotonic() - last_checkpoint
            stops, due = crew.any(bool(asked), since >= recipe.checkpoint_seconds or (ends_epoch and since >= EPOCH_SECONDS))
            if ends_epoch or due or last or stops:
                history.require_finite(done, model)
            if last:
                train_seconds = seconds_so_far()  # the weights are final; what follows only measures and keeps them
            if ends_epoch or last:
                with state.averaged():
                    history.end_epoch(done, model, validation, crew)
                    if recipe.patience:
                        early = state.keep_best(done)
                        if early or last:  # which weights are final is known only now
                            train_seconds, last = seconds_so_far(), True
                    display.end_epoch(train_seconds if last else seconds_so_far())
                    watch.end_epoch(done)
                    if tracker:
                        tracker.end_epoch(done)
                    if on_epoch is not None and ends_epoch:
                        on_epoch(model, epoch + 1)
            if due or last or stops:
                checkpoint(done, train_seconds if last else seconds_so_far())
                last_checkpoint = time.monotonic()
            if stops:
                asked.stop()
            if last:
                break
        state.take_final()
        crew.follow(model.buffers())
        model.eval()
        run = _run_of(state, train_seconds, start, crew)
        if teachers:
            run.data["teachers"] = [
                {"recipe": one.recipe.name, "seed": one.recipe.seed, "weights_sha256": checksum}
                for one, checksum in zip(teachers, state.teachers, strict=True)
            ]
        if validation is not None:
            calibrate(run, validation, crew)
        return run


def _learner(
    state: State,
    precision: str,
    teachers: Teachers | None,
    sizes: Sequence[int],
    crew: Crew,
    unused: bool,
    ours: bool,
    warn: Callable[[str], None],
) -> Learner:
    """What takes a step, the fastest that goes here: `learn`, on a compiled model where the recipe says so, and recorded on a GPU."""
    model, optimizer, recipe = crew.wrap(state.model, unused=unused), state.optimizer, state.recipe
    batches = [noise_like(size, state.model, recipe, teachers) for size in sizes]
    if recipe.compile:
        model = compiled(model, optimizer, recipe, precision, teachers, batches)
    if state.model.mean.is_cuda and ours and crew.size == 1:  # nobody knows what another's network does in its forward
        try:
            return Recording(model, optimizer, recipe, precision, teachers, batches)
        except RuntimeError as error:
            warn(f"the steps cannot be recorded for the GPU and take longer ({one_line(error)})")
    return functools.partial(learn, model, optimizer, recipe, precision, teachers)


def _run_of(state: State, train_seconds: float, start: int, crew: Crew) -> Run:
    recipe, train, model, sampler, history = state.recipe, state.train, state.model, state.sampler, state.history
    seen = int(history.sizes[: history.steps].sum())
    metrics = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": state.environment["device"],
        "precision": state.environment["precision"],
        "processes": crew.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train),
        "epochs": sampler.epochs(history.steps),
        "steps": history.steps,
        "images_seen": seen,
        "images_per_second_per_process": seen / train_seconds / crew.size if train_seconds else None,
        "train_seconds": train_seconds,
        "wall_seconds": None,  # the command line knows it
        "validation_accuracy": history.kept()["validation_accuracy"],
        "chosen_epoch": history.kept()["epoch"],  # the last but with patience
        "resumed_from_step": start or None,
    }
    data: dict[str, Any] = {"name": train.dataset, "fingerprint": train.fingerprint, "train_images": len(train)}
    data["background"] = _background(train)
    if train.skip_unreadable:
        data["skip_unreadable"] = True
    return Run(model, recipe, history.entries(), metrics, data, describe_environment(model.mean.device))


def _restore(state: State, folder: str | Path | None, crew: Crew) -> tuple[int, float, list[str]]:
    """Bring every process to the last checkpoint in the first one's folder: the step, the seconds spent, and what is to be said."""
    if folder is None:
        return 0, 0.0, []
    data, notes = b"", []
    if crew.leads and has_checkpoint(Path(folder)):
        data, torn = read_checkpoint(Path(folder))
        notes = [f"{sentence}; going on from the one before it" for sentence in torn]
    data = crew.send(data)
    if not data:
        return 0, 0.0, []
    checkpoint = parse_checkpoint(data, Path(folder))
    step, seconds = state.restore(checkpoint, Path(folder))
    return step, seconds, notes + state.inexact(checkpoint)


def _gathered(learned: Learned, count: int, crew: Crew) -> Learned:
    """What a step found in a batch of `count` pictures, from what it found in each process's part."""
    if crew.size == 1:
        return learned
    told = torch.zeros(2 if learned.losses is None else 2 + count, device=learned.loss.device)
    if crew.rank < count:  # else its picture is another's too
        told[0], told[1] = learned.loss / crew.size, learned.hits
        if learned.losses is not None:
            told[2:][crew.part(count)] = learned.losses
    crew.add(told)
    return Learned(told[0], told[1], None if learned.losses is None else told[2:])


def _build(recipe: Recipe, train: Split, network: NetworkFactory | None) -> Classifier:
    shape = train.image_shape
    try:
        return build(recipe.network, train.classes, shape, recipe.mean, recipe.std, recipe.views, network)
    except ModelError:
        if network is not None:
            # Layer by layer, to say which one does not fit and what would.
            summarize(construct(recipe.network, network, shape[0], len(train.classes)), shape, recipe.network)
        raise


def _fits(split: Split, device: torch.device) -> bool:
    """Whether the pictures may move to the device: not those on disk, nor more than half of a GPU's free memory."""
    if device.type != "cuda":
        return split.block == 1
    return split.block == 1 and split.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _background(split: Split) -> float:
    """The median value around the pictures, 0 to 255: a photograph is to be prepared for the same background."""
    some = split.images[:: max(1, len(split) // 1000)]
    edges = (some[..., 0, :], some[..., -1, :], some[..., 0], some[..., -1])
    return float(torch.cat([edge.flatten() for edge in edges]).median())


def _refuse_wrong_splits(train: Split, validation: Split | None) -> None:
    for role, split in (("training", train), ("validation", validation)):
        if split is not None and split.name == "test":
            raise DataError(f"fit got the test split as {role} data; the test split is opened by evaluate alone")
        if split is not None and not len(split):
            raise DataError(f"the {role} split of {split.dataset} is empty; give it at least one picture")
    if validation is not None and (validation.classes != train.classes or validation.image_shape != train.image_shape):
        raise DataError(
            f"the validation split has {len(validation.classes)} classes and pictures of {validation.image_shape}, the training "
            f"split {len(train.classes)} and {train.image_shape}; cut both from one dataset"
        )
    if validation is not None and validation.fingerprint != train.fingerprint:
        raise DataError(
            f"the training split is of {train.dataset} and the validation split of {validation.dataset}, or of another state "
            "of it; cut both from one dataset"
        )
