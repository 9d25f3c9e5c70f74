"""Draw outliers: things that belong to no class, so that a model can be trained to be unsure of them.

All are drawn at random. Then they are lit and cut out as simulated photos are, so that only their shapes tell them from
the classes. No images but those of the training data are used.

Source: training on outliers is that of Hendrycks et al., "Deep anomaly detection with outlier exposure" (arXiv
1812.04606), who use other datasets.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gingham.data.layers import MIN_COVERAGE, RandomDraws, scaling, warp

SHARES = (0.4, 0.1, 0.15)  # of scenes, fragments and halves; the others are silhouettes


def draw_outliers(draws: RandomDraws, layers: Tensor, labels: Tensor) -> Tensor:
    """Return outliers as layers, float (N, 2, H, W): scenes without an object, small fragments, combinations of two
    images, and silhouettes.

    `layers` and `labels` are those of N images, from which the combinations are made.
    """
    count, size = len(layers), layers.shape[2:]
    scenes, fragments, halves = (replace(draws, count=round(count * share)) for share in SHARES)
    start = scenes.count + fragments.count
    part = slice(start, start + halves.count)
    return torch.cat(
        [
            _draw_scenes(scenes, size),
            _draw_fragments(fragments, size),
            _combine_halves(halves, layers[part], labels[part]),
            _draw_silhouettes(replace(draws, count=count - start - halves.count), size),
        ]
    )


def _grid(size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the y and x coordinates of the pixels, float (1, H, 1) and (1, 1, W), from -1 to 1."""
    y, x = (torch.linspace(-1, 1, side, device=device) for side in size)
    return y[None, :, None], x[None, None, :]


def _draw_silhouettes(draws: RandomDraws, size: Sequence[int]) -> Tensor:
    """Draw one to five overlapping parts: ellipses and boxes at any angle, smooth or wavy; some are holes."""
    y, x = _grid(size, draws.device)
    uniform, chance = functools.partial(draws.uniform, dims=2), functools.partial(draws.chance, dims=2)
    coverage = brightness = torch.zeros(draws.count, *size, device=draws.device)
    for number, share in enumerate((1.0, 0.6, 0.5, 0.4, 0.3)):
        reach, scale = (0.0, 1.0) if number == 0 else (0.6, 0.6)
        right, down, angle = x - uniform(-reach, reach), y - uniform(-reach, reach), uniform(0, math.pi)
        across = (right * angle.cos() + down * angle.sin()) / (uniform(0.2, 0.95) * scale)
        along = (down * angle.cos() - right * angle.sin()) / (uniform(0.06, 0.6) * scale)
        direction = torch.atan2(along, across)
        edge, waviness = torch.ones_like(direction), uniform(0, 0.35) * chance(0.65)
        for frequency in range(2, 7):
            wave = (frequency * direction + uniform(0, 2 * math.pi)).cos()
            edge = edge + waviness * uniform(-1, 1) / frequency**0.5 * wave
        box = torch.maximum(across.abs(), along.abs())
        inside = (torch.where(chance(0.3), box, torch.hypot(across, along)) < edge) & chance(share)
        hole = chance(0.15 if number > 1 else 0.0)
        brightness = torch.where(inside & ~hole, uniform(0.1, 1), brightness)
        coverage = torch.where(inside, (~hole).float(), coverage)
    texture = _ripples(draws, size) * draws.chance(0.2, 3)
    for cells in ((4, 4), (12, 12)):
        texture = texture + draws.noise(size, cells) * draws.uniform(0, 0.25, 3)
    return torch.stack([(brightness + texture[:, 0]).clamp(0.02, 1) * coverage, coverage], 1)


