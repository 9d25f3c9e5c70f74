"""Augmentation that makes a dataset's images look like photos taken at home, after background removal.

The images of Fashion-MNIST are uniform: front or side view, one object, evenly lit, cleanly cut out. People's photos
are not: sleeves lie spread, shoes come in pairs and are seen from above, cloth is creased, a head is left above the
collar or a corner of the bed beside the hem. The functions in this module simulate these differences.

They pass a batch on as layers, float (N, 2, H, W): brightness and coverage, both from 0 to 1.
"""

import math
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from gingham.errors import GinghamError
from gingham.recipe import Recipe

# The class decides how an object is photographed; other classes are only turned, lit and cut out.
SHOES = {"Sandal", "Sneaker", "Ankle boot"}
TALL_SHOES = {"Ankle boot"}  # still upright when seen from above
TOPS = {"T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"}
TROUSERS = {"Trouser"}
MIN_COVERAGE = 0.5  # pixels above it belong to the object


class RandomDraws:
    """Draws random numbers for `count` images on the CPU, so that they are the same for every device."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.count, self.generator, self.device = count, generator, device

    def for_count(self, count: int) -> "RandomDraws":
        """Return draws for another number of images from the same generator."""
        return RandomDraws(count, self.generator, self.device)

    def uniform(self, low: float, high: float) -> torch.Tensor:
        """Return uniform numbers, float (N,)."""
        return (low + (high - low) * torch.rand(self.count, generator=self.generator)).to(self.device)

    def uniform4d(self, low: float, high: float) -> torch.Tensor:
        """Return uniform numbers that broadcast over images, float (N, 1, 1, 1)."""
        return self.uniform(low, high)[:, None, None, None]

    def chance(self, share: float | torch.Tensor) -> torch.Tensor:
        """Return bool (N,), True with probability `share`."""
        return self.uniform(0, 1) < share

    def noise(self, size: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
        """Return smooth noise of about unit variance, float (N, 1, H, W), interpolated from a grid of `cells`."""
        coarse = torch.randn(self.count, 1, *cells, generator=self.generator).to(self.device)
        return F.interpolate(coarse, size, mode="bicubic", align_corners=True)

    def white_noise(self, size: tuple[int, int]) -> torch.Tensor:
        """Return independent noise of unit variance for every pixel, float (N, 1, H, W)."""
        return torch.randn(self.count, 1, *size, generator=self.generator).to(self.device)


def simulate_photos(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], recipe: Recipe, step: int
) -> torch.Tensor:
    """Return a training batch with its first images, the recipe's `photo_share` of it, turned into simulated photos.

    `images` is uint8 (B, 1, H, W) in random order, `labels` int64 (B,). The draws depend only on the recipe's seed and
    `step`.

        batch = simulate_photos(batch, labels, data.classes, recipe, step=0)

    Raises
        GinghamError: the images are in colour.
    """
    if images.shape[1] != 1:
        raise GinghamError(
            f"photo_share is {recipe.photo_share:g}, and the pictures have {images.shape[1]} channels; it is for grey "
            "pictures of objects on black, so set photo_share=0 (another recipe, such as --recipe fast)"
        )
    count = num_simulated(len(images), recipe)
    generator = torch.Generator().manual_seed(zlib.crc32(f"photo {recipe.seed} {step}".encode()))
    return torch.cat([simulate_photo(images[:count], labels[:count], classes, generator), images[count:]])


def num_simulated(images: int, recipe: Recipe) -> int:
    """Return how many images at the start of a batch of `images` become simulated photos."""
    return round(images * recipe.photo_share)


def simulate_photo(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], generator: torch.Generator
) -> torch.Tensor:
    """Return images that look like photos of the same objects after `inference/preprocess.py`.

    `images` is uint8 (N, 1, H, W), objects on black; `labels` int64 (N,), indices into `classes`. The result has the
    shape and dtype of `images`. All draws come from `generator`.

        simulate_photo(batch, labels, data.classes, torch.Generator().manual_seed(0))
    """
    if not len(images):
        return images
    shoe, tall, top, trouser = (_is_any_class(labels, classes, names) for names in (SHOES, TALL_SHOES, TOPS, TROUSERS))
    draws = RandomDraws(len(images), generator, images.device)
    brightness = images.float() / 255
    layers = torch.cat([brightness, _coverage(brightness)], dim=1)
    layers = _spread_sleeves(layers, top, draws)
    from_above = shoe & draws.chance(torch.where(tall, 0.35, 0.5))
    layers = _view_from_above(layers, from_above, draws)
    layers = _pose(layers, shoe, from_above, draws)
    layers = _add_wearer(layers, top, trouser, draws)
    layers = _crop_to_object(layers, draws)
    mask = _roughen_mask(layers[:, 1:], draws)
    brightness = _relight(layers[:, :1] / layers[:, 1:].clamp(min=0.2), mask, draws)
    return _compose(brightness, mask, draws)


def _is_any_class(labels: torch.Tensor, classes: Sequence[str], names: set[str]) -> torch.Tensor:
    return torch.tensor([name in names for name in classes], device=labels.device)[labels]


def _coverage(brightness: torch.Tensor) -> torch.Tensor:
    """Return the coverage: 1 where the image is not black, with gaps of one pixel closed."""
    dilated = F.max_pool2d((brightness > 0.04).float(), 3, 1, 1)
    return -F.max_pool2d(-dilated, 3, 1, 1)


def _warp(layers: torch.Tensor, matrix: torch.Tensor, bend: torch.Tensor | None = None) -> torch.Tensor:
    """Warp layers by a matrix (N, 2, 3) that maps output to input coordinates, both from -1 to 1."""
    grid = F.affine_grid(matrix, list(layers.shape), align_corners=False)
    return F.grid_sample(layers, grid if bend is None else grid + bend, align_corners=False)


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    return torch.stack(rows, 1)


def _scale_matrix(across: torch.Tensor, down: torch.Tensor, shear: torch.Tensor | None = None) -> torch.Tensor:
    """Return the matrices (N, 2, 2) that divide sizes by these numbers."""
    zero = torch.zeros_like(across)
    return torch.stack([torch.stack([across, zero if shear is None else shear], 1), torch.stack([zero, down], 1)], 1)


def _about_point(matrix: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return the matrices (N, 2, 3) that apply `matrix` (N, 2, 2) about a fixed point (N, 2)."""
    return torch.cat([matrix, centre[:, :, None] - matrix @ centre[:, :, None]], dim=2)


