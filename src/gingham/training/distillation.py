"""Distillation: learn from the predictions of trained models."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from gingham.data.splits import Split
from gingham.device import autocast
from gingham.errors import DataError, GinghamError
from gingham.io import tensors_sha256
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.runs.run import Run
from gingham.training.batches import Batch
from gingham.training.loss import CrossEntropyLoss


class TeacherEnsemble(nn.Module):
    """Trained models whose predictions another model learns: the mean of their probabilities.

    They get the same augmented images as the model that is trained.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); the same view for both
    from Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (arXiv 2106.05237).
    """

    def __init__(self, models: Sequence[Classifier], temperature: float) -> None:
        super().__init__()
        self.models = nn.ModuleList(copy.deepcopy(model) for model in models).eval().requires_grad_(False)
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, float (B, K), for uint8 images (B, C, H, W)."""
        probabilities = [(model(images).float() / self.temperature).softmax(dim=1) for model in self.models]
        return torch.stack(probabilities).mean(dim=0)


class DistillationLoss:
    """The loss to the labels, a share of it (`weight`) replaced by the divergence from the teachers' predictions.

    The divergence is multiplied by the squared temperature, which keeps its gradient at the scale of the labels'.
    """

    def __init__(self, label_loss: CrossEntropyLoss, teachers: TeacherEnsemble, weight: float, precision: str) -> None:
        self.label_loss, self.teachers, self.weight, self.precision = label_loss, teachers, weight, precision

    def __call__(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean over the batch, a scalar."""
        temperature = self.teachers.temperature
        with autocast(self.precision, batch.images.device):
            teacher_probabilities: torch.Tensor = self.teachers(batch.images)
        log_probabilities = (logits / temperature).log_softmax(dim=1)
        divergence = F.kl_div(log_probabilities, teacher_probabilities, reduction="none").sum(dim=1) * temperature**2
        weight = self.weight * (1.0 if batch.distill_mask is None else batch.distill_mask)
        return ((1 - weight) * self.label_loss.per_image(logits, batch) + weight * divergence).mean()


def validate_teachers(teachers: Sequence[Run], recipe: Recipe, train: Split, validation: Split | None) -> None:
    """Check that runs can be teachers for a recipe on a split.

    Raises
        GinghamError: the recipe does not listen to teachers, or two of them are the same.
        DataError: one was trained on other pictures or classes, and so may know what is held out.
    """
    if teachers and not recipe.distillation_weight:
        raise GinghamError(
            "distillation_weight is 0, so teachers would not be heard; set it above 0, such as 0.9, or name no teacher"
        )
    held_out = len(validation) if validation else 0
    for run in teachers:
        name = run.folder or f"{run.recipe.name} with seed {run.recipe.seed}"
        if run.model.classes != train.classes or run.model.input_shape != train.image_shape:
            raise DataError(
                f"the teacher {name} answers for pictures of {run.model.input_shape} in {len(run.model.classes)} "
                f"classes, and these are of {train.image_shape} in {len(train.classes)}; choose teachers that were "
                "trained on the same data"
            )
        if run.data.get("fingerprint") != train.fingerprint or run.data.get("train_images") != len(train):
            raise DataError(
                f"the teacher {name} was trained on {run.data.get('train_images')} pictures of {run.data.get('name')}, "
                f"and not on these {len(train)} of {train.dataset} with {held_out} held out: it may know what is held "
                "out here; train it on the same split"
            )
    if len(set(teacher_checksums(teachers))) < len(teachers):
        raise GinghamError(f"two of {len(teachers)} teachers have the same weights; name each once")


def teacher_checksums(teachers: Sequence[Run]) -> list[str]:
    """Return the SHA-256 sums of the weights of runs."""
    return [tensors_sha256(run.model.state_dict()) for run in teachers]
