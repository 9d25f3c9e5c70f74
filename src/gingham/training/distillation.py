"""Knowledge distillation: learn from the predictions of trained models."""

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
from gingham.training.loss import CrossEntropyLoss, Loss


class TeacherEnsemble(nn.Module):
    """Trained models, the mean of whose probabilities another model learns to predict.

    The teachers get the same augmented images as the model that is trained.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531). That both get the same
    augmented images is from Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (arXiv
    2106.05237).
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


class DistillationLoss(Loss):
    """(1 - weight) times the label loss plus `weight` times the KL divergence from the teachers' predictions.

    The divergence is multiplied by the squared temperature, which keeps its gradient at the scale of the label loss.
    """

    def __init__(self, label_loss: CrossEntropyLoss, teachers: TeacherEnsemble, weight: float, precision: str) -> None:
        self.label_loss, self.teachers, self.weight, self.precision = label_loss, teachers, weight, precision

    def per_image(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of each image, float (B,)."""
        temperature = self.teachers.temperature
        with autocast(self.precision, batch.images.device):
            teacher_probabilities: torch.Tensor = self.teachers(batch.images)
        log_probabilities = (logits / temperature).log_softmax(dim=1)
        divergence = F.kl_div(log_probabilities, teacher_probabilities, reduction="none").sum(dim=1) * temperature**2
        weight = self.weight * (1.0 if batch.distill_mask is None else batch.distill_mask)
        return (1 - weight) * self.label_loss.per_image(logits, batch) + weight * divergence


def validate_teachers(teachers: Sequence[Run], recipe: Recipe, train: Split, validation: Split | None) -> None:
    """Check that runs can be teachers for a recipe on a split.

    Raises
        GinghamError: the recipe's `distillation_weight` is 0, or two teachers have the same weights.
        DataError: a teacher was trained on other images or classes, perhaps on images that are held out here.
    """
    if teachers and not recipe.distillation_weight:
        raise GinghamError(
            "distillation_weight is 0, so teachers have no effect; set it above 0, such as 0.9, or give no teachers"
        )
    held_out = len(validation) if validation else 0
    for run in teachers:
        name = run.folder or f"{run.recipe.name} with seed {run.recipe.seed}"
        if run.model.classes != train.classes or run.model.input_shape != train.image_shape:
            raise DataError(
                f"the teacher {name} takes images of {run.model.input_shape} in {len(run.model.classes)} classes, but "
                f"these images are {train.image_shape} in {len(train.classes)} classes; choose teachers that were "
                "trained on the same data"
            )
        if run.data.get("fingerprint") != train.fingerprint or run.data.get("train_images") != len(train):
            raise DataError(
                f"the teacher {name} was trained on {run.data.get('train_images')} images of {run.data.get('name')}, "
                f"not on these {len(train)} of {train.dataset} with {held_out} held out, so it may have been trained "
                "on held-out images; train it on the same split"
            )
    if len(set(teacher_checksums(teachers))) < len(teachers):
        raise GinghamError(f"two of {len(teachers)} teachers have the same weights; give each teacher once")


def teacher_checksums(teachers: Sequence[Run]) -> list[str]:
    """Return the SHA-256 checksums of the weights of runs."""
    return [tensors_sha256(run.model.state_dict()) for run in teachers]
