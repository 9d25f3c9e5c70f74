"""Augmentation that makes a dataset's images look like photos taken at home, after background removal.

The images of Fashion-MNIST are uniform: front or side view, one object, evenly lit, cleanly cut out. People's photos
are not: sleeves lie spread, shoes come in pairs and are seen from above, cloth is creased, a head is left above the
collar or a corner of the bed beside the hem. The functions in this module simulate these differences.

They represent a batch as layers; see layers.py.
"""

import functools
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gingham.data.layers import MIN_COVERAGE, RandomDraws, rotation, scaling, warp
from gingham.data.outliers import draw_outliers
from gingham.errors import GinghamError
from gingham.recipe import Recipe

# The class determines how an object is photographed; other classes are only rotated, lit and cut out.
SHOES = {"Sandal", "Sneaker", "Ankle boot"}
TALL_SHOES = {"Ankle boot"}  # still upright when seen from above
TOPS = {"T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"}
TROUSERS = {"Trouser"}


def simulate_photos(images: Tensor, labels: Tensor, classes: Sequence[str], recipe: Recipe, step: int) -> Tensor:
    """Return a training batch with its first images, the recipe's `photo_share` of it, turned into simulated photos.

    `images` is uint8 (B, 1, H, W) in random order, objects on black; `labels` int64 (B,), indices into `classes`. The
    simulated photos look like photos of the same objects after `inference/garments.py`. The first of them, the recipe's
    `outlier_share` of the batch, are drawn outliers instead, which show none of the classes. The draws depend only on
    the recipe's seed and `step`.

        batch = simulate_photos(batch, labels, data.classes, recipe, step=0)

    Raises
        GinghamError: the images are not grey.
    """
    if images.shape[1] != 1:
        fields = "photo_share=0 and outlier_share=0" if recipe.outlier_share else "photo_share=0"
        raise GinghamError(
            f"photo_share is {recipe.photo_share:g}, but the images have {images.shape[1]} channels; it requires grey "
            f"images of objects on black: set {fields}, or choose another recipe, such as fast"
        )
    count = num_simulated(len(images), recipe)
    if not count:
        return images
    groups = (SHOES, TALL_SHOES, TOPS, TROUSERS)
    shoe, tall, top, trouser = (_is_any_class(labels[:count], classes, names) for names in groups)
    generator = torch.Generator().manual_seed(zlib.crc32(f"photo {recipe.seed} {step}".encode()))
    draws = RandomDraws(count, generator, images.device)
    brightness = images[:count].float() / 255
    layers = torch.cat([brightness, _coverage(brightness)], dim=1)
    layers = _replace_some(layers, top & draws.chance(0.6), _spread_sleeves, draws, layers)
    layers = _replace_some(layers, shoe & draws.chance(0.6), _fill_gaps, draws, layers)
    from_above = shoe & draws.chance(torch.where(tall, 0.35, 0.5))
    layers = _replace_some(layers, from_above, _view_from_above, draws, layers)
    layers = _pose(draws, layers, shoe, from_above)
    layers = _replace_some(layers, (top | trouser) & draws.chance(0.3), _add_wearer, draws, layers, top)
    if num := num_outliers(len(images), recipe):
        outliers = draw_outliers(replace(draws, count=num), layers[:num], labels[:num])
        layers = torch.cat([outliers, layers[num:]])
    layers = _crop_to_object(draws, layers)
    mask = _roughen_mask(draws, layers[:, 1:])
    brightness = _relight(draws, layers[:, :1] / layers[:, 1:].clamp(min=0.2), mask)
    return torch.cat([_compose(draws, brightness, mask), images[count:]])


def num_simulated(images: int, recipe: Recipe) -> int:
    """Return how many images at the start of a batch of `images` become simulated photos."""
    return round(images * recipe.photo_share)


def num_outliers(images: int, recipe: Recipe) -> int:
    """Return how many of the simulated photos at the start of a batch of `images` show none of the classes."""
    return round(images * recipe.outlier_share)


