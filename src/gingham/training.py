"""fit(): the only training loop, and its clock."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from tqdm import tqdm

from gingham.datasets import Split
from gingham.errors import DataError, GinghamError, RunError, one_line
from gingham.models import Classifier, build
from gingham.optimization import build_optimizer, lr_at
from gingham.recipe import Recipe
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
    place = choose_device(device)
    precision = choose_precision(recipe.precision, place)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(recipe.network, train.classes, _shape(train), recipe.mean, recipe.std).to(place)
    optimizer = build_optimizer(model, recipe)

    steps_per_epoch = -(-len(train) // recipe.batch_size)
    steps = max(1, round(recipe.epochs * steps_per_epoch))
    losses, hits = torch.zeros(2, steps, device=place)  # each step's mean loss and number of right answers
    sizes = torch.full((steps,), float(recipe.batch_size), device=place)
    sizes[steps_per_epoch - 1 :: steps_per_epoch] = len(train) - (steps_per_epoch - 1) * recipe.batch_size
    epochs: list[dict[str, Any]] = []
    start, seconds_before = 0, 0.0
    if resume and folder is not None and (saved := load_checkpoint(Path(folder))) is not None:
        tensors, facts = saved
        _refuse_other_training(facts, recipe, train, Path(folder))
        start, seconds_before, epochs = facts["step"], facts["train_seconds"], facts["epochs"]
        _restore(tensors, model, optimizer, losses, hits)

    display = _Display(steps, steps_per_epoch, start, progress)
    clock = time.perf_counter()

    def train_seconds() -> float:
        if place.type == "cuda":
            torch.cuda.synchronize(place)  # kernels still queued are training too
        return seconds_before + time.perf_counter() - clock

    def checkpoint(step: int) -> None:
        if folder is not None:
            facts = {"step": step, "train_seconds": train_seconds(), "epochs": epochs, **_identity(recipe, train)}
            save_checkpoint(Path(folder), _state(model, optimizer, losses[:step], hits[:step]), facts)

    images, labels = train.images.to(place), train.labels.to(place)
    last_checkpoint = time.monotonic()
    model.train()
    with display:
        for step, batch in enumerate(batches(recipe, len(train), start, steps), start):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, steps, recipe)
            optimizer.zero_grad()
            with autocast(precision, place):
                logits = model(images[batch])  # (B, K)
            # The article's log-softmax and NLL, for any network: log_softmax leaves log-probabilities as they are.
            loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

            losses[step] = loss.detach()
            hits[step] = (logits.argmax(dim=1) == labels[batch]).sum()
            display.update(step + 1, losses, hits, sizes)
            done, ends_epoch = step + 1, (step + 1) % steps_per_epoch == 0
            if ends_epoch or done == steps:
                epochs.append(_epoch_entry(done, steps_per_epoch, losses, hits, sizes, model, validation))
                _refuse_diverged(losses[:done], recipe)
                display.end_epoch(epochs[-1], train_seconds())
                if on_epoch is not None and ends_epoch:
                    on_epoch(model, done // steps_per_epoch)
            if ends_epoch or time.monotonic() - last_checkpoint >= recipe.checkpoint_seconds:
                _refuse_diverged(losses[:done], recipe)
                checkpoint(done)
                last_checkpoint = time.monotonic()

    model.eval()
    run = Run(
        model=model,
        recipe=recipe,
        history=_history(losses, hits / sizes, epochs, recipe),
        data={"name": train.dataset, "fingerprint": train.fingerprint, "train_images": len(train)},
        environment=describe_environment(place),
    )
    run.metrics = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "device": str(place),
        "precision": precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_images": len(train),
        "epochs": steps / steps_per_epoch,
        "steps": steps,
        "train_seconds": train_seconds(),
        "validation_accuracy": epochs[-1]["validation_accuracy"] if epochs else None,
        "resumed_from_step": start or None,
    }
    return run


def batches(recipe: Recipe, images: int, start: int, stop: int) -> Iterator[torch.Tensor]:
    """Yield the indices, int64 (B,), of the batches from step `start` up to `stop`.

    Every epoch is a fresh shuffle that depends on the seed and the epoch alone, so training can go on at any step. The
    last batch of an epoch is kept, however small.
    """
    steps_per_epoch = -(-images // recipe.batch_size)
    order = None
    for step in range(start, stop):
        epoch, position = divmod(step, steps_per_epoch)
        if order is None or position == 0:
            generator = torch.Generator().manual_seed((recipe.seed << 20) + epoch)
            order = torch.randperm(images, generator=generator)
        yield order[position * recipe.batch_size : (position + 1) * recipe.batch_size]


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


def _refuse_diverged(losses: torch.Tensor, recipe: Recipe) -> None:
    bad = (~losses.isfinite()).nonzero().flatten()
    if len(bad):
        step = int(bad[0])
        raise GinghamError(
            f"the loss is no longer finite since step {step + 1} (a batch of {recipe.batch_size}, learning rate "
            f"{recipe.learning_rate:g}); try a lower one, such as --set learning_rate={recipe.learning_rate / 10:g}"
        )


def _identity(recipe: Recipe, train: Split) -> dict[str, Any]:
    return {"recipe": recipe.to_dict(), "fingerprint": train.fingerprint, "train_images": len(train)}


def _refuse_other_training(facts: dict[str, Any], recipe: Recipe, train: Split, folder: Path) -> None:
    now = _identity(recipe, train)
    changed = [key for key in ("fingerprint", "train_images") if facts.get(key) != now[key]]
    changed += [key for key, value in now["recipe"].items() if (facts.get("recipe") or {}).get(key) != value]
    changed = [key for key in changed if key != "checkpoint_seconds"]  # it does not touch the weights
    if changed:
        raise RunError(
            f"the checkpoint in {folder} was made with another {' and another '.join(changed)}; resume with the same "
            "settings, or give another --out"
        )


def _state(
    model: Classifier, optimizer: torch.optim.Optimizer, losses: torch.Tensor, hits: torch.Tensor
) -> dict[str, torch.Tensor]:
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
    return {**state, "history.losses": losses, "history.hits": hits}


def _restore(
    tensors: dict[str, torch.Tensor],
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    losses: torch.Tensor,
    hits: torch.Tensor,
) -> None:
    try:
        model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        done = len(tensors["history.losses"])
        losses[:done], hits[:done] = tensors["history.losses"], tensors["history.hits"]
    except (KeyError, ValueError, RuntimeError) as error:
        raise RunError(f"the checkpoint does not fit the network ({one_line(error)}); remove it to start over") from error


def _epoch_entry(
    done: int,
    steps_per_epoch: int,
    losses: torch.Tensor,
    hits: torch.Tensor,
    sizes: torch.Tensor,
    model: Classifier,
    validation: Split | None,
) -> dict[str, Any]:
    span = slice((done - 1) // steps_per_epoch * steps_per_epoch, done)
    images = sizes[span].sum()
    entry: dict[str, Any] = {
        "epoch": done / steps_per_epoch,
        "step": done,
        "train_loss": float((losses[span] * sizes[span]).sum() / images),
        "train_accuracy": float(hits[span].sum() / images),
        "validation_loss": None,
        "validation_accuracy": None,
    }
    if validation is not None:
        logits, labels = model.logits(validation.images), validation.labels
        entry["validation_loss"] = float(F.cross_entropy(logits, labels))
        entry["validation_accuracy"] = float((logits.argmax(dim=1) == labels).double().mean())
    return entry


def _history(
    losses: torch.Tensor, accuracies: torch.Tensor, epochs: list[dict[str, Any]], recipe: Recipe
) -> list[dict[str, Any]]:
    steps = len(losses)
    by_step = {entry["step"]: entry for entry in epochs}
    history: list[dict[str, Any]] = []
    for step, (loss, accuracy) in enumerate(zip(losses.tolist(), accuracies.tolist(), strict=True), 1):
        rate = lr_at(step - 1, steps, recipe)
        history.append({"step": step, "loss": loss, "accuracy": accuracy, "learning_rate": rate})
        if step in by_step:
            history.append(by_step[step])
    return history


class _Display:
    """A tqdm bar on a terminal; elsewhere a line an epoch, and one every ten seconds in between."""

    def __init__(self, steps: int, steps_per_epoch: int, start: int, shown: bool) -> None:
        self.steps, self.steps_per_epoch, self.shown = steps, steps_per_epoch, shown
        self.live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, unit="step", file=sys.stderr, disable=not self.live)
        self.every = 0.2 if self.live else 10.0  # reading a loss back waits for the GPU: five times a second is enough
        self.next = time.monotonic() + self.every

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, done: int, losses: torch.Tensor, hits: torch.Tensor, sizes: torch.Tensor) -> None:
        if not self.shown or (time.monotonic() < self.next and done < self.steps):
            return
        self.next = time.monotonic() + self.every
        recent = slice(max((done - 1) // self.steps_per_epoch * self.steps_per_epoch, done - 100), done)
        loss, accuracy = float(losses[recent].mean()), float(hits[recent].sum() / sizes[recent].sum())
        if self.live:
            self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)
            self.bar.update(done - self.bar.n)
        elif done % self.steps_per_epoch and done < self.steps:
            print(
                f"step {done}/{self.steps}  epoch {done / self.steps_per_epoch:.2f}  loss {loss:.4f}  accuracy {accuracy:.2%}",
                file=sys.stderr,
            )

    def end_epoch(self, entry: dict[str, Any], seconds: float) -> None:
        if not self.shown:
            return
        self.next = time.monotonic() + self.every
        line = (
            f"epoch {entry['epoch']:.3g}/{self.steps / self.steps_per_epoch:.3g}  loss {entry['train_loss']:.4f}  "
            f"accuracy {entry['train_accuracy']:.2%}  {seconds:.1f} s"
        )
        if entry["validation_accuracy"] is not None:
            line += f"  validation loss {entry['validation_loss']:.4f}  accuracy {entry['validation_accuracy']:.2%}"
        tqdm.write(line, file=sys.stderr) if self.live else print(line, file=sys.stderr)
