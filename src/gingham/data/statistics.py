"""Compute the statistics of a dataset: counts, mean, standard deviation, duplicates."""

from typing import Any

import torch

from gingham.data.image_hashes import hash_images
from gingham.data.splits import DataSplits

BATCH_BYTES = 1 << 24  # of images that are counted at once


def count_duplicates(data: DataSplits) -> dict[str, int]:
    """Return how many images of a dataset are exact copies, byte for byte, whatever their labels.

    `train` counts the training images (validation images included) that equal an earlier training image, `test` the
    same within the test split, and `across` the test images that equal a training image.

        count_duplicates(load_data("fashion-mnist"))   # {'train': 0, 'test': 0, 'across': 0}
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = [image_hash for part in parts for image_hash in hash_images(part.images).tolist()]
    test = hash_images(data.test.images).tolist()
    unique = set(train)
    return {
        "train": len(train) - len(unique),
        "test": len(test) - len(set(test)),
        "across": sum(image in unique for image in test),
    }


def describe(data: DataSplits) -> dict[str, Any]:
    """Return the statistics of a dataset as JSON values: what `gingham show --json` prints, except for the figure.

    `images` and `per_class` count training and test images together; `splits`, `per_class_train` and `per_class_test`
    count them separately. `mean` and `std` are those of the training images' pixels, from 0 to 1: a number for grey, a
    list by channel for colour.
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = {name: sum(part.counts()[name] for part in parts) for name in data.classes}
    test = data.test.counts()
    # Computed from the counts of the 256 values: exact, and without a copy of the images, which may be on disk.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([_count_values(part.images) for part in parts]).sum(dim=0)
    shares = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = (shares * values).sum(dim=1)
    std = ((shares * values**2).sum(dim=1) - mean**2).clamp(min=0).sqrt()
    grey = len(mean) == 1
    return {
        "name": data.name,
        "source": data.source,
        "images": sum(train.values()) + len(data.test),
        "splits": {"train": sum(train.values()), "test": len(data.test)},
        "classes": list(data.classes),
        "shape": list(data.train.images.shape[1:]),
        "per_class": {name: train[name] + test[name] for name in data.classes},
        "per_class_train": train,
        "per_class_test": test,
        "mean": float(mean) if grey else mean.tolist(),
        "std": float(std) if grey else std.tolist(),
        "duplicates": count_duplicates(data),
        "fingerprint": data.fingerprint,
    }


def _count_values(images: torch.Tensor) -> torch.Tensor:
    """Return how often each value occurs in each channel of uint8 images (N, C, H, W), int64 (C, 256)."""
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for batch in torch.split(images, max(1, BATCH_BYTES // images[0].nbytes)):
        counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in batch.transpose(0, 1)])
    return counts


def median_border(images: torch.Tensor) -> float:
    """Return the median value at the borders of uint8 images (N, C, H, W), from about 1,000 of them.

    Photos are prepared with the same background for prediction.
    """
    some = images[:: max(1, len(images) // 1000)]
    edges = (some[..., 0, :], some[..., -1, :], some[..., 0], some[..., -1])
    return float(torch.cat([edge.flatten() for edge in edges]).median())


def object_share(images: torch.Tensor, background: float) -> float | None:
    """Return the length of the objects in grey uint8 images (N, 1, H, W), as a share of the image, or None if unknown.

    It is the median over about 1,000 images. An object is what differs by more than 64 from `background`, which is the
    `median_border`, and must be dark or light.
    """
    if images.shape[1] != 1 or 64 <= background <= 191:
        return None
    some = (images[:: max(1, len(images) // 1000), 0].float() - background).abs() > 64
    spans = []
    for occupied in (some.any(dim=1), some.any(dim=2)):  # columns (N, W), rows (N, H)
        positions = torch.arange(occupied.shape[1], device=images.device)
        first = torch.where(occupied, positions, len(positions)).amin(dim=1)
        last = torch.where(occupied, positions, -1).amax(dim=1)
        spans.append((last + 1 - first).clamp(min=0) / max(images.shape[2:]))
    return float(torch.maximum(*spans).median()) or None
