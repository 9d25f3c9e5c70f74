"""The History: loss and accuracy of every step and every epoch."""

from typing import Any

import torch
import torch.nn.functional as F

from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.distributed import Crew
from gingham.errors import TrainingError
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.training.optimizer import lr_at


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
