"""History: the loss and accuracy of every step and every epoch."""

import math
from typing import Any

import torch

from gingham.data.augment_photos import num_outliers
from gingham.data.sampler import Sampler
from gingham.errors import TrainingError, list_first
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.training.optimizer import lr_at


class History:
    """The loss and the number of correct predictions of each step, and the results of each epoch.

    The values of the steps stay on the device until they are read.
    """

    def __init__(self, recipe: Recipe, sampler: Sampler, device: torch.device) -> None:
        self.recipe, self.sampler = recipe, sampler
        self.losses, self.correct = torch.zeros(2, sampler.steps, device=device)
        batch_size, positions = recipe.batch_size, map(sampler.position, range(sampler.steps))
        sizes = [min(batch_size, sampler.epoch_size(epoch) - k * batch_size) for epoch, k in positions]
        self.sizes = torch.tensor(sizes, dtype=torch.float32, device=device)
        # Outliers have no class, so they are never predicted correctly.
        outliers = torch.tensor([num_outliers(size, recipe) for size in sizes], device=device)
        self.num_labelled = (self.sizes - outliers).clamp(min=1)
        self.epochs: list[dict[str, Any]] = []

    def record(self, step: int, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Record a step, counted from 0: its mean loss and its number of correct predictions, both scalars."""
        self.losses[step] = loss
        self.correct[step] = correct

    def mean(self, start: int, stop: int) -> tuple[float, float]:
        """Return the mean loss and the accuracy over the images of the steps from `start` up to `stop`.

        Outliers count for the loss only.
        """
        span = slice(start, stop)
        images, labelled = self.sizes[span].sum(), self.num_labelled[span].sum()
        # Weighted by shares, so that the sum cannot overflow: a loss may be as large as the largest float.
        loss = float((self.losses[span] * (self.sizes[span] / images)).sum())
        return loss, float(self.correct[span].sum() / labelled)

    def end_epoch(self, done: int, validation: tuple[float, float] | None, sample: tuple[float, float] | None) -> None:
        """Add the entry of the epoch that ends after `done` steps.

        `validation` and `sample` are the loss and accuracy on the validation split and on a fixed sample of the
        training split. They are None if the model was not evaluated.
        """
        train = self.mean(done - 1 - self.sampler.position(done - 1)[1], done)
        entry: dict[str, Any] = {"epoch": self.sampler.epochs(done), "step": done}
        for name, result in (("train", train), ("validation", validation), ("sample", sample)):
            entry[f"{name}_loss"], entry[f"{name}_accuracy"] = result or (None, None)
        self.epochs.append(entry)

    def evaluation_due(self, done: int) -> bool:
        """Return whether an evaluation is due after `done` steps, according to the recipe's `validate_every`.

        Epochs of hard images are short, so `validate_every` counts images seen, in sizes of the training split.
        """
        last_evaluation = next((entry["step"] for entry in reversed(self.evaluations())), 0)
        images_since = float(self.sizes[last_evaluation:done].sum())
        return done == self.sampler.steps or images_since >= self.sampler.num_images * self.recipe.validate_every

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the entries of the epochs that ended with an evaluation on the validation split."""
        return [entry for entry in self.epochs if entry["validation_accuracy"] is not None]

    def evaluations_since_best(self) -> int:
        """Return how many evaluations ago the validation accuracy was highest; 0 means in the last one."""
        accuracies = [entry["validation_accuracy"] for entry in self.evaluations()]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0

    def chosen_epoch(self) -> dict[str, Any]:
        """Return the entry of the epoch whose weights the run keeps: with patience the best one, otherwise the last."""
        return self.evaluations()[-1 - self.evaluations_since_best()] if self.recipe.patience else self.epochs[-1]

    def require_finite(self, done: int, model: Classifier) -> None:
        """Check that losses and weights are finite after `done` steps.

        Raises
            TrainingError: a loss of this epoch or a weight is not finite; the message has the step and its images.
        """
        # One tensor for both, so that the CPU waits for the GPU only once.
        losses, *weights = (tensor.isfinite().all() for tensor in (self.losses[:done], *model.parameters()))
        losses_finite, all_finite = torch.stack([losses, torch.stack([losses, *weights]).all()]).tolist()
        if all_finite:
            return
        # If all losses are finite, the last update was the cause, and only the next loss would show it.
        bad_step = done - 1 if losses_finite else int((~self.losses[:done].isfinite()).nonzero()[0])
        epoch, epoch_step = self.sampler.position(bad_step)
        # This check runs at the end of every epoch, so the sampler still has the order of the step's epoch.
        images = list_first([str(index) for index in self.sampler.batch(epoch_step).tolist()], 5)
        rate = self.recipe.learning_rate
        raise TrainingError(
            f"the loss has not been finite since step {bad_step + 1} (batch {epoch_step + 1} of epoch {epoch + 1}, the "
            f"training images {images}; learning rate {rate:g}); try a lower learning rate, such as "
            f"learning_rate={rate / 10:g}, in another folder (--set learning_rate={rate / 10:g} --out FOLDER)"
        )

    def require_finite_validation(self, done: int, loss: float) -> None:
        """Raise a TrainingError if the validation loss after `done` steps is not finite."""
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss is not finite after step {done}, although the training losses are; try a lower "
                f"learning rate in another folder (--set learning_rate={self.recipe.learning_rate / 10:g} --out FOLDER)"
            )

    def entries(self, done: int) -> list[dict[str, Any]]:
        """Return the lines of `history.jsonl`: an entry for each of `done` steps, and one at the end of each epoch."""
        ends = {entry["step"]: entry for entry in self.epochs}
        entries: list[dict[str, Any]] = []
        accuracies = self.correct / self.num_labelled
        values = zip(self.losses[:done].tolist(), accuracies[:done].tolist(), strict=True)
        for step, (loss, accuracy) in enumerate(values, 1):
            rate = lr_at(step - 1, self.sampler.steps, self.recipe)
            entries.append({"step": step, "loss": loss, "accuracy": accuracy, "learning_rate": rate})
            if step in ends:
                entries.append(ends[step])
        return entries
