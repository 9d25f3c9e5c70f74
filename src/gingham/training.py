"""fit(): the only training loop, and its clock."""

import contextlib
import copy
import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from tqdm import tqdm

from gingham.augmentation import augment
from gingham.datasets import Split
from gingham.errors import DataError, GinghamError, RunError, one_line
from gingham.models import Classifier, build
from gingham.optimization import build_optimizer, lr_at
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
    progress: bool = True,
    on_epoch: Callable[[Classifier, int], None] | None = None,
) -> Run:
    """Train a network as a recipe says and return the Run.

    Shows a progress bar on a terminal and plain lines elsewhere, on stderr, unless `progress` is False. With a `folder`
    a checkpoint is kept there, every `checkpoint_seconds` and at the end of each epoch, and `resume` goes on from it to
    the same weights (byte for byte on the same CPU and thread count). `on_epoch(model, epoch)` is called after each
    epoch, counted from 1, with the model as it is then.

        run = gingham.fit(recipe, data.train, data.validation)

    Raises
        DataError: given a test split, splits that do not belong together, or no pictures.
        GinghamError: an unknown device, a loss that is no longer finite, or a checkpoint of another recipe.
    """
    _refuse_wrong_splits(train, validation)
    recipe = recipe.replace(validation_images=len(validation) if validation else 0)  # what was held out, not what was meant
    place = choose_device(device)
    precision = choose_precision(recipe.precision, place)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(recipe.network, train.classes, _shape(train), recipe.mean, recipe.std, recipe.views).to(place)
    optimizer = build_optimizer(model, recipe)
    sampler = Sampler(recipe, len(train), place, train.block)
    history = _History(recipe, sampler, place)
    start, seconds_before = 0, 0.0
    if resume and folder is not None:
        start, seconds_before = _take_up(Path(folder), recipe, train, model, optimizer, sampler, history)
    _warm_up(model, recipe, precision, min(recipe.batch_size, len(train)))

    clock = time.perf_counter()

    def seconds_so_far() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)  # kernels still queued are training too
        return seconds_before + time.perf_counter() - clock

    def checkpoint(done: int, train_seconds: float) -> None:
        if folder is not None:
            _put_down(Path(folder), done, train_seconds, recipe, train, model, optimizer, sampler, history)

    images = train.images.to(place) if _fits(train, place) else train.images  # bytes, resident wherever they fit
    labels = train.labels.to(place)
    last_checkpoint = time.monotonic()
    train_seconds = seconds_before
    model.train()
    with kept_pages(), _Display(history, start, progress) as display:
        for step, batch in enumerate(sampler.batches(start, sampler.steps), start):
            rate = lr_at(step, sampler.steps, recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            epoch, _ = sampler.position(step)
            pictures = augment(images[batch.to(images.device)].to(place), batch, recipe, epoch, step)
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
                display.end_epoch(train_seconds if last else seconds_so_far())
                if on_epoch is not None and ends_epoch:
                    on_epoch(model, epoch + 1)
            if ends_epoch or due or last:
                checkpoint(done, train_seconds if last else seconds_so_far())
                last_checkpoint = time.monotonic()

    model.eval()
    metrics = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": str(place),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train),
        "epochs": sampler.epochs(sampler.steps),
        "steps": sampler.steps,
        "images_seen": int(history.sizes.sum()),
        "train_seconds": train_seconds,
        "wall_seconds": None,  # the command line knows it
        "validation_accuracy": history.epochs[-1]["validation_accuracy"],
        "resumed_from_step": start or None,
    }
    data = {"name": train.dataset, "fingerprint": train.fingerprint, "train_images": len(train)}
    return Run(model, recipe, history.entries(), metrics, data, describe_environment(place))


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
    fault in anew, 3,000 of them a step of `fast`. Kept, a step is 1.1 to 1.2 times as fast (benchmarks/kept_pages.py). glibc
    alone has this setting.
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


