"""Augmentation towards photographs: a dataset's pictures as if photographed at home, cut out and prepared.

The pictures of Fashion-MNIST are of one kind: front or side view, alone, evenly lit, cleanly cut out. Photographs that people
take are not, once prepared: sleeves lie spread, shoes come in pairs and are seen from above, cloth is creased, a head is left
above the collar, a corner of the bed beside the hem. The functions here make such pictures from the dataset's own.

Between them a batch is a stack of layers, float (N, 2, H, W): brightness and coverage, both from 0 to 1.
"""

import math
import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from gingham.errors import GinghamError
from gingham.recipe import Recipe

# What a class is decides how it is photographed; a class of another name is turned, lit and cut out only.
SHOES = {"Sandal", "Sneaker", "Ankle boot"}
TALL_SHOES = {"Ankle boot"}  # seen from above they still stand upright
TOPS = {"T-shirt/top", "Pullover", "Dress", "Coat", "Shirt"}
TROUSERS = {"Trouser"}
COVERED = 0.5  # coverage from which a place counts as part of the object


class RandomDraws:
    """Random numbers for `count` pictures, drawn on the CPU, so that they are the same for every device."""

    def __init__(self, count: int, generator: torch.Generator, device: torch.device) -> None:
        self.count, self.generator, self.device = count, generator, device

    def of(self, count: int) -> "RandomDraws":
        """The same stream for another number of pictures."""
        return RandomDraws(count, self.generator, self.device)

    def between(self, low: float, high: float) -> torch.Tensor:
        """Uniform numbers, float (N,)."""
        return (low + (high - low) * torch.rand(self.count, generator=self.generator)).to(self.device)

    def map(self, low: float, high: float) -> torch.Tensor:
        """Uniform numbers in a shape that goes with pictures, float (N, 1, 1, 1)."""
        return self.between(low, high)[:, None, None, None]

    def chance(self, share: float | torch.Tensor) -> torch.Tensor:
        """True for about that share, bool (N,)."""
        return self.between(0, 1) < share

    def clouds(self, size: tuple[int, int], cells: tuple[int, int]) -> torch.Tensor:
        """Smooth noise of about unit variance, float (N, 1, H, W), in so many cells down and across."""
        coarse = torch.randn(self.count, 1, *cells, generator=self.generator).to(self.device)
        return F.interpolate(coarse, size, mode="bicubic", align_corners=True)

    def grain(self, size: tuple[int, int]) -> torch.Tensor:
        """Noise of unit variance in every pixel, float (N, 1, H, W)."""
        return torch.randn(self.count, 1, *size, generator=self.generator).to(self.device)


def simulate_photos(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], recipe: Recipe, step: int
) -> torch.Tensor:
    """Return a training batch with the recipe's `photo_share` of it, the first ones, as if photographed.

    `images` is uint8 (B, 1, H, W) in random order, `labels` int64 (B,). Nothing but the recipe's seed and `step` decides the draws.

        batch = simulate_photos(batch, labels, data.classes, recipe, step=0)

    Raises
        GinghamError: pictures in colour.
    """
    if images.shape[1] != 1:
        raise GinghamError(
            f"photo_share is {recipe.photo_share:g}, and the pictures have {images.shape[1]} channels; it is for grey pictures of "
            "objects on black, so set photo_share=0 (another recipe, such as --recipe fast)"
        )
    count = num_simulated(len(images), recipe)
    generator = torch.Generator().manual_seed(zlib.crc32(f"photo {recipe.seed} {step}".encode()))
    return torch.cat([simulate_photo(images[:count], labels[:count], classes, generator), images[count:]])


def num_simulated(images: int, recipe: Recipe) -> int:
    """Return how many of a batch of so many pictures, its first ones, are as if photographed."""
    return round(images * recipe.photo_share)


