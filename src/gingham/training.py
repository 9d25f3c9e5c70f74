"""fit(): the only training loop, and its clock."""

import contextlib
import copy
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gingham.augmentation import augment
from gingham.checkpoints import has_checkpoint, parse_checkpoint, read_checkpoint
from gingham.datasets import Split
from gingham.devices import autocast, choose_device, choose_precision, kept_pages
from gingham.diagnosis import Watch
from gingham.distributed import Crew, joined
from gingham.errors import DataError, GinghamError, ModelError, is_exhausted, one_line
from gingham.evaluation import calibrate
from gingham.inspection import summarize
from gingham.interruption import postponed
from gingham.models import NETWORKS, Classifier, NetworkFactory, build, construct, name_of
from gingham.optimization import build_optimizer, lr_at
from gingham.photo_augmentation import photograph_some
from gingham.progress import Display, History, Tracker
from gingham.recipe import Recipe
from gingham.sampling import Sampler
from gingham.state import State, environment_of
from gingham.storage import Run, describe_environment


def fit(
    recipe: Recipe,
    train: Split,
    validation: Split | None = None,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
    network: NetworkFactory | None = None,
    track: str | None = None,
    progress: bool = True,
    on_epoch: Callable[[Classifier, int], None] | None = None,
) -> Run:
    """Train a network as a recipe says and return the Run.

    Shows a progress bar on a terminal and plain lines elsewhere, on stderr, unless `progress` is False, and warns there of
    what `diagnosis.py` finds on the way. With a `folder`
    a checkpoint is kept there, every `checkpoint_seconds` and at the end of each epoch, and `resume` goes on from it to
    the same weights (byte for byte on the same CPU and thread count). `network` is a class or function that makes a
    network of your own, in place of the recipe's: float (N, C, H, W) in, logits (N, K) out. `track` "tensorboard" writes
    the history there too, to `tensorboard/` in the folder. `on_epoch(model, epoch)` is called after each
    epoch, counted from 1, with the model as it is then.

    With a validation split the model's temperature and its threshold for "not sure" are fitted to it at the end; with the
    recipe's `patience` it also ends the training, and the weights are those of the best look at it.

    Ctrl-C and SIGTERM are heard between two steps; with a `folder` the state is kept first. In processes that torchrun has started, each
    takes its share of every batch and gets the same Run; only the first writes checkpoints, and only it should save.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: given a test split, splits that do not belong together, or no pictures.
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
        state = State(recipe, train, model, optimizer, sampler, history, environment_of(place, precision, crew.size))
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
        display = stack.enter_context(Display(history, start, progress and crew.leads, notes))
        tracker = _tracker(track, history, folder, start) if crew.leads else None
        if tracker:
            stack.callback(tracker.close)
        watch = Watch(recipe, model, history, train, display.warn)
        if network is not None:
            stack.enter_context(torch.random.fork_rng())  # its dropout draws from torch's own stream
        parts = sorted({*history.sizes.int().tolist()})
        unused = _warm_up(model, recipe, precision, sorted({len(range(size)[crew.part(size)]) for size in parts}), validation)
        learner = crew.wrap(model, unused=unused)
        asked = stack.enter_context(postponed(patient=crew.size > 1))  # torchrun passes on what its children got too
        clock = time.perf_counter()
        images = train.images.to(place) if _fits(train, place) else train.images  # bytes, resident wherever they fit
        labels = train.labels.to(place)
        last_checkpoint = time.monotonic()
        train_seconds = seconds_before
        for step, batch in enumerate(sampler.batches(start, history.steps), start):
            rate = lr_at(step, sampler.steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            epoch, _ = sampler.position(step)
            part = crew.part(len(batch))
            # What is photographed depends on the whole batch.
            own, within = (batch, slice(None)) if recipe.photo_share else (batch[part], part)
            pictures = augment(images[own.to(images.device)].to(place), own, recipe, epoch, step, within, len(batch))
            if recipe.photo_share:
                pictures = photograph_some(pictures, labels[batch], train.classes, recipe, step)[part]
            truth = labels[batch[part]]
            if network is not None:
                # So that training can go on at any step; processes that share a batch drop out each its own.
                torch.manual_seed(zlib.crc32(f"{recipe.seed} {step}{f' {crew.rank}' if crew.rank else ''}".encode()))
            loss, logits = learn(learner, optimizer, pictures, truth, recipe, precision, crew.weight(len(batch)))
            loss, hits, losses = _gathered(loss, logits, truth, len(batch), recipe, crew)

            history.note(step, loss, hits)
            if losses is not None:
                sampler.note(batch, losses)
            done = step + 1
            display.update(done)
            ends_epoch = sampler.position(done)[1] == 0
            last = done == sampler.steps
            stops, due = crew.any(bool(asked), time.monotonic() - last_checkpoint >= recipe.checkpoint_seconds)
            keeps = ends_epoch or due or last or stops
            if keeps:
                history.require_finite(done, model)
            if last:
                train_seconds = seconds_so_far()  # the weights are final; what follows only measures and keeps them
            if ends_epoch or last:
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
            if keeps:
                checkpoint(done, train_seconds if last else seconds_so_far())
                last_checkpoint = time.monotonic()
            if stops:
                asked.stop()
            if last:
                break
        crew.follow(model.buffers())
        state.take_best()
        model.eval()
        run = _run_of(state, train_seconds, start, crew)
        if validation is not None:
            calibrate(run, validation, crew)
        return run


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


def _gathered(
    loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, count: int, recipe: Recipe, crew: Crew
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A batch's loss, right answers and, where the sampler wants them, each picture's loss (B,), from what each process has of it."""
    loss, logits = loss.detach(), logits.detach()
    hits = (logits.argmax(dim=1) == labels).sum()
    losses = F.cross_entropy(logits.float(), labels, reduction="none") if recipe.hard_share < 1 else None
    if crew.size == 1:
        return loss, hits, losses
    told = torch.zeros(2 if losses is None else 2 + count, device=loss.device)
    if crew.rank < count:  # else its picture is another's too
        told[0], told[1] = loss / crew.size, hits
        if losses is not None:
            told[2:][crew.part(count)] = losses
    crew.add(told)
    return told[0], told[1], None if losses is None else told[2:]


