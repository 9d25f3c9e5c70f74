"""Distillation: learn from the predictions of trained models."""

import copy
from collections.abc import Sequence

import torch

from gingham.data.splits import Split
from gingham.errors import DataError, GinghamError
from gingham.io import tensors_sha256
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.runs.run import Run


class TeacherEnsemble:
    """Trained models whose predictions another model learns: the mean of their probabilities.

    They get the same augmented images as the model that is trained. With `skip_photos` they are not asked about
    simulated photos, which none of them was trained on.

    Sources: Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); the same view for both
    from Beyer et al., "Knowledge distillation: A good teacher is patient and consistent" (arXiv 2106.05237).
    """

    def __init__(self, models: Sequence[Classifier], temperature: float, skip_photos: bool = False) -> None:
        self.models = [model.eval().requires_grad_(False) for model in models]
        self.temperature = temperature
        self.skip_photos = skip_photos

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return probabilities, float (B, K), for uint8 images (B, C, H, W)."""
        probabilities = [(model(images).float() / self.temperature).softmax(dim=1) for model in self.models]
        return torch.stack(probabilities).mean(dim=0)


def validate_teachers(
    teachers: Sequence[Run], recipe: Recipe, train: Split, validation: Split | None
) -> tuple[str, ...]:
    """Check that runs can be teachers for a recipe on a split, and return the checksums of their weights.

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
    checksums = tuple(tensors_sha256(run.model.state_dict()) for run in teachers)
    if len(set(checksums)) < len(checksums):
        raise GinghamError(f"two of {len(checksums)} teachers have the same weights; name each once")
    return checksums


def create_ensemble(teachers: Sequence[Run], recipe: Recipe, device: torch.device) -> TeacherEnsemble | None:
    """Return the teachers as one ensemble, copied to the device; None without teachers."""
    if not teachers:
        return None
    models = [copy.deepcopy(run.model).to(device) for run in teachers]
    skip_photos = recipe.photo_share > 0 and not all(run.recipe.photo_share for run in teachers)
    return TeacherEnsemble(models, recipe.distillation_temperature, skip_photos)
