"""RawDataset: a dataset as read from its files, before it is split."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class Part(NamedTuple):
    """Images of a dataset, uint8 (N, C, H, W), and their labels, int64 (N,), 0 to K-1.

    `files` names the file of each image, if each image has its own file. `groups` names the group of each image, if
    there are groups; a group is never split.
    """

    images: Pixels
    labels: Labels
    files: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    def rows(self, rows: slice) -> "Part":
        """Return the part with a slice of the images."""
        return Part(self.images[rows], self.labels[rows], self.files[rows], self.groups[rows])


class RawDataset(NamedTuple):
    """A dataset as its source has it, before gingham splits it.

    `parts["training"]` has the training images, followed by the `num_validation` images of the source's own validation
    split, and `parts["test"]` the test images; it is absent if the source has no test split.
    """

    parts: dict[str, Part]
    classes: tuple[str, ...]
    num_validation: int = 0
    notes: tuple[str, ...] = ()  # messages for the user who loads it
    grey_bits: int = 16  # how many bits the values of 16-bit grey image files use

    def splits(self) -> dict[str, Part]:
        """Return each split that the source has: train, validation and test."""
        training = self.parts["training"]
        num_train = len(training.labels) - self.num_validation
        splits = {"train": training.rows(slice(num_train))}
        if self.num_validation:
            splits["validation"] = training.rows(slice(num_train, None))
        if "test" in self.parts:
            splits["test"] = self.parts["test"]
        return splits


def raw_from_arrays(arrays: Sequence[Pixels], classes: tuple[str, ...], origin: object) -> RawDataset:
    """Return a RawDataset of training images (N, H, W) or (N, C, H, W), labels (N,), and the same of the test split.

    Raises
        DataError: see `join_splits`.
    """
    images, test_images = (array[:, None] if array.ndim == 3 else array for array in arrays[::2])
    labels, test_labels = (array.astype(np.int64) for array in arrays[1::2])
    return join_splits({"train": Part(images, labels), "test": Part(test_images, test_labels)}, classes, origin)


def join_splits(splits: Mapping[str, Part], classes: tuple[str, ...], origin: object) -> RawDataset:
    """Return a RawDataset of the splits train, validation and test, without files; the last two may be absent.

    `origin` names the dataset in errors.

    Raises
        DataError: a split does not have one label per image, or its images do not have the shape of the training
            images.
    """
    shape = splits["train"].images.shape[1:]
    for name, (images, labels, *_) in splits.items():
        if len(images) != len(labels) or images.shape[1:] != shape:
            raise DataError(
                f"{origin} has {name} images of shape {images.shape} and {len(labels)} labels; allowed: one label for "
                f"each image, and images of the same shape in all splits, here {shape}"
            )
    parts = {**splits}
    training, validation = parts.pop("train"), parts.pop("validation", None)
    if validation is None:
        return RawDataset({"training": training, **parts}, classes)
    images = np.concatenate([training.images, validation.images])
    labels = np.concatenate([training.labels, validation.labels])
    return RawDataset({"training": Part(images, labels), **parts}, classes, len(validation.labels))