def _build(recipe: Recipe, train: Split, network: NetworkFactory | None) -> Classifier:
    shape = _shape(train)
    try:
        return build(recipe.network, train.classes, shape, recipe.mean, recipe.std, recipe.views, network)
    except ModelError:
        if network is not None:
            # Layer by layer, to say which one does not fit and what would.
            summarize(construct(recipe.network, network, shape[0], len(train.classes)), shape, recipe.network)
        raise


def require_tracker(track: str | None) -> None:
    """Raise a GinghamError for anything but "tensorboard" and None."""
    if track not in (None, "tensorboard"):
        raise GinghamError(f"--track got {track!r}; allowed: tensorboard")


def _tracker(track: str | None, history: History, folder: str | Path | None, start: int) -> Tracker | None:
    require_tracker(track)
    if track is None:
        return None
    if folder is None:
        raise GinghamError("track is tensorboard, and there is no folder to write to; give folder=")
    return Tracker(history, Path(folder) / "tensorboard", start)


def learn(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    precision: str,
    weight: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of gradient descent on a batch: uint8 (B, C, H, W) and int64 (B,); returns the loss and the logits (B, K).

    The loss is the mean over the batch, times the `weight` that this has among those of other processes.
    """
    optimizer.zero_grad()
    with autocast(precision, images.device):
        logits = model(images)
    # The article's log-softmax and NLL, for any network: log_softmax leaves log-probabilities as they are.
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    if weight != 1:
        loss = loss * weight
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss, logits


def _warm_up(model: Classifier, recipe: Recipe, precision: str, sizes: list[int], validation: Split | None) -> bool:
    """Let a copy of the model learn noise, in batches of each size to come, and answer for some: no kernel is set up on the clock.

    There is nothing to restore. Returns whether some parameters had no part in it.
    """
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(twin, recipe)
    device = model.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)  # of its own: the training's draws stay where they were

    def noise(count: int) -> torch.Tensor:
        return torch.randint(256, (count, *model.input_shape), dtype=torch.uint8, generator=generator).to(device)

    for size in (*sizes, sizes[-1]):
        labels = torch.randint(len(model.classes), (size,), generator=generator).to(device)
        try:
            learn(twin, optimizer, noise(size), labels, recipe, precision)
        except Exception as error:
            if recipe.network in NETWORKS or is_exhausted(error):
                raise
            alone = " (BatchNorm cannot learn from one value a channel)" if size == 1 and "per channel" in str(error) else ""
            raise ModelError(
                f"the network {recipe.network} cannot learn from a batch of {size}{alone}: {type(error).__name__}, "
                f"{one_line(error)}; mend its forward"
                + (f", or choose another batch size, such as --set batch_size={recipe.batch_size + 1}" if size == 1 else "")
            ) from error
    if validation is not None:
        twin.logits(noise(min(len(validation), 500)))
    return any(parameter.grad is None for parameter in twin.parameters() if parameter.requires_grad)


def _fits(split: Split, device: torch.device) -> bool:
    """Whether the pictures may move to the device: not those on disk, nor more than half of a GPU's free memory."""
    if device.type != "cuda":
        return split.block == 1
    return split.block == 1 and split.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def _shape(split: Split) -> tuple[int, int, int]:
    _, channels, height, width = split.images.shape
    return channels, height, width


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
    if validation is not None and (validation.classes != train.classes or _shape(validation) != _shape(train)):
        raise DataError(
            f"the validation split has {len(validation.classes)} classes and pictures of {_shape(validation)}, the training "
            f"split {len(train.classes)} and {_shape(train)}; cut both from one dataset"
        )
    if validation is not None and validation.fingerprint != train.fingerprint:
        raise DataError(
            f"the training split is of {train.dataset} and the validation split of {validation.dataset}, or of another state "
            "of it; cut both from one dataset"
        )
