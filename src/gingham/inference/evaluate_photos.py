"""Evaluate a run on a folder of photos, or of images of other things."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gingham.data.image_files import list_images
from gingham.data.splits import Split
from gingham.errors import DataError, require_types
from gingham.evaluation.evaluate import EvaluationResult, compute_result
from gingham.evaluation.metrics import area_under_roc
from gingham.inference.predict import ImagePrediction, predict
from gingham.runs.run import Run


def evaluate_photographs(
    run: Run, folder: str | Path, split: str | None = None
) -> tuple[EvaluationResult, list[ImagePrediction]]:
    """Evaluate a run on a folder of photos, prepared as by `predict`; return the result and the unreadable files.

    The folder has a folder of photos for each class, or is a `.csv` of paths and labels. Class names are matched to the
    model's without regard to case and punctuation ("t-shirt-top" is "T-shirt/top"); classes may be missing. If there
    are train, validation and test folders, `split` selects one of them; without it all photos are used. Photos are not
    part of the dataset's test split, so no use of it is recorded.

        result, unreadable = gingham.evaluate_photographs(gingham.load_packaged(), "photographs")
        result.balanced_accuracy        # the mean over the classes that have photos

    Raises
        DataError: a folder whose name matches no class, no photos, none that can be read, or a `split` of a folder
        without splits.
    """
    require_types("evaluate_photographs", run=(run, Run))
    path = Path(folder)
    entries = list_images(path, training=False, label_from=run.data.get("label_from", "folder")).entries
    if split not in (None, "train") and {entry.split for entry in entries} == {"train"}:
        raise DataError(f"{path} has no splits to choose {split} from; leave split out to use all its photos")
    if split is not None:
        entries = tuple(entry for entry in entries if entry.split == split)
    class_indices = {normalize_class_name(name): k for k, name in enumerate(run.model.classes)}
    indices = [class_indices.get(normalize_class_name(entry.label), -1) for entry in entries]
    if -1 in indices:
        raise DataError(
            f"{path} has the class {entries[indices.index(-1)].label}, which is not a class of the "
            f"model ({', '.join(run.model.classes[:20])}); rename it, or remove it"
        )
    if not entries:
        raise DataError(f"{path} has no photos in the split {split}; leave split out to use all photos")
    predictions = predict(run, [entry.path for entry in entries], keep_steps=False)
    unreadable = [prediction for prediction in predictions if prediction.error is not None]
    if len(unreadable) == len(entries):
        raise DataError(f"{path} has no photo that can be read ({unreadable[0].error}); give other files")
    labels = torch.tensor([k for k, p in zip(indices, predictions, strict=True) if p.error is None])
    probabilities = torch.tensor([list(p.probabilities.values()) for p in predictions if p.probabilities is not None])
    images = torch.from_numpy(np.stack([p.prepared.image for p in predictions if p.prepared is not None]))
    files = tuple(p.image for p in predictions if p.error is None)
    photos = Split("photographs", images, labels, run.model.classes, str(path), "", files=files)
    return compute_result(run, photos, probabilities.clamp(min=1e-30).log()), unreadable


@dataclass(frozen=True)
class NoveltyResult:
    """How well a run recognises images of other things than it was trained on, as shares of `total` images.

    `rejected` are answered as unlike the training images, `unsure` as not sure, and `confident` as one of the classes.
    `auroc` is the probability that the novelty score of such an image is above that of an image of `split`, of which
    `kept` are not rejected.
    """

    split: str
    total: int
    auroc: float
    rejected: float
    unsure: float
    confident: float
    kept: float

    def __str__(self) -> str:
        return (
            f"{self.rejected:.2%} of {self.total:,} other images rejected as unlike the training images, "
            f"{self.unsure:.2%} not sure, {self.confident:.2%} answered with a class\n"
            f"AUROC {self.auroc:.4f}; {self.kept:.2%} of the {'training' if self.split == 'train' else self.split} "
            "images are kept"
        )


def evaluate_novel(run: Run, files: Sequence[Path], split: Split) -> tuple[NoveltyResult, list[ImagePrediction]]:
    """Evaluate a run on images of other things, prepared as by `predict`; return the result and the unreadable files.

    `split` is the validation split, with which they are compared, or the training split if none was held out.

    Raises
        DataError: no image can be read.
    """
    predictions = predict(run, files, keep_steps=False)
    unreadable = [prediction for prediction in predictions if prediction.error is not None]
    readable = [prediction for prediction in predictions if prediction.error is None]
    if not readable:
        error = str(unreadable[0].error)
        raise DataError(f"none of {len(files)} images can be read ({error})" if len(files) > 1 else error)
    inside = run.model.predict(split.images)
    outcomes = Counter("novel" if p.novel else "unsure" if p.unsure else "confident" for p in readable)
    rejected, unsure, confident = (outcomes[name] / len(readable) for name in ("novel", "unsure", "confident"))
    auroc = area_under_roc(inside.novelty, torch.tensor([prediction.novelty for prediction in readable]))
    kept = 1 - float(inside.novel.double().mean())
    return NoveltyResult(split.name, len(readable), auroc, rejected, unsure, confident, kept), unreadable


def normalize_class_name(name: str) -> str:
    """Return a class name without case and punctuation, for matching folder names to classes.

    >>> normalize_class_name("T-shirt/top")
    'tshirttop'
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())
