"""The History: loss and accuracy of every step and every epoch."""

from typing import Any

import torch
import torch.nn.functional as F

from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.distributed import DistributedContext
from gingham.errors import TrainingError
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.training.optimizer import lr_at


class History:
    """Loss and number of correct predictions of each step, kept on the device until they are read, and the results of each epoch."""

    def __init__(self, recipe: Recipe, sampler: Sampler, device: torch.device) -> None:
        self.recipe, self.sampler = recipe, sampler
        self.losses, self.correct = torch.zeros(2, sampler.steps, device=device)
        positions = (sampler.position(step) for step in range(sampler.steps))
        sizes = [
            min(recipe.batch_size, sampler.epoch_size(epoch) - epoch_step * recipe.batch_size)
            for epoch, epoch_step in positions
        ]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)
        self.epochs: list[dict[str, Any]] = []
        self.steps = sampler.steps  # fewer once the training stops early

    def record(self, step: int, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Record a step, counted from 0: its mean loss and its number of correct predictions, both scalars."""
        self.losses[step] = loss
        self.correct[step] = correct

    def mean(self, start: int, stop: int) -> tuple[float, float]:
        """Return the mean loss and the accuracy over the images of the steps from `start` up to `stop`."""
        span = slice(start, stop)
        images = self.sizes[span].sum()
        # Weighted by shares, which cannot overflow: a loss may be as large as a float can hold.
        return float((self.losses[span] * (self.sizes[span] / images)).sum()), float(self.correct[span].sum() / images)

    def end_epoch(self, done: int, model: Classifier, validation: Split | None, context: DistributedContext) -> None:
        """Add the entry of the epoch that ends after `done` steps; evaluate the model on the validation split if that is due."""
        loss, accuracy = self.mean(done - 1 - self.sampler.position(done - 1)[1], done)
        entry = {"epoch": self.sampler.epochs(done), "step": done, "train_loss": loss, "train_accuracy": accuracy}
        held_out: dict[str, float | None] = {"validation_loss": None, "validation_accuracy": None}
        # Epochs of hard images are short, so what counts is the number of images seen, in sizes of the training split.
        last_evaluation = next(
            (before["step"] for before in reversed(self.epochs) if before["validation_loss"] is not None), 0
        )
        due = (
            done == self.sampler.steps
            or float(self.sizes[last_evaluation:done].sum()) >= self.sampler.num_images * self.recipe.validate_every
        )
        if validation is not None and due:
            context.broadcast(model.buffers())  # each process has BatchNorm statistics of its own shards
            logits, labels = context.map_sharded(model.logits, validation.images), validation.labels
            held_out["validation_loss"] = float(F.cross_entropy(logits, labels))
            held_out["validation_accuracy"] = float((logits.argmax(dim=1) == labels).double().mean())
        self.epochs.append({**entry, **held_out})

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the entries of the epochs after which the model was evaluated on the validation split."""
        return [entry for entry in self.epochs if entry["validation_accuracy"] is not None]

    def chosen_epoch(self) -> dict[str, Any]:
        """Return the entry of the epoch whose weights the run keeps: that of the best evaluation with patience, else the last."""
        return self.evaluations()[-1 - self.evaluations_since_best()] if self.recipe.patience else self.epochs[-1]

    def evaluations_since_best(self) -> int:
        """Return how many evaluations ago the validation accuracy was highest: 0 for the last one."""
        accuracies = [entry["validation_accuracy"] for entry in self.evaluations()]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0

    def require_finite(self, done: int, model: Classifier) -> None:
        """Check that losses and weights are finite after `done` steps.

        Raises
            TrainingError: a loss of this epoch or a weight is not finite; the message names the step and its images.
        """
        # One tensor for both, so that the GPU is waited for only once.
        losses, *weights = (tensor.isfinite().all() for tensor in (self.losses[:done], *model.parameters()))
        losses_finite, all_finite = torch.stack([losses, torch.stack([losses, *weights]).all()]).tolist()
        bad = [] if losses_finite else (~self.losses[:done].isfinite()).nonzero().flatten().tolist()
        if losses_finite and not all_finite:
            bad = [done - 1]  # the last update: its loss would only show at the next step
        if bad:
            rate, (epoch, epoch_step) = self.recipe.learning_rate, self.sampler.position(bad[0])
            size = self.recipe.batch_size
            # Every epoch ends with this check, so the step belongs to the epoch whose order the sampler still has.
            images = self.sampler.order[epoch_step * size : (epoch_step + 1) * size].tolist()
            some = ", ".join(map(str, images[:5])) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
            raise TrainingError(
                f"the loss is no longer finite since step {bad[0] + 1} (batch {epoch_step + 1} of epoch {epoch + 1}: "
                f"the training pictures {some}; learning rate {rate:g}); try a lower one and another --out, such as "
                f"--set learning_rate={rate / 10:g}"
            )

    def entries(self) -> list[dict[str, Any]]:
        """Return the lines of `history.jsonl`: an entry for each step, and after the last step of an epoch one for the epoch."""
        ends = {entry["step"]: entry for entry in self.epochs}
        entries: list[dict[str, Any]] = []
        accuracies = self.correct / self.sizes
        values = zip(self.losses[: self.steps].tolist(), accuracies[: self.steps].tolist(), strict=True)
        for step, (loss, accuracy) in enumerate(values, 1):
            rate = lr_at(step - 1, self.sampler.steps, self.recipe)
            entries.append({"step": step, "loss": loss, "accuracy": accuracy, "learning_rate": rate})
            if step in ends:
                entries.append(ends[step])
        return entries
