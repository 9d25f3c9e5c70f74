"""Prepare a photo as the images of the dataset were made. Every step is kept, so that it can be shown."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gingham.data.decode import FORMAT_LIST, LARGEST_PIXELS, decoded_pixels, fit_square, is_16_bit, open_image, to_8_bit
from gingham.errors import DataError, one_line

ImageArray = npt.NDArray[Any]  # uint8; OpenCV's type hints are not more specific
OBJECT_SIDE = 224  # pixels of the longest side at which an object is searched for
NEARLY_EQUAL = 0.02  # novelty scores
MIN_CONTRAST = 20  # between an object and its background
OUTLINES = (0.5, 0.7)  # shares of the largest contrast from which pixels belong to the object
THICKNESSES = (0.0, 0.03, 0.06)  # added around lines, as shares of the object's length: a pen's lines are thin


@dataclass(frozen=True)
class Step:
    """One preprocessing step: its `name`, a `note` on what it did, and the `image` after it, uint8 (H, W, 3)."""

    name: str
    note: str
    image: ImageArray


@dataclass(frozen=True)
class PreparedPhoto:
    """A prepared photo: uint8 `framings` (V, C, H, W), the model's inputs, whose probabilities are averaged, and the
    steps that led to them. `is_photo` is whether the thresholds for photos apply."""

    framings: ImageArray
    steps: tuple[Step, ...]
    is_photo: bool = False

    @property
    def image(self) -> ImageArray:
        """The first framing, uint8 (C, H, W): the one that is shown."""
        return np.asarray(self.framings[0])

    @property
    def notes(self) -> list[str]:
        """What each step did, one note per step."""
        return [step.note for step in self.steps]


def open_photo(
    file: Path | bytes, name: str | None = None, max_pixels: int = LARGEST_PIXELS, grey_bits: int = 16
) -> Image.Image:
    """Return an image file, rotated as its EXIF data says: RGB, or RGBA if it has transparency; only the first frame.

    `file` is a path or the content of a file; errors call it `name`. The values of 16-bit grey are scaled as numbers of
    `grey_bits` bits: pass a run's `grey_bits`, which are those of its training images. A JPEG is decoded at full size:
    decoding it at a fraction would be faster, but browsers cannot, and the web page must give the same predictions.

    Raises
        DataError: the file is missing, not an image, damaged, or has more than `max_pixels` pixels (default: 120
        million).
    """
    name = name or ("the image" if isinstance(file, bytes) else str(file))
    if isinstance(file, Path) and os.path.isdir(file):  # noqa: PTH112  # is_dir() raises for a name that is too long
        raise DataError(f"{name} is a folder; give images in it of the formats {FORMAT_LIST}, or a folder with some")
    try:
        with open_image(file) as image:
            if decoded_pixels(image) <= max_pixels:
                return _to_upright_rgb(image, grey_bits)
            size = f"{image.width}x{image.height} pixels"
    except Image.DecompressionBombError:  # Pillow's own limit applies first if it is lower
        size = "far too many pixels"
    except FileNotFoundError:
        remedy = "download it first" if name.startswith(("http:", "https:")) else f"give an image: {FORMAT_LIST}"
        raise DataError(f"there is no file {name}; {remedy}") from None
    # On a damaged file Pillow raises errors of nearly any type, including AssertionError and MemoryError.
    except Exception as error:
        reason = one_line(error).replace(name, "").strip(" '")
        raise DataError(
            f"cannot read {name} as an image ({reason}); it is damaged, or none of {FORMAT_LIST}: save it again"
        ) from error
    allowed = f"allowed: {max_pixels:,} in all; make it smaller: 1000 on each side are enough"
    raise DataError(f"{name} has {size}; {allowed}")


def _to_upright_rgb(image: Image.Image, grey_bits: int) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # avoid conversions: each copy may take 200 MB
    if is_16_bit(image):
        return to_8_bit(image, grey_bits).convert("RGB")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    image.load()
    return image if image.mode == mode else image.convert(mode)


def is_input_like(photo: Image.Image, shape: tuple[int, int, int]) -> bool:
    """Return whether a photo has the size and the colours of a model's images, of `shape` (C, H, W)."""
    if photo.size != (shape[2], shape[1]):
        return False
    pixels = np.asarray(photo.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all()) == (shape[0] == 1)


