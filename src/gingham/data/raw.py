"""RawDataset: a dataset as read from its files, before it is split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RawDataset:
    """A dataset as its source has it, before gingham splits it.

    `images` is uint8 (N, C, H, W) and `labels` int64 (N,), 0 to K-1: the training images, followed by the
    `num_validation` images of the source's own validation split. `test_images` and `test_labels` are None if the source
    has no test split. `files` names the file of each image, if each image has its own file.
    """

    images: Pixels
    labels: Labels
    classes: tuple[str, ...]
    test_images: Pixels | None = None
    test_labels: Labels | None = None
    num_validation: int = 0
    files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # messages for the user who loads it


def raw_from_arrays(arrays: Sequence[Pixels], classes: tuple[str, ...]) -> RawDataset:
    """Return a RawDataset of four arrays: training images (N, H, W) and labels (N,), then those of the test set."""
    images, labels, test_images, test_labels = arrays
    return RawDataset(
        images[:, None], labels.astype(np.int64), classes, test_images[:, None], test_labels.astype(np.int64)
    )
