"""Pretrained weights and photos for the tests: made on the spot, or from packages that contain real ones."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import gingham

TINY = "test_efficientnet"  # a network of timm for tests, with 0.4 million weights


def randomize_batchnorm(network: nn.Module, seed: int = 0) -> None:
    """Give each BatchNorm of a network random statistics, scales and shifts, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2)):
                tensor.uniform_(low, high, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.uniform_(-1, 1, generator=generator)


def write_weights(path: Path, name: str = TINY) -> Path:
    """Write the weights of a timm network with its classifier of ImageNet's classes, as timm publishes them."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name)
    randomize_batchnorm(network)
    save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, path)
    return path


def write_photos(folder: Path, count: int = 40, size: tuple[int, int] = (96, 72), suffix: str = "jpg") -> Path:
    """Write crops of two photos, of a temple and of a flower, in one folder for each, and return the folder."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    width, height = size
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            top = random.integers(pixels.shape[0] - height)
            left = random.integers(pixels.shape[1] - width)
            Image.fromarray(pixels[top : top + height, left : left + width]).save(folder / name / f"{k}.{suffix}")
    return folder


def tiny_recipe(name: str = "frozen", network: str = TINY, **changes: object) -> gingham.Recipe:
    """Return the recipe `frozen` or `finetune` for a tiny network of timm, images of 32x32 pixels and few epochs."""
    settings = {"epochs": 3, "batch_size": 16, "size": 32, "validation_images": 12}
    if name == "finetune":
        settings |= {"crop_size": 32}
    return gingham.RECIPES[name].replace(network=f"timm/{network}", **{**settings, **changes})
