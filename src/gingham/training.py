"""fit(): the only training loop, and its clock."""

import contextlib
import copy
import ctypes
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gingham.augmentation import augment
from gingham.datasets import Split
from gingham.diagnosis import Watch
from gingham.errors import DataError, GinghamError, ModelError, RunError, is_exhausted, one_line
from gingham.evaluation import calibrate
from gingham.inspection import summarize
from gingham.models import NETWORKS, Classifier, NetworkFactory, build, construct, name_of
from gingham.optimization import build_optimizer, lr_at
from gingham.photo_augmentation import photograph_some
from gingham.progress import Display, History, Tracker
from gingham.recipe import Recipe
from gingham.sampling import Sampler
from gingham.storage import Run, describe_environment, load_checkpoint, save_checkpoint


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

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: given a test split, splits that do not belong together, or no pictures.
        ModelError: the network cannot be made, or does not fit the pictures or the number of classes.
        GinghamError: an unknown device, a loss that is no longer finite, or a checkpoint of another recipe.
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
    place = choose_device(device)
    precision = choose_precision(recipe.precision, place)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = _build(recipe, train, network).to(place)
    optimizer = build_optimizer(model, recipe)
    sampler = Sampler(recipe, len(train), place, train.block)
    history = History(recipe, sampler, place)
    state = _State(recipe, train, model, optimizer, sampler, history)
    start, seconds_before = state.restore(Path(folder)) if resume and folder is not None else (0, 0.0)

    def seconds_so_far() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)  # kernels still queued are training too
        return seconds_before + time.perf_counter() - clock

    def checkpoint(done: int, train_seconds: float) -> None:
        if folder is not None:
            state.save(Path(folder), done, train_seconds)

    model.train()
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_pages())
        display = stack.enter_context(Display(history, start, progress))
        tracker = _tracker(track, history, folder, start)
        if tracker:
            stack.callback(tracker.close)
        watch = Watch(recipe, model, history, train, display.warn)
        if network is not None:
            stack.enter_context(torch.random.fork_rng())  # its dropout draws from torch's own stream
        _warm_up(model, recipe, precision, sorted({*history.sizes.int().tolist()}), validation)
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
            pictures = augment(images[batch.to(images.device)].to(place), batch, recipe, epoch, step)
            if recipe.photo_share:
                pictures = photograph_some(pictures, labels[batch], train.classes, recipe, step)
            if network is not None:
                torch.manual_seed(zlib.crc32(f"{recipe.seed} {step}".encode()))  # so that training can go on at any step
            loss, logits = learn(model, optimizer, pictures, labels[batch], recipe, precision)

            history.note(step, loss, logits, labels[batch])
            if recipe.hard_share < 1:
                sampler.note(batch, F.cross_entropy(logits.detach().float(), labels[batch], reduction="none"))
            done = step + 1
            display.update(done)
            ends_epoch = sampler.position(done)[1] == 0
            last = done == sampler.steps
            due = time.monotonic() - last_checkpoint >= recipe.checkpoint_seconds
            if ends_epoch or due or last:
                history.require_finite(done, model)
            if last:
                train_seconds = seconds_so_far()  # the weights are final; what follows only measures and keeps them
            if ends_epoch or last:
                history.end_epoch(done, model, validation)
                if recipe.patience:
                    stops = state.keep_best(done)
                    if stops or last:  # which weights are final is known only now
                        train_seconds, last = seconds_so_far(), True
                display.end_epoch(train_seconds if last else seconds_so_far())
                watch.end_epoch(done)
                if tracker:
                    tracker.end_epoch(done)
                if on_epoch is not None and ends_epoch:
                    on_epoch(model, epoch + 1)
            if ends_epoch or due or last:
                checkpoint(done, train_seconds if last else seconds_so_far())
                last_checkpoint = time.monotonic()
            if last:
                break

    state.take_best()
    model.eval()
    metrics = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": str(place),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train),
        "epochs": sampler.epochs(history.steps),
        "steps": history.steps,
        "images_seen": int(history.sizes[: history.steps].sum()),
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
    run = Run(model, recipe, history.entries(), metrics, data, describe_environment(place))
    if validation is not None:
        calibrate(run, validation)
    return run


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
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    precision: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of gradient descent on a batch: uint8 (B, C, H, W) and int64 (B,); returns the loss and the logits (B, K)."""
    optimizer.zero_grad()
    with autocast(precision, images.device):
        logits = model(images)
    # The article's log-softmax and NLL, for any network: log_softmax leaves log-probabilities as they are.
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss, logits


@contextlib.contextmanager
def kept_pages() -> Iterator[None]:
    """Let the C library keep the memory it frees, for as long as a training lasts.

    Each step frees its activations and asks for as much again; by default their pages go back to the system in between and
    fault in anew, 3,000 of them a step of `fast`, which makes steps 1.2 times as long (benchmarks/step_time.py). glibc alone
    has this setting.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 1 << 30)
    try:
        yield
    finally:
        libc.mallopt(trim_threshold, 64 << 20)  # where glibc's own adjustment ends
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.malloc_trim(0)


