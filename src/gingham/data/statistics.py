"""Describe a dataset: counts, mean, standard deviation, duplicates."""

from typing import Any

import torch

from gingham.data.splits import DataSplits


def count_duplicates(data: DataSplits) -> dict[str, int]:
    """Return how many pictures of a dataset are exact copies, byte by byte, labels aside.

    `train` counts the training pictures (held-out ones included) that an earlier training picture equals, `test` the
    same within the test split, and `across` the test pictures that some training picture equals.

        count_duplicates(load_data("fashion-mnist"))   # {'train': 0, 'test': 0, 'across': 0}
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = [picture.tobytes() for part in parts for picture in part.images.numpy()]
    test = [picture.tobytes() for picture in data.test.images.numpy()]
    seen = set(train)
    return {
        "train": len(train) - len(seen),
        "test": len(test) - len(set(test)),
        "across": sum(picture in seen for picture in test),
    }


def describe(data: DataSplits) -> dict[str, Any]:
    """Return the facts of a dataset as JSON values: what `gingham show --json` prints, but for the figure.

    `images` and `per_class` count training and test pictures together, `splits` and `per_class_train`/`_test` apart.
    `mean` and `std` are of the training pictures' pixels from 0 to 1, a number for grey, a list by channel for colour.
    """
    parts = [data.train] + ([data.validation] if data.validation else [])
    train = {name: sum(part.counts()[name] for part in parts) for name in data.classes}
    test = data.test.counts()
    pixels = torch.cat([part.images for part in parts]).transpose(0, 1).flatten(1)  # (C, N H W)
    # From a count of each of the 256 values: exact, and without a float copy of every picture.
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in pixels]).double() / pixels.shape[1]
    mean = (counts * values).sum(dim=1)
    std = ((counts * values**2).sum(dim=1) - mean**2).clamp(min=0).sqrt()
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