def _warm_up(model: Classifier, recipe: Recipe, precision: str, batch_size: int) -> None:
    """Let a copy of the model learn two batches of noise, so that no kernel is set up on the clock. Nothing is to restore."""
    twin = copy.deepcopy(model).train()
    optimizer = build_optimizer(twin, recipe)
    device = model.mean.device
    generator = torch.Generator().manual_seed(recipe.seed)  # of its own: the training's draws stay where they were
    images = torch.randint(256, (batch_size, *model.input_shape), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(len(model.classes), (batch_size,), generator=generator).to(device)
    for _ in range(2):
        learn(twin, optimizer, images, labels, recipe, precision)


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


class _History:
    """Each step's loss and right answers, kept on the device until someone asks, and what each epoch came to."""

    def __init__(self, recipe: Recipe, sampler: Sampler, device: torch.device) -> None:
        self.recipe, self.sampler = recipe, sampler
        self.losses, self.hits = torch.zeros(2, sampler.steps, device=device)
        self.sizes = torch.full((sampler.steps,), float(recipe.batch_size), device=device)
        for step in range(sampler.steps):
            epoch, place = sampler.position(step)
            self.sizes[step] = min(recipe.batch_size, sampler.pictures(epoch) - place * recipe.batch_size)
        self.epochs: list[dict[str, Any]] = []

    def note(self, step: int, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self.losses[step] = loss.detach()
        self.hits[step] = (logits.argmax(dim=1) == labels).sum()

    def mean(self, start: int, stop: int) -> tuple[float, float]:
        """Loss and accuracy over the pictures of some steps."""
        span = slice(start, stop)
        images = self.sizes[span].sum()
        return float((self.losses[span] * self.sizes[span]).sum() / images), float(self.hits[span].sum() / images)

    def end_epoch(self, done: int, model: Classifier, validation: Split | None) -> None:
        loss, accuracy = self.mean(done - 1 - self.sampler.position(done - 1)[1], done)
        entry = {"epoch": self.sampler.epochs(done), "step": done, "train_loss": loss, "train_accuracy": accuracy}
        held_out: dict[str, float | None] = {"validation_loss": None, "validation_accuracy": None}
        # Epochs of hard pictures are short: the validation split is measured as often as the training split's size is seen.
        before = next((earlier["step"] for earlier in reversed(self.epochs) if earlier["validation_loss"] is not None), 0)
        due = done == self.sampler.steps or float(self.sizes[before:done].sum()) >= self.sampler.images
        if validation is not None and due:
            logits, labels = model.logits(validation.images), validation.labels
            held_out["validation_loss"] = float(F.cross_entropy(logits, labels))
            held_out["validation_accuracy"] = float((logits.argmax(dim=1) == labels).double().mean())
        self.epochs.append({**entry, **held_out})

    def require_finite(self, done: int, model: Classifier) -> None:
        bad = (~self.losses[:done].isfinite()).nonzero().flatten().tolist()
        if not bad and not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            bad = [done - 1]  # the last update was the one: its loss would only show at the next step
        if bad:
            rate = self.recipe.learning_rate
            raise GinghamError(
                f"the loss is no longer finite since step {bad[0] + 1} (batches of {self.recipe.batch_size}, learning "
                f"rate {rate:g}); try a lower one and another --out, such as --set learning_rate={rate / 10:g}"
            )

    def entries(self) -> list[dict[str, Any]]:
        """What history.jsonl holds: a line a step, and after an epoch's last step the epoch's."""
        ends = {entry["step"]: entry for entry in self.epochs}
        entries: list[dict[str, Any]] = []
        accuracies = self.hits / self.sizes
        for step, (loss, accuracy) in enumerate(zip(self.losses.tolist(), accuracies.tolist(), strict=True), 1):
            rate = lr_at(step - 1, len(self.losses), self.recipe)
            entries.append({"step": step, "loss": loss, "accuracy": accuracy, "learning_rate": rate})
            if step in ends:
                entries.append(ends[step])
        return entries


def _put_down(
    folder: Path,
    done: int,
    train_seconds: float,
    recipe: Recipe,
    train: Split,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    sampler: Sampler,
    history: _History,
) -> None:
    """Write a checkpoint: weights, optimizer, order of the pictures, history. All other draws follow from seed and step."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
    tensors |= {"sampler.order": sampler.order, "sampler.losses": sampler.losses}
    tensors |= {"history.losses": history.losses[:done], "history.hits": history.hits[:done]}
    facts = {"step": done, "train_seconds": train_seconds, "epochs": history.epochs, **_identity(recipe, train)}
    save_checkpoint(folder, tensors, facts)


def _take_up(
    folder: Path,
    recipe: Recipe,
    train: Split,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    sampler: Sampler,
    history: _History,
) -> tuple[int, float]:
    """Restore what `_put_down` wrote and return the step to go on from and the seconds spent; (0, 0.0) if there is none."""
    saved = load_checkpoint(folder)
    if saved is None:
        return 0, 0.0
    tensors, facts = saved
    now = _identity(recipe, train)
    before = {**(facts.get("recipe") or {}), **{key: facts.get(key) for key in ("fingerprint", "train_images")}}
    wanted = {**now.pop("recipe"), **now}
    del wanted["checkpoint_seconds"]  # it does not touch the weights
    if changed := [f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value]:
        raise RunError(
            f"the checkpoint in {folder} was made with {' and '.join(changed)}; resume with the same settings, or give "
            "another --out"
        )
    try:
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                # In the parameter's own memory format: another one may take another kernel, and end in other bits.
                state.setdefault(int(index), {})[key] = torch.empty_like(parameters[int(index)]).copy_(tensor)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        done = int(facts["step"])
        sampler.order, sampler.losses = (tensors[f"sampler.{key}"].to(sampler.losses.device) for key in ("order", "losses"))
        history.losses[:done], history.hits[:done] = tensors["history.losses"], tensors["history.hits"]
        history.epochs = list(facts["epochs"])
        return done, float(facts["train_seconds"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the checkpoint in {folder} does not fit ({one_line(error)}); remove {folder / 'checkpoint'} to start over"
        ) from error


def _identity(recipe: Recipe, train: Split) -> dict[str, Any]:
    return {"recipe": recipe.to_dict(), "fingerprint": train.fingerprint, "train_images": len(train)}


class _Display:
    """A tqdm bar on a terminal; elsewhere a line an epoch, and one every ten seconds in between."""

    def __init__(self, history: _History, start: int, shown: bool) -> None:
        self.history, self.sampler, self.shown = history, history.sampler, shown
        self.live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=self.sampler.steps, initial=start, unit="step", file=sys.stderr, disable=not self.live)
        self.every = 0.2 if self.live else 10.0  # reading a loss back waits for the GPU: five times a second is enough
        self.next = time.monotonic() + self.every
        if start:
            self._print(f"going on from step {start} of {self.sampler.steps}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, done: int) -> None:
        steps = self.sampler.steps
        if not self.shown or (time.monotonic() < self.next and not (self.live and done == steps)):
            return
        self.next = time.monotonic() + self.every
        _, place = self.sampler.position(done - 1)
        loss, accuracy = self.history.mean(done - 1 - min(place, 99), done)
        if self.live:
            self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
            self.bar.update(done - self.bar.n)
        else:
            self._print(f"step {done}/{steps}  epoch {self.sampler.epochs(done):.2f}  loss {loss:.4f}  accuracy {accuracy:.2%}")

    def end_epoch(self, seconds: float) -> None:
        entry, epochs = self.history.epochs[-1], self.sampler.epochs(self.sampler.steps)
        self.next = time.monotonic() + self.every
        images = self.sampler.pictures(self.sampler.position(entry["step"] - 1)[0])
        line = (
            f"epoch {entry['epoch']:.3g}/{epochs:.3g}  loss {entry['train_loss']:.4f}  accuracy {entry['train_accuracy']:.2%}"
        )
        if images < self.sampler.images:
            line += f" of {images:,} hard pictures"
        if entry["validation_accuracy"] is not None:
            line += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.2%}"
        self._print(f"{line}  {seconds:.1f} s")

    def _print(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads along any more; the training goes on
            if self.live:
                tqdm.write(line, file=sys.stderr)
            elif self.shown:
                print(line, file=sys.stderr, flush=True)