def _is_any_class(labels: Tensor, classes: Sequence[str], names: set[str]) -> Tensor:
    return torch.tensor([name in names for name in classes], device=labels.device)[labels]


def _coverage(brightness: Tensor) -> Tensor:
    """Return the coverage: 1 where the image is not black, with gaps of one pixel closed."""
    dilated = F.max_pool2d((brightness > 0.04).float(), 3, 1, 1)
    return -F.max_pool2d(-dilated, 3, 1, 1)


def _replace_some(
    layers: Tensor, chosen: Tensor, function: Callable[..., Tensor], draws: RandomDraws, *inputs: Tensor
) -> Tensor:
    """Return the layers with those of the images in `chosen`, bool (N,), replaced by `function` of their `inputs`."""
    indices = chosen.nonzero().flatten()
    if not len(indices):
        return layers
    some_draws = replace(draws, count=len(indices))
    return layers.index_copy(0, indices, function(some_draws, *(values[indices] for values in inputs)))


def _transform(matrix: Tensor, points: Tensor) -> Tensor:
    """Return points (N, 2) multiplied by matrices (N, 2, 2)."""
    return (matrix @ points[:, :, None])[:, :, 0]


def _spread_sleeves(draws: RandomDraws, layers: Tensor) -> Tensor:
    """Rotate sleeves outward at the shoulders, as on garments lying on a bed, and zoom out by 1.3 to fit them."""
    width = layers.shape[3]
    across = torch.linspace(-1, 1, width, device=layers.device)
    half_width = (layers[:, 1].amax(dim=1) > MIN_COVERAGE).float().sum(dim=1) / width
    edge = half_width * draws.uniform(0.5, 0.68)  # where the body ends and the sleeves begin
    limit, zoom = edge[:, None, None, None], 1.3
    spread = warp(layers * (across.abs() < limit), rotation(torch.zeros_like(edge)) * zoom)
    for side in (-1, 1):
        turn = rotation(-draws.uniform(-5, 45) * math.pi / 180 * side) * zoom
        shoulder = torch.stack([edge * side, draws.uniform(-0.85, -0.6)], 1)
        sleeve = warp(layers * (across * side >= limit - 0.06), turn, shoulder - _transform(turn, shoulder))
        spread = torch.where(spread[:, 1:] > MIN_COVERAGE, spread, sleeve)
    return spread


def _fill_gaps(draws: RandomDraws, layers: Tensor) -> Tensor:
    """Cover the gaps between the straps of sandals in one tone: seen obliquely, they show the sole there."""
    covered = layers[:, 1] > MIN_COVERAGE
    # Of each column, all between the first covered row and the last.
    inside = covered.cummax(dim=1).values & covered.flip(1).cummax(dim=1).values.flip(1)
    brightness = torch.where(inside & ~covered, draws.uniform(0.1, 1.0, dims=2), layers[:, 0])
    return torch.stack([brightness, layers[:, 1].maximum(inside.float())], 1)


def _view_from_above(draws: RandomDraws, layers: Tensor) -> Tensor:
    """Simulate shoes seen from above by folding the side view around its middle: either with the sole outside, in an
    outline rounded at both ends, or with the sole inside."""
    count, _, height, width = layers.shape
    covered = layers[:, 1] > MIN_COVERAGE
    rows = torch.arange(height, device=layers.device)[None, :, None]
    first_rows = torch.where(covered, rows, height).amin(dim=1).float()  # of each column, (N, W)
    first = first_rows.amin(dim=1)[:, None, None]
    last = torch.where(covered, rows, -1).amax(dim=(1, 2)).float()[:, None, None]
    has_object = covered.any(dim=1)[:, None, :]
    down = torch.linspace(-1, 1, height, device=layers.device)[None, :, None].abs()
    across = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    half, power, waist = (draws.uniform(low, high, 2) for low, high in ((0.3, 0.55), (2.5, 5), (-0.2, 0.35)))
    outline = (1 - across.abs() ** power).clamp(min=0) ** (1 / power) * (1 - waist * (0.5 + 0.5 * across))
    share = down / (half * outline.clamp(min=1e-3))  # 0 in the middle, 1 at the edge
    sole_outside = draws.chance(0.7, dims=2)
    outside = torch.maximum(first + (last - first) * share, torch.where(has_object, first_rows[:, None], first) + 0.5)
    row = torch.where(sole_outside, outside, last - (last - first) * down / half).clamp(-2, height + 1)
    grid = torch.stack([across.expand(count, height, width), (row + 0.5) / height * 2 - 1], 3)
    folded = F.grid_sample(layers, grid, align_corners=False)
    # A sandal's sole is visible between its straps, so the whole outline belongs to the shoe.
    coverage = torch.where(sole_outside, ((share < 1) & has_object).float(), folded[:, 1] * (down < half))
    return torch.stack([folded[:, 0] * (coverage > 0), coverage], 1)


