"""Predictions cached in a run's folder, so that runs can be compared without computing them again."""

from collections.abc import Mapping

import torch

from gingham.errors import RunError
from gingham.io import read_tensors, sha256, write_tensors
from gingham.runs.run import WEIGHTS_FILE, Run


def save_predictions(run: Run, split: str, fingerprint: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Save a run's predictions in its folder: the top class of each image, its confidence and the true class."""
    assert run.folder is not None
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    tensors = {"predicted": predicted.int(), "confidence": confidence.float(), "labels": labels.cpu().int()}
    metadata = {"fingerprint": fingerprint, "weights": sha256(run.folder / WEIGHTS_FILE)}
    write_tensors(run.folder / f"predictions-{split}.safetensors", tensors, metadata)


def load_predictions(run: Run, split: str, fingerprint: str) -> dict[str, torch.Tensor] | None:
    """Return what `save_predictions` saved: `predicted` and `labels`, int64 (N,), and `confidence`, float32 (N,).

    None if there is no file, or if it is damaged or belongs to other data or other weights.
    """
    if run.folder is None or not (path := run.folder / f"predictions-{split}.safetensors").exists():
        return None
    try:
        tensors, metadata = read_tensors(path)
    except RunError:
        return None
    is_current = metadata == {"fingerprint": fingerprint, "weights": sha256(run.folder / WEIGHTS_FILE)}
    if not is_current or not _are_predictions(tensors, len(run.model.classes)):
        return None
    return {name: tensor if name == "confidence" else tensor.long() for name, tensor in tensors.items()}


def _are_predictions(tensors: Mapping[str, torch.Tensor], classes: int) -> bool:
    """Return whether tensors are valid predictions: the file has no checksum that shows damage."""
    dtypes = {"predicted": torch.int32, "confidence": torch.float32, "labels": torch.int32}
    return (
        {name: tensor.dtype for name, tensor in tensors.items()} == dtypes
        and {tensor.shape for tensor in tensors.values()} == {torch.Size([tensors["labels"].numel()])}
        and all(
            bool(((tensor >= 0) & (tensor <= (1.001 if name == "confidence" else classes - 1))).all())
            for name, tensor in tensors.items()
        )
    )
