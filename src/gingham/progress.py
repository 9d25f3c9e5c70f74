"""What a training came to so far: every step's loss, every epoch's accuracy, and the bar or the lines that show them."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from tqdm import tqdm

from gingham.datasets import Split
from gingham.distributed import Crew
from gingham.errors import GinghamError, TrainingError
from gingham.models import Classifier
from gingham.optimization import lr_at
from gingham.recipe import Recipe
from gingham.sampling import Sampler


class History:
    """Each step's loss and right answers, kept on the device until someone asks, and what each epoch came to."""

    def __init__(self, recipe: Recipe, sampler: Sampler, device: torch.device) -> None:
        self.recipe, self.sampler = recipe, sampler
        self.losses, self.hits = torch.zeros(2, sampler.steps, device=device)
        places = (sampler.position(step) for step in range(sampler.steps))
        sizes = [min(recipe.batch_size, sampler.pictures(epoch) - place * recipe.batch_size) for epoch, place in places]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)
        self.epochs: list[dict[str, Any]] = []
        self.steps = sampler.steps  # fewer once the training stops early

    def note(self, step: int, loss: torch.Tensor, hits: torch.Tensor) -> None:
        self.losses[step] = loss
        self.hits[step] = hits

    def mean(self, start: int, stop: int) -> tuple[float, float]:
        """Loss and accuracy over the pictures of some steps."""
        span = slice(start, stop)
        images = self.sizes[span].sum()
        # Shares, which cannot overflow: a loss may be as large as a float has room for.
        return float((self.losses[span] * (self.sizes[span] / images)).sum()), float(self.hits[span].sum() / images)

    def end_epoch(self, done: int, model: Classifier, validation: Split | None, crew: Crew) -> None:
        loss, accuracy = self.mean(done - 1 - self.sampler.position(done - 1)[1], done)
        entry = {"epoch": self.sampler.epochs(done), "step": done, "train_loss": loss, "train_accuracy": accuracy}
        held_out: dict[str, float | None] = {"validation_loss": None, "validation_accuracy": None}
        # Epochs of hard pictures are short: what counts is how often the training split's size is seen.
        before = next((earlier["step"] for earlier in reversed(self.epochs) if earlier["validation_loss"] is not None), 0)
        due = (
            done == self.sampler.steps
            or float(self.sizes[before:done].sum()) >= self.sampler.images * self.recipe.validate_every
        )
        if validation is not None and due:
            crew.follow(model.buffers())  # each process has gathered BatchNorm's statistics from its own pictures
            logits, labels = crew.shared(model.logits, validation.images), validation.labels
            held_out["validation_loss"] = float(F.cross_entropy(logits, labels))
            held_out["validation_accuracy"] = float((logits.argmax(dim=1) == labels).double().mean())
        self.epochs.append({**entry, **held_out})

    def looks(self) -> list[dict[str, Any]]:
        """The epochs after which the validation split was measured."""
        return [entry for entry in self.epochs if entry["validation_accuracy"] is not None]

    def kept(self) -> dict[str, Any]:
        """The entry of the epoch whose weights the run keeps: the best look with patience, else the last."""
        return self.looks()[-1 - self.looks_since_best()] if self.recipe.patience else self.epochs[-1]

    def looks_since_best(self) -> int:
        """How many looks at the validation split ago it was at its best: 0 for the last one."""
        accuracies = [entry["validation_accuracy"] for entry in self.looks()]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0

    def require_finite(self, done: int, model: Classifier) -> None:
        """See that the training still is one, `done` steps in.

        Raises
            TrainingError: a loss of the epoch under way or a weight is not finite; it names the step and its pictures.
        """
        # Both in one question, for which a GPU is waited for once.
        losses, *weights = (tensor.isfinite().all() for tensor in (self.losses[:done], *model.parameters()))
        sound, trained = torch.stack([losses, torch.stack([losses, *weights]).all()]).tolist()
        bad = [] if sound else (~self.losses[:done].isfinite()).nonzero().flatten().tolist()
        if sound and not trained:
            bad = [done - 1]  # the last update was the one: its loss would only show at the next step
        if bad:
            rate, (epoch, place) = self.recipe.learning_rate, self.sampler.position(bad[0])
            size = self.recipe.batch_size
            # Every epoch ends with this check, so the step is of the epoch whose order is still there.
            pictures = self.sampler.order[place * size : (place + 1) * size].tolist()
            some = ", ".join(map(str, pictures[:5])) + (f" and {len(pictures) - 5} more" if len(pictures) > 5 else "")
            raise TrainingError(
                f"the loss is no longer finite since step {bad[0] + 1} (batch {place + 1} of epoch {epoch + 1}: the training pictures "
                f"{some}; learning rate {rate:g}); try a lower one and another --out, such as --set learning_rate={rate / 10:g}"
            )

    def entries(self) -> list[dict[str, Any]]:
        """What history.jsonl holds: a line a step, and after an epoch's last step the epoch's."""
        ends = {entry["step"]: entry for entry in self.epochs}
        entries: list[dict[str, Any]] = []
        accuracies = self.hits / self.sizes
        values = zip(self.losses[: self.steps].tolist(), accuracies[: self.steps].tolist(), strict=True)
        for step, (loss, accuracy) in enumerate(values, 1):
            rate = lr_at(step - 1, self.sampler.steps, self.recipe)
            entries.append({"step": step, "loss": loss, "accuracy": accuracy, "learning_rate": rate})
            if step in ends:
                entries.append(ends[step])
        return entries


class Tracker:
    """Writes scalars for TensorBoard as the epochs end: every step's loss and rate, every look at the validation split."""

    def __init__(self, history: History, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise GinghamError(
                "--track tensorboard needs the package tensorboard; install it with pip install 'gingham[track]'"
            ) from error
        # What a killed training had written after its last checkpoint is written again: hide it.
        self.writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self.history, self.written = history, start

    def end_epoch(self, done: int) -> None:
        history = self.history
        span = slice(self.written, done)
        for step, (loss, hits) in enumerate(
            zip(history.losses[span].tolist(), (history.hits / history.sizes)[span].tolist(), strict=True), self.written + 1
        ):
            self._add("train/loss", loss, step)
            self._add("train/accuracy", hits, step)
            self._add("learning_rate", lr_at(step - 1, history.sampler.steps, history.recipe), step)
        for key in ("loss", "accuracy"):
            if (value := history.epochs[-1][f"validation_{key}"]) is not None:
                self._add(f"validation/{key}", value, done)
        self.written = done
        self.writer.flush()

    def _add(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Display:
    """A tqdm bar on a terminal; elsewhere a line an epoch, and one every ten seconds in between."""

    def __init__(self, history: History, start: int, shown: bool, notes: Sequence[str] = ()) -> None:
        self.history, self.sampler, self.shown = history, history.sampler, shown
        self.live = shown and sys.stderr.isatty()
        self.bar = tqdm(total=self.sampler.steps, initial=start, unit="step", file=sys.stderr, disable=not self.live)
        self.every = 0.2 if self.live else 10.0  # reading a loss back waits for the GPU: five times a second is enough
        self.next = time.monotonic() + self.every
        for note in notes:
            self.warn(note)
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

    def warn(self, line: str) -> None:
        """Show a warning between the other lines."""
        self._print(f"warning: {line}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads along any more, or its disk is full; the training goes on
            if self.live:
                tqdm.write(line, file=sys.stderr)
            elif self.shown:
                print(line, file=sys.stderr, flush=True)