def _pose(draws: RandomDraws, layers: Tensor, shoe: Tensor, from_above: Tensor) -> Tensor:
    """Rotate, stretch, shear, shift and bend objects a little; shoes more, by any quarter turn, and in pairs."""

    def log_uniform(low: float, high: float) -> Tensor:
        return draws.uniform(math.log(low), math.log(high)).exp()

    angle = torch.where(shoe, draws.uniform(-30, 30), draws.uniform(-18, 18)) * math.pi / 180
    # Clothes lying on a bed are wider than hanging ones, and catalogue images are squeezed.
    ratio = torch.where(shoe, log_uniform(0.67, 1.5).sqrt(), log_uniform(0.8, 2.1).sqrt())
    scale = log_uniform(0.8, 1.05)
    shape = scaling(1 / (scale * ratio), ratio / scale)
    shape[:, 0, 1] = draws.uniform(-0.18, 0.18)  # shear
    foreshortening = torch.where(shoe & ~from_above & draws.chance(0.4), draws.uniform(1.0, 2.2), 1.0)
    turns = torch.where(draws.chance(0.5), 1, 3)
    turns = torch.where(draws.chance(torch.where(from_above, 0.85, 0.1)), turns, torch.where(draws.chance(0.1), 2, 0))
    turns = torch.where(shoe, turns, 0)
    foreshorten = scaling(foreshortening, torch.ones_like(foreshortening))
    matrix = rotation(turns * math.pi / 2) @ rotation(angle) @ shape @ foreshorten
    offset = torch.stack([draws.uniform(-0.06, 0.06), draws.uniform(-0.06, 0.06)], 1)
    bend = torch.cat([draws.noise(layers.shape[2:], (4, 4)) for _ in range(2)], 1).permute(0, 2, 3, 1)
    bend = bend * draws.uniform(0, 0.1, dims=3)
    posed = warp(layers, matrix, offset, bend)
    paired = shoe & draws.chance(torch.where(from_above, 0.85, 0.65))
    return _replace_some(posed, paired, _pose_pairs, draws, layers, matrix, offset, bend, turns % 2 == 1)


def _pose_pairs(
    draws: RandomDraws, layers: Tensor, matrix: Tensor, offset: Tensor, bend: Tensor, upright: Tensor
) -> Tensor:
    """Pose shoes as pairs: upright ones side by side, others in any direction."""
    mirror = torch.where(draws.chance(0.7), -1.0, 1.0)
    turn = rotation(draws.uniform(-25, 25) * math.pi / 180)
    partner = matrix @ turn @ scaling(mirror, torch.ones_like(mirror))
    distance = torch.where(upright, draws.uniform(0.5, 0.95), draws.uniform(0.3, 1.0))
    direction = torch.where(upright, draws.uniform(-0.5, 0.5), draws.uniform(-math.pi, math.pi))
    half = torch.stack([direction.cos(), direction.sin()], 1) * distance[:, None] / 2
    zoom = 1.6
    behind = warp(layers, matrix * zoom, offset + _transform(matrix, half), bend * zoom)
    front = warp(layers, partner * zoom, offset - _transform(partner, half), bend * zoom)
    return torch.where(front[:, 1:] > MIN_COVERAGE, front, behind)


