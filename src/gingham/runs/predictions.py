"""Cache predictions in a run's folder, so that runs can be compared without computing them again."""

import torch

from gingham.data.splits import Split
from gingham.errors import RunError
from gingham.io import read_tensors, sha256, write_tensors
from gingham.runs.run import WEIGHTS_FILE, Run


def save_predictions(run: Run, split: Split, logits: torch.Tensor) -> None:
    """Save a run's predictions in its folder: the top class of each image, its confidence and the true class."""
    assert run.folder is not None
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    tensors = {"predicted": predicted.int(), "confidence": confidence.float(), "labels": split.labels.cpu().int()}
    metadata = {"fingerprint": split.fingerprint, "weights": sha256(run.folder / WEIGHTS_FILE)}
    write_tensors(run.folder / f"predictions-{split.name}.safetensors", tensors, metadata)


def load_predictions(run: Run, split: Split) -> torch.Tensor | None:
    """Return the top class of each image of a split, int64 (N,), as `save_predictions` saved it.

    None if there is no file, or if it is damaged or belongs to other images or other weights.
    """
    if run.folder is None:
        return None
    try:
        tensors, metadata = read_tensors(run.folder / f"predictions-{split.name}.safetensors")
        predicted, labels = tensors["predicted"], tensors["labels"]
    except (RunError, KeyError):
        return None
    is_current = metadata == {"fingerprint": split.fingerprint, "weights": sha256(run.folder / WEIGHTS_FILE)}
    # The file has no checksum, so its form is checked.
    has_form = predicted.dtype == labels.dtype == torch.int32 and predicted.shape == labels.shape
    if not is_current or not has_form or not torch.equal(labels, split.labels.cpu().int()):
        return None
    return predicted.long() if bool(((predicted >= 0) & (predicted < len(split.classes))).all()) else None