def prepare_candidates(
    photo: Image.Image,
    shape: tuple[int, int, int],
    background: float | None,
    object_share: float | None,
    is_input: bool,
) -> list[PreparedPhoto]:
    """Return the ways to prepare a photo for a model of `shape` (C, H, W) that is not of garments, at least one.

    An image that `is_input_like` the model's is used unchanged, unless the model is grey and the `background` of its
    training images differs. A photo for a grey model is prepared with both polarities, and as an object on a plain
    background. `background` and `object_share` are as in `prepare_object`, or None if unknown.
    """
    unchanged = [resize_photo(photo, shape)] if is_input else []
    if shape[0] != 1 or background is None:
        return unchanged or [prepare_plain(photo, shape)]
    if is_input and not _has_other_background(unchanged[0].image[0], background):
        return unchanged
    polarities = [prepare_plain(photo, shape, background, inverted=inverted) for inverted in (False, True)]
    objects = prepare_object(photo, shape, background, object_share) if object_share else []
    return [*unchanged, *polarities, *objects]


def least_novel(candidates: Sequence[PreparedPhoto], novelty: Sequence[float]) -> PreparedPhoto:
    """Return the candidate with the lowest of these novelty scores, with a step that says so.

    Of scores that differ by less than NEARLY_EQUAL the first counts: candidates may have equal pixels, and PyTorch and
    ONNX Runtime must choose the same one, whatever the rounding.
    """
    lowest = min(novelty)
    pairs = zip(candidates, novelty, strict=True)
    best = next((candidate for candidate, score in pairs if score < lowest + NEARLY_EQUAL), candidates[0])
    note = f"of {len(candidates)} preparations, the one most like the training images"
    return replace(best, steps=(*best.steps, replace(best.steps[-1], name="choice", note=note)))


def prepare_plain(
    photo: Image.Image, shape: tuple[int, int, int], background: float | None = None, *, inverted: bool = False
) -> PreparedPhoto:
    """Return a photo prepared as image files of a dataset are: the whole photo in a square, with its proportions kept.

    `photo` is returned by `open_photo`, `shape` is (C, H, W). `background` is the median value at the border of the
    model's training images, from 0 to 255, or None if unknown. For a grey model, the photo is `inverted` if you ask for
    it, and if the background is black, as in MNIST, the border is made black.
    """
    channels, height, width = shape
    square = fit_square(photo, max(height, width)).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(square)
    padding = "" if photo.width == photo.height else ", padded with the colour of its border"
    note = f"scaled to fit {width}x{height} pixels{padding}"
    steps = [make_step("size", note, pixels)]
    if channels == 1 and background is not None:
        if inverted:
            pixels = 255 - pixels
            steps.append(make_step("tone", "inverted", pixels))
        if background < 16:
            above_border = (pixels.astype(np.float32) - _median_edge(pixels) - 8).clip(0)
            pixels = (above_border / max(float(above_border.max()), 32) * 255).astype(np.uint8)
            steps.append(make_step("contrast", "background set to black, contrast stretched", pixels))
    return _prepared(pixels, steps)


def _has_other_background(pixels: ImageArray, background: float) -> bool:
    """Return whether the border of grey pixels (H, W) is much lighter or darker than the `background`."""
    return abs(_median_edge(pixels) - background) > 96


def _median_edge(pixels: ImageArray) -> float:
    return float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))