def _add_wearer(draws: RandomDraws, layers: Tensor, top: Tensor) -> Tensor:
    """Draw a wearer of simple shapes: add head, arms and legs to a top, and a top and feet to trousers."""
    height, width = layers.shape[2:]
    offset = torch.where(top, draws.uniform(-0.25, 0.2), draws.uniform(0.1, 0.35))
    zoom = draws.uniform(1.25, 1.7)
    garment = warp(layers, scaling(zoom, zoom), torch.stack([torch.zeros_like(offset), offset], 1))
    covered = garment[:, 1] > MIN_COVERAGE
    y = torch.linspace(-1, 1, height, device=layers.device)[None, :, None]
    x = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    in_row = covered.any(dim=2)[:, :, None]
    start = torch.where(in_row, y, 2.0).amin(dim=1, keepdim=True)
    end = torch.where(in_row, y, -2.0).amax(dim=1, keepdim=True)
    reach = (covered.sum(dim=2).amax(dim=1) / width)[:, None, None]  # half the garment's width
    uniform = functools.partial(draws.uniform, dims=2)
    radius, tilt = reach * uniform(0.22, 0.36), uniform(-0.1, 0.1)
    middle = start - radius * 1.1
    head = ((x - tilt) / radius) ** 2 + ((y - middle) / (radius * 1.35)) ** 2 < 1
    neck = ((x - tilt).abs() < radius * 0.5) & (y > middle) & (y < start + radius * 0.6)
    elbow = (x.abs() - reach * uniform(0.75, 1.15) - uniform(-0.3, 0.3) * (y - start)).abs()
    arms = (elbow < reach * uniform(0.08, 0.14)) & (y > start + 0.25) & (y < end + 0.15)
    hip, gap = reach * uniform(0.5, 0.9), uniform(0, 0.12)
    legs = (x.abs() < hip) & ((y < end + 0.3) | (x.abs() > gap)) & (y > end - 0.1)
    body = (x.abs() < reach * uniform(0.8, 1.3)) & (y < start + 0.15)
    feet = (x.abs() < hip) & (x.abs() > gap) & (y > end - 0.05) & (y < end + 0.25)
    skin, cloth = uniform(0.1, 0.8), uniform(0.1, 1.0)
    parts = (
        (head | neck, top, 0.75, skin),
        (arms, top, 0.6, skin),
        (legs, top, 0.75, torch.where(draws.chance(0.3, dims=2), skin, cloth)),
        (body, ~top, 0.85, cloth),
        (feet, ~top, 0.6, cloth),
    )
    brightness, coverage = torch.zeros_like(garment[:, 0]), garment[:, 1]
    for part, wearers, share, tone in parts:
        drawn = part & wearers[:, None, None] & draws.chance(share, dims=2)
        brightness = torch.where(drawn, tone, brightness)
        coverage = torch.maximum(coverage, drawn.float())
    brightness = torch.where(covered, garment[:, 0], brightness * coverage)
    return torch.stack([brightness, coverage], 1)


def _crop_to_object(draws: RandomDraws, layers: Tensor) -> Tensor:
    """Crop to the object as preprocessing does, slightly wider or tighter; one object in eight is truncated."""
    covered = layers[:, 1] > 0.3
    centres, sizes = [], []
    for occupied in (covered.any(dim=1), covered.any(dim=2)):  # columns (N, W), rows (N, H)
        size = occupied.shape[1]
        positions = torch.arange(size, device=layers.device)
        first = torch.where(occupied, positions, size).amin(dim=1).clamp(max=size - 1)
        last = torch.where(occupied, positions, -1).amax(dim=1) + 1
        last = torch.where(last > first, last, size)
        centres.append((first + last) / size - 1)
        sizes.append((last - first) / size)
    zoom = torch.maximum(*sizes) * draws.uniform(0.95, 1.12)
    zoom = torch.where(draws.chance(0.12), zoom * draws.uniform(0.65, 0.95), zoom)
    return warp(layers, scaling(zoom, zoom), torch.stack(centres, 1))