def _warm_up(model: Classifier, recipe: Recipe, precision: str, sizes: list[int], validation: Split | None) -> None:
    """Let a copy of the model learn noise, in batches of each size to come, and answer for some: no kernel is set up on the clock.

    There is nothing to restore.
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


def _fits(split: Split, device: torch.device) -> bool:
    """Whether the pictures may move to the device: not those on disk, nor more than half of a GPU's free memory."""
    if device.type != "cuda":
        return split.block == 1
    return split.block == 1 and split.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the GPU where there is one (CUDA, then Apple's mps), else the CPU.

    Raises
        GinghamError: a name torch does not know, or a device this machine does not have.
    """
    have = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if kind in have))
    try:
        device = torch.device(name)
        if device.type in have and (device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()):
            return device
    except RuntimeError:
        pass
    raise GinghamError(f"no device {name!r} here; allowed: auto, {', '.join(have)}")


def choose_precision(precision: str, device: torch.device) -> str:
    """Return "float32" or "bfloat16"; "auto" is bfloat16 where the hardware multiplies it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        # Private to torch, but there since 2.4; without AMX or AVX512-BF16 bfloat16 is emulated and slower.
        native = any(
            getattr(torch.cpu, test, lambda: False)() for test in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        )
        return "bfloat16" if native else "float32"
    return "float32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a forward pass runs at that precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


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


@dataclass
class _State:
    """All that changes while a network is trained, and what it is trained on."""

    recipe: Recipe
    train: Split
    model: Classifier
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    history: History
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # the weights of the best look, with patience

    def keep_best(self, done: int) -> bool:
        """Keep the weights if the validation split was never answered better; return whether patience has run out."""
        looks = self.history.looks()
        if not looks or looks[-1]["step"] != done:
            return False
        since = self.history.looks_since_best()
        if since == 0:
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if since >= self.recipe.patience:
            self.history.steps = done
        return since >= self.recipe.patience

    def take_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)

    def save(self, folder: Path, done: int, train_seconds: float) -> None:
        """Write a checkpoint: weights, optimizer, order of the pictures, history. All other draws follow from seed and step."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {"sampler.order": self.sampler.order, "sampler.losses": self.sampler.losses}
        tensors |= {"history.losses": self.history.losses[:done], "history.hits": self.history.hits[:done]}
        facts = {"step": done, "train_seconds": train_seconds, "epochs": self.history.epochs, **self.identity()}
        save_checkpoint(folder, tensors, facts)

    def restore(self, folder: Path) -> tuple[int, float]:
        """Restore what `save` wrote and return the step to go on from and the seconds spent; (0, 0.0) if there is none."""
        saved = load_checkpoint(folder)
        if saved is None:
            return 0, 0.0
        tensors, facts = saved
        now = self.identity()
        before = {
            **Recipe().to_dict(),
            **(facts.get("recipe") or {}),
            **{key: facts.get(key) for key in ("fingerprint", "train_images")},
        }
        wanted = {**now.pop("recipe"), **now}
        del wanted["checkpoint_seconds"]  # it does not touch the weights
        if changed := [f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value]:
            more = f" and {len(changed) - 3} more differences" if len(changed) > 3 else ""
            raise RunError(
                f"the checkpoint in {folder} was made with {' and '.join(changed[:3])}{more}; resume with the same settings "
                f"(--recipe {before.get('name')} --seed {before.get('seed')}), or give another --out"
            )
        try:
            self.model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
            places = self.model.state_dict()
            self.best = {
                name[5:]: torch.empty_like(places[name[5:]]).copy_(tensor)
                for name, tensor in tensors.items()
                if name.startswith("best.")
            }
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".", 2)
                    # In the parameter's own memory format: another one may take another kernel, and end in other bits.
                    state.setdefault(int(index), {})[key] = torch.empty_like(parameters[int(index)]).copy_(tensor)
            self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
            done = int(facts["step"])
            device = self.sampler.losses.device
            self.sampler.order, self.sampler.losses = (tensors[f"sampler.{key}"].to(device) for key in ("order", "losses"))
            self.history.losses[:done], self.history.hits[:done] = tensors["history.losses"], tensors["history.hits"]
            self.history.epochs = list(facts["epochs"])
            if self.recipe.patience and self.history.looks_since_best() >= self.recipe.patience:
                self.history.steps = done  # it had just stopped early
            return done, float(facts["train_seconds"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the checkpoint in {folder} does not fit ({one_line(error)}); remove {folder / 'checkpoint'} to start over"
            ) from error

    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        facts = {"fingerprint": self.train.fingerprint, "train_images": len(self.train)}
        return {"recipe": self.recipe.to_dict(), **facts}