def simulate_photo(
    images: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], generator: torch.Generator
) -> torch.Tensor:
    """Return pictures as they might look had their objects been photographed by someone and prepared by `inference/preprocess.py`.

    `images` is uint8 (N, 1, H, W), objects on black; `labels` int64 (N,), indices into `classes`; what comes back is like
    `images`. Every draw is taken from `generator`.

        simulate_photo(batch, labels, data.classes, torch.Generator().manual_seed(0))
    """
    if not len(images):
        return images
    shoe, tall, top, trouser = (_among(labels, classes, names) for names in (SHOES, TALL_SHOES, TOPS, TROUSERS))
    draws = RandomDraws(len(images), generator, images.device)
    brightness = images.float() / 255
    layers = torch.cat([brightness, _coverage(brightness)], dim=1)
    layers = _spread_sleeves(layers, top, draws)
    above = shoe & draws.chance(torch.where(tall, 0.35, 0.5))
    layers = _from_above(layers, above, draws)
    layers = _pose(layers, shoe, above, draws)
    layers = _wear(layers, top, trouser, draws)
    layers = _frame(layers, draws)
    cut_out = _cut_out(layers[:, 1:], draws)
    brightness = _light(layers[:, :1] / layers[:, 1:].clamp(min=0.2), cut_out, draws)
    return _finish(brightness, cut_out, draws)


def _among(labels: torch.Tensor, classes: Sequence[str], names: set[str]) -> torch.Tensor:
    return torch.tensor([name in names for name in classes], device=labels.device)[labels]


def _coverage(brightness: torch.Tensor) -> torch.Tensor:
    """What is not background: whatever is not black, gaps of a pixel closed."""
    grown = F.max_pool2d((brightness > 0.04).float(), 3, 1, 1)
    return -F.max_pool2d(-grown, 3, 1, 1)


def _warp(layers: torch.Tensor, matrix: torch.Tensor, bend: torch.Tensor | None = None) -> torch.Tensor:
    """Layers seen through a matrix (N, 2, 3) from places in the result to places in `layers`, from -1 to 1 in both."""
    grid = F.affine_grid(matrix, list(layers.shape), align_corners=False)
    return F.grid_sample(layers, grid if bend is None else grid + bend, align_corners=False)


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    rows = [torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)]
    return torch.stack(rows, 1)


def _shaped(across: torch.Tensor, down: torch.Tensor, shear: torch.Tensor | None = None) -> torch.Tensor:
    """The matrices (N, 2, 2) that divide sizes by these numbers."""
    zero = torch.zeros_like(across)
    return torch.stack([torch.stack([across, zero if shear is None else shear], 1), torch.stack([zero, down], 1)], 1)