def _roughen_mask(draws: RandomDraws, coverage: Tensor) -> Tensor:
    """Return the coverage as background removal would find it in a photo: with ragged edges and missing pieces."""
    size = coverage.shape[2:]
    roughness = draws.noise(size, (9, 9)) * draws.uniform(0, 0.25, dims=3)
    ragged = ((coverage - MIN_COVERAGE + roughness) * 4 + 0.5).clamp(0, 1)
    holes = _patches(draws, size, 1.3, 2.6, 0.3)
    return ragged * (1 - holes)


def _patches(draws: RandomDraws, size: Sequence[int], low: float, high: float, share: float) -> Tensor:
    """Return patches where smooth noise is above a threshold from `low` to `high`, in a share of the images."""
    excess = draws.noise(size, (5, 5)) - draws.uniform(low, high, dims=3)
    return (excess * 4).clamp(0, 1) * draws.chance(share, dims=3)


def _relight(draws: RandomDraws, brightness: Tensor, mask: Tensor) -> Tensor:
    """Simulate light, cloth and camera: tone curve, inversion, contrast, creases, uneven light and noise."""
    size = brightness.shape[2:]
    curve = draws.uniform(-0.9, 0.9, dims=3).exp()
    tone = brightness.clamp(0, 1) ** curve
    tone = torch.where(draws.chance(0.2, dims=3), 1 - tone, tone)
    mean = (tone * mask).sum(dim=(1, 2, 3), keepdim=True) / mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    tone = mean + (tone - mean) * draws.uniform(0.15, 1.3, dims=3)
    turn = rotation(draws.uniform(-math.pi, math.pi)) * 0.7
    # Creases are drawn 1.5 times as large, so that no corner of the image is empty after the rotation.
    creases = warp(draws.noise([side + side // 2 for side in size], (3, 14)), turn)
    top, left = size[0] // 4, size[1] // 4
    creases = creases[:, :, top : top + size[0], left : left + size[1]]
    tone = tone + creases * draws.uniform(-0.1, 0.3, dims=3).clamp(min=0)
    for cells, strength in (((3, 3), 0.22), ((12, 12), 0.08), (size, 0.04)):  # uneven light, then finer and finer noise
        tone = tone + draws.noise(size, cells) * draws.uniform(0, strength, dims=3)
    # Preprocessing stretches the contrast, and with it the creases of plain cloth.
    outside = mask < 0.5
    low = tone.masked_fill(outside, math.inf).amin(dim=(1, 2, 3), keepdim=True)
    high = tone.masked_fill(outside, -math.inf).amax(dim=(1, 2, 3), keepdim=True)
    stretched = (tone - low) / (high - low).clamp(min=0.16)
    tone = torch.where(draws.chance(0.7, dims=3) & low.isfinite(), stretched, tone)
    darkest, lightest = draws.uniform(0.05, 0.5, dims=3), draws.uniform(0.7, 1.0, dims=3)
    return darkest + (lightest - darkest) * tone.clamp(0, 1)


def _compose(draws: RandomDraws, brightness: Tensor, mask: Tensor) -> Tensor:
    """Compose the uint8 images: add scraps of background or all of it, blur or sharpen, and brighten most."""
    size = brightness.shape[2:]
    background = (draws.uniform(0.1, 0.9, dims=3) + draws.noise(size, (6, 6)) * 0.1).clamp(0, 1)
    scraps = _patches(draws, size, 1.2, 2.4, 0.25)
    scraps = torch.where(draws.chance(0.06, dims=3), 1.0, scraps)  # all of it
    pixels = brightness * mask + background * scraps * (1 - mask)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = pixels + (blurred - pixels) * draws.uniform(-1.0, 0.6, dims=3)  # negative values sharpen
    maximum = torch.where(draws.chance(0.7, dims=3), pixels.amax(dim=(1, 2, 3), keepdim=True).clamp(min=0.3), 1.0)
    return (pixels / maximum * 255).round().clamp(0, 255).to(torch.uint8)
