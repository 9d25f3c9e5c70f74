"""Random draws, and the geometry of batches of layers, float (N, 2, H, W): brightness and coverage, both 0 to 1."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_COVERAGE = 0.5  # pixels above it belong to the object


@dataclass(frozen=True)
class RandomDraws:
    """Draws random numbers for `count` images on the CPU, so that they are the same for every device.

    With `dims`, numbers have that many more dimensions of size 1, to broadcast over pixels.
    """

    count: int
    generator: torch.Generator
    device: torch.device

    def uniform(self, low: float, high: float, dims: int = 0) -> Tensor:
        """Return uniform numbers, float (N,) or (N, 1, ...)."""
        numbers = (low + (high - low) * torch.rand(self.count, generator=self.generator)).to(self.device)
        return numbers.view(-1, *[1] * dims)

    def chance(self, share: float | Tensor, dims: int = 0) -> Tensor:
        """Return bool (N,) or (N, 1, ...), True with probability `share`."""
        return self.uniform(0, 1, dims) < share

    def noise(self, size: Sequence[int], cells: Sequence[int]) -> Tensor:
        """Return smooth noise of about unit variance, float (N, 1, H, W), interpolated from a grid of `cells`."""
        coarse = torch.randn(self.count, 1, *cells, generator=self.generator).to(self.device)
        return F.interpolate(coarse, tuple(size), mode="bicubic", align_corners=True)


def warp(layers: Tensor, matrix: Tensor, offset: Tensor | None = None, bend: Tensor | None = None) -> Tensor:
    """Warp layers by matrices (N, 2, 2), offsets (N, 2) and a field of offsets (N, H, W, 2).

    They map output to input coordinates, both from -1 to 1.
    """
    if not len(layers):  # affine_grid does not take empty batches
        return layers
    offset = torch.zeros_like(matrix[:, 0]) if offset is None else offset
    grid = F.affine_grid(torch.cat([matrix, offset[:, :, None]], dim=2), list(layers.shape), align_corners=False)
    return F.grid_sample(layers, grid if bend is None else grid + bend, align_corners=False)


def rotation(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)


def scaling(across: Tensor, down: Tensor) -> Tensor:
    """Return the matrices (N, 2, 2) that divide widths and heights by these numbers."""
    return torch.diag_embed(torch.stack([across, down], 1))