def _about(matrix: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """(N, 2, 2) applied about a point that stays (N, 2) -> (N, 2, 3)."""
    return torch.cat([matrix, centre[:, :, None] - matrix @ centre[:, :, None]], dim=2)


def _spread_sleeves(layers: torch.Tensor, top: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Sleeves turned outward about the shoulders, as garments lie on beds; the frame grows by 1.3 to hold them."""
    chosen = (top & draws.chance(0.6)).nonzero().flatten()
    if not len(chosen):
        return layers
    some, draws, room = layers[chosen], draws.of(len(chosen)), 1.3
    width = some.shape[3]
    across = torch.linspace(-1, 1, width, device=layers.device)
    half_width = (some[:, 1].amax(dim=1) > COVERED).float().sum(dim=1) / width
    edge = half_width * draws.between(0.5, 0.68)  # where the body ends and the sleeves begin
    limit = edge[:, None, None, None]
    centre = torch.zeros(len(chosen), 2, device=layers.device)
    spread = _warp(some * (across.abs() < limit), _about(_rotation(torch.zeros_like(edge)) * room, centre))
    for side in (-1, 1):
        turn = _rotation(-draws.between(-5, 45) * math.pi / 180 * side) * room
        shoulder = torch.stack([edge * side, draws.between(-0.85, -0.6)], 1)
        sleeve = _warp(some * (across * side >= limit - 0.06), _about(turn, shoulder))
        spread = torch.where(spread[:, 1:] > COVERED, spread, sleeve)
    return layers.index_copy(0, chosen, spread)


def _from_above(layers: torch.Tensor, above: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Shoes seen from above: the side view folded about its middle, either the sole outside, in an outline rounded at both
    ends, or the sole inside."""
    chosen = above.nonzero().flatten()
    if not len(chosen):
        return layers
    some, draws = layers[chosen], draws.of(len(chosen))
    count, _, height, width = some.shape
    inside = some[:, 1] > COVERED
    rows = torch.arange(height, device=layers.device)[None, :, None]
    first_rows = torch.where(inside, rows, height).amin(dim=1).float()  # of each column, (N, W)
    first = first_rows.amin(dim=1)[:, None, None]
    last = torch.where(inside, rows, -1).amax(dim=(1, 2)).float()[:, None, None]
    there = inside.any(dim=1)[:, None, :]
    down = torch.linspace(-1, 1, height, device=layers.device)[None, :, None].abs()
    across = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    half, power, waist = (draws.between(*span)[:, None, None] for span in ((0.3, 0.55), (2.5, 5), (-0.2, 0.35)))
    outline = (1 - across.abs() ** power).clamp(min=0) ** (1 / power) * (1 - waist * (0.5 + 0.5 * across))
    share = down / (half * outline.clamp(min=1e-3))  # 0 in the middle, 1 at the edge
    sole_outside = draws.chance(0.7)[:, None, None]
    outside = torch.maximum(first + (last - first) * share, torch.where(there, first_rows[:, None], first) + 0.5)
    row = torch.where(sole_outside, outside, last - (last - first) * down / half).clamp(-2, height + 1)
    grid = torch.stack([across.expand(count, height, width), (row + 0.5) / height * 2 - 1], 3)
    folded = F.grid_sample(some, grid, align_corners=False)
    # A sandal's bed shows between its straps: the whole outline is shoe.
    coverage = torch.where(sole_outside, ((share < 1) & there).float(), folded[:, 1] * (down < half))
    return layers.index_copy(0, chosen, torch.stack([folded[:, 0] * (coverage > 0), coverage], 1))


def _pose(layers: torch.Tensor, shoe: torch.Tensor, above: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Turned, squeezed or stretched, sheared, moved and bent a little; shoes further, in any quarter turn, and in pairs."""
    height, width = layers.shape[2:]

    def wide(low: float, high: float) -> torch.Tensor:
        return draws.between(math.log(low), math.log(high)).exp().sqrt()

    angle = torch.where(shoe, draws.between(-30, 30), draws.between(-18, 18)) * math.pi / 180
    # Clothes on a bed lie wider than they hang, and catalogues squeeze their pictures.
    ratio = torch.where(shoe, wide(0.67, 1.5), wide(0.8, 2.1))
    scale = draws.between(math.log(0.8), math.log(1.05)).exp()
    shape = _shaped(1 / (scale * ratio), ratio / scale, draws.between(-0.18, 0.18))
    from_the_front = torch.where(shoe & ~above & draws.chance(0.4), draws.between(1.0, 2.2), torch.ones_like(angle))
    quarter = torch.where(draws.chance(0.5), 1, 3)
    quarter = torch.where(draws.chance(torch.where(above, 0.85, 0.1)), quarter, torch.where(draws.chance(0.1), 2, 0))
    quarter = torch.where(shoe, quarter, 0)
    matrix = _rotation(quarter * math.pi / 2) @ _rotation(angle) @ shape @ _shaped(from_the_front, torch.ones_like(angle))
    moved = torch.stack([draws.between(-0.06, 0.06), draws.between(-0.06, 0.06)], 1)[:, :, None]
    bend = torch.cat([draws.clouds((height, width), (4, 4)) for _ in range(2)], 1).permute(0, 2, 3, 1) * draws.map(0, 0.1)
    posed = _warp(layers, torch.cat([matrix, moved], dim=2), bend)

    pair = (shoe & draws.chance(torch.where(above, 0.85, 0.65))).nonzero().flatten()
    if not len(pair):
        return posed
    some, turned, bend, draws = layers[pair], matrix[pair], bend[pair], draws.of(len(pair))
    mirror = torch.where(draws.chance(0.7), -1.0, 1.0)
    other = turned @ _rotation(draws.between(-25, 25) * math.pi / 180) @ _shaped(mirror, torch.ones_like(mirror))
    upright = quarter[pair] % 2 == 1  # such a pair stands side by side; others lie in front of each other in any way
    apart = torch.where(upright, draws.between(0.5, 0.95), draws.between(0.3, 1.0))
    way = torch.where(upright, draws.between(-0.5, 0.5), draws.between(-math.pi, math.pi))
    half = (torch.stack([way.cos(), way.sin()], 1) * apart[:, None] / 2)[:, :, None]
    room = 1.6
    behind = _warp(some, torch.cat([turned * room, moved[pair] + turned @ half], dim=2), bend * room)
    front = _warp(some, torch.cat([other * room, moved[pair] - other @ half], dim=2), bend * room)
    return posed.index_copy(0, pair, torch.where(front[:, 1:] > COVERED, front, behind))


def _wear(layers: torch.Tensor, top: torch.Tensor, trouser: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Clothes on someone: head, arms and legs about a top, a top and feet about trousers, in simple shapes."""
    chosen = ((top | trouser) & draws.chance(0.3)).nonzero().flatten()
    if not len(chosen):
        return layers
    top, draws = top[chosen], draws.of(len(chosen))
    count, height, width = len(chosen), *layers.shape[2:]
    zero = torch.zeros(count, device=layers.device)
    moved = torch.where(top, draws.between(-0.25, 0.2), draws.between(0.1, 0.35))
    garment = _warp(
        layers[chosen], torch.cat([_rotation(zero) * draws.map(1.25, 1.7)[:, 0], torch.stack([zero, moved], 1)[:, :, None]], 2)
    )
    covered = garment[:, 1] > COVERED
    y = torch.linspace(-1, 1, height, device=layers.device)[None, :, None]
    x = torch.linspace(-1, 1, width, device=layers.device)[None, None, :]
    rows = torch.where(covered.any(dim=2)[:, :, None], y, 2.0)
    start = rows.amin(dim=1, keepdim=True)
    end = torch.where(covered.any(dim=2)[:, :, None], y, -2.0).amax(dim=1, keepdim=True)
    reach = (covered.sum(dim=2).amax(dim=1) / width)[:, None, None]  # half the garment's width

    def span(low: float, high: float) -> torch.Tensor:
        return draws.between(low, high)[:, None, None]

    def maybe(part: torch.Tensor, whose: torch.Tensor, share: float) -> torch.Tensor:
        return part & (whose & draws.chance(share))[:, None, None]

    radius, tilt = reach * span(0.22, 0.36), span(-0.1, 0.1)
    middle = start - radius * 1.1
    head = ((x - tilt) / radius) ** 2 + ((y - middle) / (radius * 1.35)) ** 2 < 1
    neck = ((x - tilt).abs() < radius * 0.5) & (y > middle) & (y < start + radius * 0.6)
    elbow = (x.abs() - reach * span(0.75, 1.15) - span(-0.3, 0.3) * (y - start)).abs()
    arms = (elbow < reach * span(0.08, 0.14)) & (y > start + 0.25) & (y < end + 0.15)
    hip, gap = reach * span(0.5, 0.9), span(0, 0.12)
    legs = (x.abs() < hip) & ((y < end + 0.3) | (x.abs() > gap)) & (y > end - 0.1)
    body = (x.abs() < reach * span(0.8, 1.3)) & (y < start + 0.15)
    feet = (x.abs() < hip) & (x.abs() > gap) & (y > end - 0.05) & (y < end + 0.25)
    skin, cloth = span(0.1, 0.8), span(0.1, 1.0)
    legs_tone = torch.where(draws.chance(0.3)[:, None, None], skin, cloth)
    parts = (
        (maybe(head | neck, top, 0.75), skin),
        (maybe(arms, top, 0.6), skin),
        (maybe(legs, top, 0.75), legs_tone),
        (maybe(body, ~top, 0.85), cloth),
        (maybe(feet, ~top, 0.6), cloth),
    )
    brightness, coverage = torch.zeros_like(garment[:, 0]), garment[:, 1]
    for part, tone in parts:
        brightness = torch.where(part, tone, brightness)
        coverage = torch.maximum(coverage, part.float())
    brightness = torch.where(covered, garment[:, 0], brightness * coverage)
    return layers.index_copy(0, chosen, torch.stack([brightness, coverage], 1))


def _frame(layers: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Cropped to what is there, as preparation crops, a little generously or narrowly; one in eight reaches out of the frame."""
    size = layers.shape[3]
    inside = layers[:, 1] > 0.3
    positions = torch.arange(size, device=layers.device)
    middles, sizes = [], []
    for taken in (inside.any(dim=1), inside.any(dim=2)):  # columns, rows: (N, size)
        first = torch.where(taken, positions, size).amin(dim=1).clamp(max=size - 1)
        last = torch.where(taken, positions, -1).amax(dim=1) + 1
        last = torch.where(last > first, last, size)
        middles.append((first + last) / size - 1)
        sizes.append((last - first) / size)
    zoom = torch.maximum(*sizes) * draws.between(0.95, 1.12)
    zoom = torch.where(draws.chance(0.12), zoom * draws.between(0.65, 0.95), zoom)
    matrix = _rotation(torch.zeros_like(zoom)) * zoom[:, None, None]
    return _warp(layers, torch.cat([matrix, torch.stack(middles, 1)[:, :, None]], dim=2))


def _cut_out(coverage: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Coverage as found in a photograph: edges ragged, pieces missing."""
    size = coverage.shape[2], coverage.shape[3]
    ragged = ((coverage - COVERED + draws.clouds(size, (9, 9)) * draws.map(0, 0.25)) * 4 + 0.5).clamp(0, 1)
    missing = ((draws.clouds(size, (5, 5)) - draws.map(1.3, 2.6)) * 4).clamp(0, 1) * draws.chance(0.3)[:, None, None, None]
    return ragged * (1 - missing)


def _light(brightness: torch.Tensor, cut_out: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Tones as a lamp, a cloth and a camera may make them: another curve, negative, flatter or harsher, creased, uneven."""
    size = brightness.shape[2], brightness.shape[3]
    curve = draws.map(-0.9, 0.9).exp()
    tone = brightness.clamp(0, 1) ** curve
    tone = torch.where(draws.chance(0.2)[:, None, None, None], 1 - tone, tone)
    mean = (tone * cut_out).sum(dim=(1, 2, 3), keepdim=True) / cut_out.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    tone = mean + (tone - mean) * draws.map(0.15, 1.3)
    roomy = size[0] + size[0] // 2, size[1] + size[1] // 2
    turn = _rotation(draws.between(-math.pi, math.pi)) * 0.7
    creases = _warp(draws.clouds(roomy, (3, 14)), F.pad(turn, (0, 1)))[:, :, size[0] // 4 : size[0] // 4 + size[0], size[1] // 4 : size[1] // 4 + size[1]]  # fmt: skip
    tone = tone + creases * draws.map(-0.1, 0.3).clamp(min=0)
    tone = tone + draws.clouds(size, (3, 3)) * draws.map(0, 0.22)
    tone = tone + draws.clouds(size, (12, 12)) * draws.map(0, 0.08) + draws.grain(size) * draws.map(0, 0.04)
    darkest, lightest = draws.map(0.05, 0.5), draws.map(0.7, 1.0)
    return darkest + (lightest - darkest) * tone.clamp(0, 1)


def _finish(brightness: torch.Tensor, cut_out: torch.Tensor, draws: RandomDraws) -> torch.Tensor:
    """Put together as bytes: scraps of the background kept, or all of it; blurred or sharpened; most as bright as they can be."""
    size = brightness.shape[2], brightness.shape[3]
    ground = (draws.map(0.1, 0.9) + draws.clouds(size, (6, 6)) * 0.1).clamp(0, 1)
    scraps = ((draws.clouds(size, (5, 5)) - draws.map(1.2, 2.4)) * 4).clamp(0, 1) * draws.chance(0.25)[:, None, None, None]
    scraps = torch.where(draws.chance(0.06)[:, None, None, None], torch.ones_like(scraps), scraps)
    whole = brightness * cut_out + ground * scraps * (1 - cut_out)
    blurred = F.avg_pool2d(F.pad(whole, (1, 1, 1, 1), mode="replicate"), 3, 1)
    whole = whole + (blurred - whole) * draws.map(-1.0, 0.6)  # below 0 it sharpens
    largest = torch.where(draws.chance(0.7), whole.amax(dim=(1, 2, 3)).clamp(min=0.3), torch.ones_like(whole[:, 0, 0, 0]))
    return (whole / largest[:, None, None, None] * 255).round().clamp(0, 255).to(torch.uint8)
