"""RawDataset: a dataset as read from its files, before it is split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError

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

    def splits(self) -> dict[str, tuple[Pixels, Labels, tuple[str, ...]]]:
        """Return the images, labels and files of each split that the source has: train, validation and test."""
        end = len(self.labels) - self.num_validation
        splits = {"train": (self.images[:end], self.labels[:end], self.files[:end])}
        if self.num_validation:
            splits["validation"] = self.images[end:], self.labels[end:], self.files[end:]
        if self.test_images is not None and self.test_labels is not None:
            splits["test"] = self.test_images, self.test_labels, self.test_files
        return splits


def raw_from_arrays(arrays: Sequence[Pixels], classes: tuple[str, ...], origin: object) -> RawDataset:
    """Return a RawDataset of training images (N, H, W) or (N, C, H, W), labels (N,), and the same of the test set.

    Raises
        DataError: see `join_splits`.
    """
    images, test_images = (array[:, None] if array.ndim == 3 else array for array in arrays[::2])
    labels, test_labels = (array.astype(np.int64) for array in arrays[1::2])
    return join_splits({"train": (images, labels), "test": (test_images, test_labels)}, classes, origin)


def join_splits(splits: Mapping[str, tuple[Pixels, Labels]], classes: tuple[str, ...], origin: object) -> RawDataset:
    """Return a RawDataset of the images (N, C, H, W) and labels (N,) of the splits train, validation and test.

    Validation and test may be absent. `origin` names the dataset in errors.

    Raises
        DataError: a split has not as many labels as images, or images of another shape than the training images.
    """
    shape = splits["train"][0].shape[1:]
    for name, (images, labels) in splits.items():
        if len(images) != len(labels) or images.shape[1:] != shape:
            raise DataError(
                f"{origin} has {name} images of the shape {images.shape} and {len(labels)} labels; allowed: a label "
                f"for each image, and images of one shape in all splits, here {shape}"
            )
    parts = [splits[name] for name in ("train", "validation") if name in splits]
    images, labels = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    test_images, test_labels = splits.get("test", (None, None))
    return RawDataset(images, labels, classes, test_images, test_labels, len(labels) - len(parts[0][1]))
