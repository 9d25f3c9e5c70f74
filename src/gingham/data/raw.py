"""RawDataset: a dataset as its files hold it, before it is split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source has it, before gingham cuts any split.

    `images` is uint8 (N, C, H, W) and `labels` int64 (N,), 0 to K-1: the training pictures and, behind them, the last
    `validation`, those of the source's own validation split. `test_images` and `test_labels` are None where it has no test
    split. `files` names the file of each picture, where they have files of their own.
    """

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]
    test_images: Pixels | None = None
    test_labels: Labels | None = None
    validation: int = 0
    files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for whoever loads it


def raw_from_arrays(arrays: Sequence[Pixels], classes: tuple[str, ...]) -> RawDataset:
    """Return grey pictures (N, H, W) and labels (N,), of training and of test, as a Raw."""
    images, labels, test_images, test_labels = arrays
    return RawDataset(images[:, None], labels.astype(np.int64), classes, test_images[:, None], test_labels.astype(np.int64))
