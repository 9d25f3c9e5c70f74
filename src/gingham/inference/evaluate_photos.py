"""Evaluate a run on a folder of photos."""

from pathlib import Path

import numpy as np
import torch

from gingham.data.image_files import list_images
from gingham.data.splits import Split
from gingham.errors import DataError
from gingham.evaluation.evaluate import EvaluationResult, compute_result
from gingham.inference.predict import ImagePrediction, mean_probabilities, preprocess_all
from gingham.inference.preprocess import PreparedPhoto
from gingham.runs.run import Run


def evaluate_photographs(
    run: Run, folder: str | Path, split: str | None = None
) -> tuple[EvaluationResult, list[ImagePrediction]]:
    """Return how a run does on a folder of photographs, each prepared as `predict` does, and the files that cannot be read.

    The folder has a folder of photographs for each class, or is a `.csv` of paths and labels. Their names are matched to
    the model's classes without regard to case and punctuation ("t-shirt-top" is "T-shirt/top"); classes may be missing. With
    train, validation and test folders `split` says which one; all photographs are taken without it, or without such folders. Nothing is trained, so
    nothing is opened: this is not the dataset's test split.

        report, unreadable = gingham.evaluate_photographs(gingham.load_packaged(), "photographs")
        report.balanced_accuracy        # the mean over the classes that are there

    Raises
        DataError: a folder that no class is called like, no photographs, or none that can be read.
    """
    place = Path(folder)
    entries = list_images(place, training=False).entries
    if split is not None and {entry.split for entry in entries} != {"train"}:
        entries = tuple(entry for entry in entries if entry.split == split)
    known = {normalize_class_name(name): k for k, name in enumerate(run.model.classes)}
    for entry in entries:
        if normalize_class_name(entry.label) not in known:
            raise DataError(
                f"{place} has the class {entry.label}, which is none of the model's ({', '.join(run.model.classes[:20])}); rename it, "
                "or take it out"
            )
    if not entries:
        raise DataError(f"{place} holds no photographs of the split {split}; leave --split out to take all there are")
    results = preprocess_all(run, [entry.file for entry in entries], "auto", steps=False)
    read = [(entry, result) for entry, result in zip(entries, results, strict=True) if isinstance(result, PreparedPhoto)]
    bad = [ImagePrediction(str(entry.file), error=str(result)) for entry, result in zip(entries, results, strict=True)
           if not isinstance(result, PreparedPhoto)]  # fmt: skip
    if not read:
        raise DataError(f"{place} holds no picture that can be read ({bad[0].error}); give photographs")
    labels = torch.tensor([known[normalize_class_name(entry.label)] for entry, _ in read])
    pictures = torch.from_numpy(np.stack([result.image for _, result in read]))
    files = tuple(str(entry.file) for entry, _ in read)
    photographs = Split("photographs", pictures, labels, run.model.classes, str(place), "", files=files)
    logits = mean_probabilities(run.model, [result for _, result in read]).clamp(min=1e-30).log()
    temperature, threshold = float(run.model.temperature), float(run.model.threshold)
    return compute_result(logits, photographs, list(run.test_openings), temperature, threshold), bad


def normalize_class_name(name: str) -> str:
    """Return a class's name as folders are matched to it, without case and punctuation.

    >>> normalize_class_name("T-shirt/top")
    'tshirttop'
    """
    return "".join(letter for letter in name.casefold() if letter.isalnum())