def _spread_sleeves(layers: torch.Tensor, top: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Turn sleeves outward about the shoulders, as garments lie on beds, and zoom out by 1.3 to fit them."""
    indices = (top & draws.chance(0.6)).nonzero().flatten()
    if not len(indices):
        return layers
    subset, draws, zoom = layers[indices], draws.for_count(len(indices)), 1.3
    width = subset.shape[3]
    across = torch.linspace(-1, 1, width, device=layers.device)
    half_width = (subset[:, 1].amax(dim=1) > MIN_COVERAGE).float().sum(dim=1) / width
    edge = half_width * draws.uniform(0.5, 0.68)  # where the body ends and the sleeves begin
    limit = edge[:, None, None, None]
    centre = torch.zeros(len(indices), 2, device=layers.device)
    spread = _warp(subset * (across.abs() < limit), _about_point(_rotation(torch.zeros_like(edge)) * zoom, centre))
    for side in (-1, 1):
        turn = _rotation(-draws.uniform(-5, 45) * math.pi / 180 * side) * zoom
        shoulder = torch.stack([edge * side, draws.uniform(-0.85, -0.6)], 1)
        sleeve = _warp(subset * (across * side >= limit - 0.06), _about_point(turn, shoulder))
        spread = torch.where(spread[:, 1:] > MIN_COVERAGE, spread, sleeve)
    return layers.index_copy(0, indices, spread)


def _view_from_above(layers: torch.Tensor, from_above: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Show shoes from above by folding the side view about its middle: either with the sole outside, in an outline
    rounded at both ends, or with the sole inside."""
    indices = from_above.nonzero().flatten()
    if not len(indices):
        return layers
    subset, draws = layers[indices], draws.for_count(len(indices))
    count, _, height, width = subset.shape
    covered = subset[:, 1] > MIN_COVERAGE
    rows = torch.arange(height, device=layers.device)[None, :, None]
    first_rows = torch.where(covered, rows, height).amin(dim=1).float()  # of each column, (N, W)
    first = first_rows.amin(dim=1)[:, None, None]
    last = torch.where(covered, rows, -1).amax(dim=(1, 2)).float()[:, None, None]
    has_object = covered.any(dim=1)[:, None, :]
    down = torch.linspace(-1, 1, height, device=layers.device)[None, :, None].abs()
    across = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    half, power, waist = (draws.uniform(*span)[:, None, None] for span in ((0.3, 0.55), (2.5, 5), (-0.2, 0.35)))
    outline = (1 - across.abs() ** power).clamp(min=0) ** (1 / power) * (1 - waist * (0.5 + 0.5 * across))
    share = down / (half * outline.clamp(min=1e-3))  # 0 in the middle, 1 at the edge
    sole_outside = draws.chance(0.7)[:, None, None]
    outside = torch.maximum(first + (last - first) * share, torch.where(has_object, first_rows[:, None], first) + 0.5)
    row = torch.where(sole_outside, outside, last - (last - first) * down / half).clamp(-2, height + 1)
    grid = torch.stack([across.expand(count, height, width), (row + 0.5) / height * 2 - 1], 3)
    folded = F.grid_sample(subset, grid, align_corners=False)
    # A sandal's bed shows between its straps: the whole outline is shoe.
    coverage = torch.where(sole_outside, ((share < 1) & has_object).float(), folded[:, 1] * (down < half))
    return layers.index_copy(0, indices, torch.stack([folded[:, 0] * (coverage > 0), coverage], 1))


def _pose(layers: torch.Tensor, shoe: torch.Tensor, from_above: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Rotate, stretch, shear, shift and bend objects a little; shoes more, by any quarter turn, and in pairs."""
    height, width = layers.shape[2:]

    def root_ratio(low: float, high: float) -> torch.Tensor:
        return draws.uniform(math.log(low), math.log(high)).exp().sqrt()

    angle = torch.where(shoe, draws.uniform(-30, 30), draws.uniform(-18, 18)) * math.pi / 180
    # Clothes on a bed lie wider than they hang, and catalogues squeeze their images.
    ratio = torch.where(shoe, root_ratio(0.67, 1.5), root_ratio(0.8, 2.1))
    scale = draws.uniform(math.log(0.8), math.log(1.05)).exp()
    shape = _scale_matrix(1 / (scale * ratio), ratio / scale, draws.uniform(-0.18, 0.18))
    foreshortening = torch.where(
        shoe & ~from_above & draws.chance(0.4), draws.uniform(1.0, 2.2), torch.ones_like(angle)
    )
    turns = torch.where(draws.chance(0.5), 1, 3)
    turns = torch.where(draws.chance(torch.where(from_above, 0.85, 0.1)), turns, torch.where(draws.chance(0.1), 2, 0))
    turns = torch.where(shoe, turns, 0)
    matrix = (
        _rotation(turns * math.pi / 2)
        @ _rotation(angle)
        @ shape
        @ _scale_matrix(foreshortening, torch.ones_like(angle))
    )
    offset = torch.stack([draws.uniform(-0.06, 0.06), draws.uniform(-0.06, 0.06)], 1)[:, :, None]
    bend = torch.cat([draws.noise((height, width), (4, 4)) for _ in range(2)], 1).permute(0, 2, 3, 1) * draws.uniform4d(
        0, 0.1
    )
    posed = _warp(layers, torch.cat([matrix, offset], dim=2), bend)

    paired = (shoe & draws.chance(torch.where(from_above, 0.85, 0.65))).nonzero().flatten()
    if not len(paired):
        return posed
    subset, matrix, bend, draws = layers[paired], matrix[paired], bend[paired], draws.for_count(len(paired))
    mirror = torch.where(draws.chance(0.7), -1.0, 1.0)
    partner = (
        matrix @ _rotation(draws.uniform(-25, 25) * math.pi / 180) @ _scale_matrix(mirror, torch.ones_like(mirror))
    )
    upright = turns[paired] % 2 == 1  # these stand side by side, other pairs lie in any direction
    distance = torch.where(upright, draws.uniform(0.5, 0.95), draws.uniform(0.3, 1.0))
    direction = torch.where(upright, draws.uniform(-0.5, 0.5), draws.uniform(-math.pi, math.pi))
    half = (torch.stack([direction.cos(), direction.sin()], 1) * distance[:, None] / 2)[:, :, None]
    zoom = 1.6
    behind = _warp(subset, torch.cat([matrix * zoom, offset[paired] + matrix @ half], dim=2), bend * zoom)
    front = _warp(subset, torch.cat([partner * zoom, offset[paired] - partner @ half], dim=2), bend * zoom)
    return posed.index_copy(0, paired, torch.where(front[:, 1:] > MIN_COVERAGE, front, behind))


def _add_wearer(layers: torch.Tensor, top: torch.Tensor, trouser: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Add a wearer in simple shapes: head, arms and legs to a top, a top and feet to trousers."""
    indices = ((top | trouser) & draws.chance(0.3)).nonzero().flatten()
    if not len(indices):
        return layers
    top, draws = top[indices], draws.for_count(len(indices))
    count, height, width = len(indices), *layers.shape[2:]
    zero = torch.zeros(count, device=layers.device)
    offset = torch.where(top, draws.uniform(-0.25, 0.2), draws.uniform(0.1, 0.35))
    garment = _warp(
        layers[indices],
        torch.cat([_rotation(zero) * draws.uniform4d(1.25, 1.7)[:, 0], torch.stack([zero, offset], 1)[:, :, None]], 2),
    )
    covered = garment[:, 1] > MIN_COVERAGE
    y = torch.linspace(-1, 1, height, device=layers.device)[None, :, None]
    x = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    rows = torch.where(covered.any(dim=2)[:, :, None], y, 2.0)
    start = rows.amin(dim=1, keepdim=True)
    end = torch.where(covered.any(dim=2)[:, :, None], y, -2.0).amax(dim=1, keepdim=True)
    reach = (covered.sum(dim=2).amax(dim=1) / width)[:, None, None]  # half the garment's width

    def uniform(low: float, high: float) -> torch.Tensor:
        return draws.uniform(low, high)[:, None, None]

    def draw_part(part: torch.Tensor, wearers: torch.Tensor, share: float) -> torch.Tensor:
        return part & (wearers & draws.chance(share))[:, None, None]

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
    legs_tone = torch.where(draws.chance(0.3)[:, None, None], skin, cloth)
    parts = (
        (draw_part(head | neck, top, 0.75), skin),
        (draw_part(arms, top, 0.6), skin),
        (draw_part(legs, top, 0.75), legs_tone),
        (draw_part(body, ~top, 0.85), cloth),
        (draw_part(feet, ~top, 0.6), cloth),
    )
    brightness, coverage = torch.zeros_like(garment[:, 0]), garment[:, 1]
    for part, tone in parts:
        brightness = torch.where(part, tone, brightness)
        coverage = torch.maximum(coverage, part.float())
    brightness = torch.where(covered, garment[:, 0], brightness * coverage)
    return layers.index_copy(0, indices, torch.stack([brightness, coverage], 1))


def _crop_to_object(layers: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Crop to the object as preprocessing does, a little wider or tighter; one in eight objects is cut off at the frame."""
    size = layers.shape[3]
    covered = layers[:, 1] > 0.3
    positions = torch.arange(size, device=layers.device)
    centres, sizes = [], []
    for occupied in (covered.any(dim=1), covered.any(dim=2)):  # columns, rows: (N, size)
        first = torch.where(occupied, positions, size).amin(dim=1).clamp(max=size - 1)
        last = torch.where(occupied, positions, -1).amax(dim=1) + 1
        last = torch.where(last > first, last, size)
        centres.append((first + last) / size - 1)
        sizes.append((last - first) / size)
    zoom = torch.maximum(*sizes) * draws.uniform(0.95, 1.12)
    zoom = torch.where(draws.chance(0.12), zoom * draws.uniform(0.65, 0.95), zoom)
    matrix = _rotation(torch.zeros_like(zoom)) * zoom[:, None, None]
    return _warp(layers, torch.cat([matrix, torch.stack(centres, 1)[:, :, None]], dim=2))


def _roughen_mask(coverage: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Return the coverage as background removal finds it in a photo: with ragged edges and missing pieces."""
    size = coverage.shape[2], coverage.shape[3]
    ragged = ((coverage - MIN_COVERAGE + draws.noise(size, (9, 9)) * draws.uniform4d(0, 0.25)) * 4 + 0.5).clamp(0, 1)
    holes = ((draws.noise(size, (5, 5)) - draws.uniform4d(1.3, 2.6)) * 4).clamp(0, 1) * draws.chance(0.3)[
        :, None, None, None
    ]
    return ragged * (1 - holes)


def _relight(brightness: torch.Tensor, mask: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Change tones as light, cloth and camera do: tone curve, inversion, contrast, creases, uneven light, noise."""
    size = brightness.shape[2], brightness.shape[3]
    curve = draws.uniform4d(-0.9, 0.9).exp()
    tone = brightness.clamp(0, 1) ** curve
    tone = torch.where(draws.chance(0.2)[:, None, None, None], 1 - tone, tone)
    mean = (tone * mask).sum(dim=(1, 2, 3), keepdim=True) / mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    tone = mean + (tone - mean) * draws.uniform4d(0.15, 1.3)
    padded_size = size[0] + size[0] // 2, size[1] + size[1] // 2
    rotation = _rotation(draws.uniform(-math.pi, math.pi)) * 0.7
    creases = _warp(draws.noise(padded_size, (3, 14)), F.pad(rotation, (0, 1)))[:, :, size[0] // 4 : size[0] // 4 + size[0], size[1] // 4 : size[1] // 4 + size[1]]  # fmt: skip
    tone = tone + creases * draws.uniform4d(-0.1, 0.3).clamp(min=0)
    tone = tone + draws.noise(size, (3, 3)) * draws.uniform4d(0, 0.22)
    tone = (
        tone
        + draws.noise(size, (12, 12)) * draws.uniform4d(0, 0.08)
        + draws.white_noise(size) * draws.uniform4d(0, 0.04)
    )
    darkest, lightest = draws.uniform4d(0.05, 0.5), draws.uniform4d(0.7, 1.0)
    return darkest + (lightest - darkest) * tone.clamp(0, 1)


def _compose(brightness: torch.Tensor, mask: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Compose the uint8 images: with scraps of the background or all of it, blurred or sharpened, most at full brightness."""
    size = brightness.shape[2], brightness.shape[3]
    background = (draws.uniform4d(0.1, 0.9) + draws.noise(size, (6, 6)) * 0.1).clamp(0, 1)
    scraps = ((draws.noise(size, (5, 5)) - draws.uniform4d(1.2, 2.4)) * 4).clamp(0, 1) * draws.chance(0.25)[
        :, None, None, None
    ]
    scraps = torch.where(draws.chance(0.06)[:, None, None, None], torch.ones_like(scraps), scraps)
    pixels = brightness * mask + background * scraps * (1 - mask)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pixels = pixels + (blurred - pixels) * draws.uniform4d(-1.0, 0.6)  # negative values sharpen
    maximum = torch.where(
        draws.chance(0.7), pixels.amax(dim=(1, 2, 3)).clamp(min=0.3), torch.ones_like(pixels[:, 0, 0, 0])
    )
    return (pixels / maximum[:, None, None, None] * 255).round().clamp(0, 255).to(torch.uint8)