def _draw_scenes(draws: RandomDraws, size: Sequence[int]) -> Tensor:
    """Draw whole photos, as used where no object is found: textured rectangles with up to three silhouettes."""
    y, x = _grid(size, draws.device)
    slope = draws.uniform(-0.3, 0.3, 2) * y + draws.uniform(-0.3, 0.3, 2) * x
    ground = draws.uniform(0.1, 0.9, 3) + slope[:, None] + _ripples(draws, size) * draws.chance(0.25, 3)
    contrast = draws.uniform(0.01, 0.18, 3)
    for side in (2, 4, 7, 12, 20):
        ground = ground + draws.noise(size, (side, side)) * draws.uniform(0, 1, 3) * contrast
    ground = ground.clamp(0.02, 1)
    for share in (0.7, 0.5, 0.4):
        thing = _zoom_out(draws, _draw_silhouettes(draws, size), 1.0, 3.5)
        ground = torch.where((thing[:, 1:] > MIN_COVERAGE) & draws.chance(share, 3), thing[:, :1], ground)
    upright, wide = draws.uniform(0.62, 0.82), draws.uniform(1.2, 1.6)  # the usual proportions, height by width
    ratio = torch.where(draws.chance(0.7), torch.where(draws.chance(0.7), upright, wide), draws.uniform(0.4, 2.4))
    width, height = (1 / ratio).clamp(max=1)[:, None, None], ratio.clamp(max=1)[:, None, None]
    coverage = ((x.abs() <= width) & (y.abs() <= height)).float()[:, None]
    return torch.cat([ground * coverage, coverage], 1)


def _draw_fragments(draws: RandomDraws, size: Sequence[int]) -> Tensor:
    """Draw up to five small silhouettes that lie apart."""
    layers = torch.zeros(draws.count, 2, *size, device=draws.device)
    for share in (1.0, 0.9, 0.7, 0.5, 0.5):
        thing = _zoom_out(draws, _draw_silhouettes(draws, size), 2.0, 6.0)
        layers = torch.where((thing[:, 1:] > MIN_COVERAGE) & draws.chance(share, 3), thing, layers)
    return layers


def _zoom_out(draws: RandomDraws, layers: Tensor, low: float, high: float) -> Tensor:
    """Make objects smaller by a factor from `low` to `high`, and move them anywhere in the image."""
    zoom = draws.uniform(low, high)
    offset = torch.stack([draws.uniform(-1, 1), draws.uniform(-1, 1)], 1)
    return warp(layers, scaling(zoom, zoom), offset * zoom[:, None] * 0.8)


def _combine_halves(draws: RandomDraws, layers: Tensor, labels: Tensor) -> Tensor:
    """Join a part of each object to a part of another, along a line; silhouettes replace two objects of one class."""
    y, x = _grid(layers.shape[2:], draws.device)
    angle = draws.uniform(0, 2 * math.pi, 2)
    side = angle.cos() * x + angle.sin() * y > draws.uniform(-0.25, 0.25, 2)
    combined = torch.where(side[:, None], layers, layers.flip(0))
    return torch.where(
        (labels != labels.flip(0))[:, None, None, None], combined, _draw_silhouettes(draws, layers.shape[2:])
    )


def _ripples(draws: RandomDraws, size: Sequence[int]) -> Tensor:
    """Return patterns of waves or stripes, or of two that cross, float (N, 1, H, W)."""
    y, x = _grid(size, draws.device)
    uniform, chance = functools.partial(draws.uniform, dims=2), functools.partial(draws.chance, dims=2)
    angle = torch.where(chance(0.7), chance(0.5) * math.pi / 2, uniform(0, math.pi))
    waves = []
    for turn in (0, math.pi / 2):
        phase = ((angle + turn).cos() * x + (angle + turn).sin() * y) * uniform(6, 35) + uniform(0, 2 * math.pi)
        waves.append(torch.where(chance(0.5), phase.sin().sign(), phase.sin()))
    pattern = torch.where(chance(0.4), waves[0] * waves[1], waves[0])
    return (pattern * uniform(0.05, 0.4))[:, None]