def prepare_object(
    photo: Image.Image, shape: tuple[int, int, int], background: float, object_share: float
) -> list[PreparedPhoto]:
    """Return preparations of a photo of an object on a plain background, such as a digit on paper, for a grey model:
    all combinations of two outlines, three thicknesses of its lines and two ways to centre it. The list is empty if
    there is no such object.

    The background may be unevenly lit and have lines that are fainter than the object. `background` is as in
    `prepare_plain`; `object_share` is the length of the objects in the training images, as a share of the image.
    """
    small = photo.copy()
    small.thumbnail((OBJECT_SIDE, OBJECT_SIDE), Image.Resampling.LANCZOS)
    colour = np.asarray(to_8_bit(small).convert("RGB"))
    grey = cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY)
    ground = cv2.medianBlur(grey, max(3, min(grey.shape) // 4 * 2 + 1))
    contrast = max(cv2.subtract(ground, grey), cv2.subtract(grey, ground), key=lambda image: int(image.sum()))
    level = int(cv2.blur(contrast, (3, 3)).max())
    if level < MIN_CONTRAST:
        return []
    length = round(object_share * max(shape[1:]))
    prepared = []
    for outline, thickness, by_mass in itertools.product(OUTLINES, THICKNESSES, (True, False)):
        mask = _main_components((contrast > outline * level).astype(np.uint8))
        tone = np.minimum(contrast.astype(np.int32) * 255 // level, 255) * cv2.dilate(mask, np.ones((3, 3), np.uint8))
        left, top, width, height = cv2.boundingRect(mask)
        radius = round(thickness * max(width, height))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        tone, mask = (cv2.dilate(np.pad(image.astype(np.uint8), radius), kernel) for image in (tone, mask))
        left, top, width, height = cv2.boundingRect(mask)
        steps = [make_step("object", f"cropped to {width}x{height} of {small.width}x{small.height} pixels", tone)]
        pixels = _frame(tone[top : top + height, left : left + width], shape[1:], length, by_mass=by_mass)
        pixels = pixels if background < 128 else 255 - pixels
        note = f"longer side scaled to {length} pixels, centred by its {'mass' if by_mass else 'edges'}"
        steps.append(
            make_step("size", note + (f", lines thickened by {2 * thickness:.0%}" if thickness else ""), pixels)
        )
        prepared.append(_prepared(pixels, steps))
    return prepared


def _main_components(mask: ImageArray) -> ImageArray:
    """Return the connected components of a mask that have at least a tenth of the area of the largest. Those at the
    border are left out if there are others, because they are lines of the paper or its edge."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    left, top, width, height, areas = stats.T
    at_border = (left == 0) | (top == 0) | (left + width == mask.shape[1]) | (top + height == mask.shape[0])
    kept = np.arange(count) > 0  # component 0 is the background
    if (kept & ~at_border).any():
        kept &= ~at_border
    kept &= areas >= 0.1 * areas[kept].max(initial=1)
    return np.asarray(kept[components].astype(np.uint8))


def _frame(tone: ImageArray, size: Sequence[int], length: int, *, by_mass: bool) -> ImageArray:
    """Return a grey image scaled to a `length` of its longer side, or less if it would not fit, with full contrast, on
    black of `size` (H, W). It is centred by its centre of mass, as in MNIST, or by its edges."""
    scale = min(length / max(tone.shape), size[0] / tone.shape[0], size[1] / tone.shape[1])
    rows, columns = (max(1, round(side * scale)) for side in tone.shape)
    small = cv2.resize(tone, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.int64)
    small = small * 255 // max(1, int(small.max()))
    corner = []
    for axis, (side, full) in enumerate(zip(small.shape, size, strict=True)):
        sums = small.sum(axis=1 - axis)
        middle = (sums @ np.arange(side)) / max(1, int(sums.sum())) + 0.5 if by_mass else side / 2
        corner.append(min(max(math.floor(full / 2 - middle + 0.5), 0), full - side))
    frame = np.zeros(size, np.uint8)
    frame[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = small
    return frame


def resize_photo(photo: Image.Image, shape: tuple[int, int, int]) -> PreparedPhoto:
    """Return a photo only resized to `shape`, (C, H, W), without keeping its proportions."""
    channels, height, width = shape
    note = "used unchanged" if photo.size == (width, height) else f"only resized to {width}x{height} pixels"
    small = to_8_bit(photo).convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(small)
    return _prepared(pixels, [make_step("size", note, pixels)])


def _prepared(pixels: ImageArray, steps: Sequence[Step]) -> PreparedPhoto:
    """Return the prepared photo with pixels (H, W) or (H, W, 3) as its only framing."""
    return PreparedPhoto(np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))[None], tuple(steps))


def make_step(name: str, note: str, pixels: ImageArray) -> Step:
    """Return a step whose image is pixels (H, W) or (H, W, 3), grey ones repeated in three channels."""
    return Step(name, note, np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)))
