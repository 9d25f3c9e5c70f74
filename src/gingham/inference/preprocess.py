"""Prepare a photo as the images of the dataset were made. Every step is kept, so that it can be shown."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gingham.data.decode import FORMAT_LIST, LARGEST_PIXELS, decoded_pixels, fit_square, is_16_bit, open_image, to_8_bit
from gingham.errors import DataError, one_line

ImageArray = npt.NDArray[Any]  # uint8; OpenCV's type hints are not more specific
Mask = npt.NDArray[np.bool_]
WORKING_SIDE = 160  # pixels of the longest side at which the garment is segmented: larger is slower and no better
NARROW_WIDTH = 0.85  # share of the width in the second framing
MIN_GARMENT_VALUE = 65  # a garment's darkest value: its shape must stand out from black, whatever its colour


@dataclass(frozen=True)
class Step:
    """One preprocessing step: its `name`, a `note` on what it did, and the `image` after it, uint8 (H, W, 3)."""

    name: str
    note: str
    image: ImageArray


@dataclass(frozen=True)
class PreparedPhoto:
    """A prepared photo: uint8 `framings` (V, C, H, W), the model's inputs, whose probabilities are averaged, and the
    steps that led to them."""

    framings: ImageArray
    steps: tuple[Step, ...]

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
            f"cannot read {name} as an image ({reason}); give a file of the formats {FORMAT_LIST}"
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


def prepare_plain(photo: Image.Image, shape: tuple[int, int, int], background: float | None = None) -> PreparedPhoto:
    """Return a photo prepared as image files of a dataset are: the whole photo in a square, with its proportions kept.

    `photo` is returned by `open_photo`, `shape` is (C, H, W). `background` is the median value at the border of the
    model's training images, from 0 to 255, or None if unknown. For a grey model, a photo whose border differs much from
    it is inverted, and if it is black, as in MNIST, the border is made black.
    """
    channels, height, width = shape
    square = fit_square(photo, max(height, width)).convert("L" if channels == 1 else "RGB").resize((width, height))
    pixels = np.asarray(square)
    note = f"scaled to fit {width}x{height} pixels, padded with the colour of its border"
    steps = [_step("size", note, pixels)]
    if channels == 1 and background is not None:
        border = float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
        if abs(border - background) > 96:
            pixels, border = 255 - pixels, 255 - border
            steps.append(_step("tone", "inverted to match the background of the training images", pixels))
        if background < 16:
            above_border = (pixels.astype(np.float32) - border - 8).clip(0)
            pixels = (above_border / max(float(above_border.max()), 32) * 255).astype(np.uint8)
            steps.append(_step("contrast", "background set to black, contrast stretched", pixels))
    return _prepared(pixels, steps)


def prepare_garment(photo: Image.Image, shape: tuple[int, int, int] = (1, 28, 28)) -> PreparedPhoto:
    """Return a photo of a garment prepared as the images of Fashion-MNIST were: light on black, filling the frame.

    `photo` is returned by `open_photo`, of any size; `shape` is (C, H, W), C copies of a grey image. The steps: segment
    the garment (by transparency if the file has any, else by GrabCut from the centre), crop to it, convert it to grey,
    invert it (unless it is a negative already), stretch the contrast, scale the longer side to the frame, centre. There
    are two framings, the second at 85 % of the width: garments that lie flat are wider than those in the dataset.

        prepared = prepare_garment(open_photo(Path("shirt.jpg")))
        prepared.image.shape, prepared.notes       # (1, 28, 28), what each step did

    Source: the order of the steps is that of Xiao, Rasul & Vollgraf, "Fashion-MNIST" (arXiv 1708.07747), whose photos
    had plain backgrounds; Rother, Kolmogorov & Blake, "GrabCut" (2004), through OpenCV.
    """
    small = photo.copy()
    small.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    colour = np.asarray(to_8_bit(small).convert("RGB"))
    whole = f"{colour.shape[1]}x{colour.shape[0]}"
    steps = [_step("photo", f"processed at {whole} pixels", colour)]
    mask, note = _segment_garment(small, colour)
    steps.append(_step("garment", note, np.where(mask[..., None], colour, (colour * 0.2).astype(np.uint8))))

    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = (slice(top, top + height), slice(left, left + width))
    cropped_mask = mask[crop]
    note = f"cropped to {width}x{height} of {whole} pixels"
    steps.append(_step("crop", note, colour[crop] * cropped_mask[..., None]))

    # A median filter removes wrinkles and weave, which would look like a printed pattern at 28 pixels.
    tone = cv2.cvtColor(cv2.medianBlur(colour, 3), cv2.COLOR_RGB2GRAY)[crop]
    if _is_negative(colour, mask):
        note = "not inverted: already light on black"
    else:
        tone, note = 255 - tone, "inverted: dark cloth becomes light, as in the dataset"
    steps.append(_step("tone", note, tone * cropped_mask))

    core = cv2.erode(cropped_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the outline is half background
    low, high = np.percentile(tone[core if core.any() else cropped_mask], (0.5, 99.5))
    # At least 40, so that the contrast of cloth of one colour is not exaggerated.
    share = np.clip((tone.astype(np.float32) - low) / max(high - low, 40), 0, 1)
    tone = (MIN_GARMENT_VALUE + share * (255 - MIN_GARMENT_VALUE)).astype(np.uint8) * cropped_mask
    steps.append(_step("contrast", f"contrast stretched from {low:.0f}-{high:.0f} to {MIN_GARMENT_VALUE}-255", tone))

    size = shape[1:]
    image = _fit_centred(tone, size)
    steps.append(_step("size", f"longer side scaled to {max(size)} pixels, centred on black", image))
    narrow_size = round(size[1] * NARROW_WIDTH), size[0]
    narrow = _fit_centred(cv2.resize(image, narrow_size, interpolation=cv2.INTER_AREA), size)
    note = f"also classified at {NARROW_WIDTH:.0%} of the width, because clothes lying flat are wider"
    steps.append(_step("narrower", note, narrow))
    return PreparedPhoto(np.repeat(np.stack([image, narrow])[:, None], shape[0], axis=1), tuple(steps))


def resize_photo(photo: Image.Image, shape: tuple[int, int, int]) -> PreparedPhoto:
    """Return a photo only resized to `shape`, (C, H, W), without keeping its proportions."""
    channels, height, width = shape
    note = "used unchanged" if photo.size == (width, height) else f"only resized to {width}x{height} pixels"
    small = to_8_bit(photo).convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    pixels = np.asarray(small)
    return _prepared(pixels, [_step("size", note, pixels)])


def _prepared(pixels: ImageArray, steps: Sequence[Step]) -> PreparedPhoto:
    """Return the prepared photo with pixels (H, W) or (H, W, 3) as its only framing."""
    return PreparedPhoto(np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))[None], tuple(steps))


def _step(name: str, note: str, pixels: ImageArray) -> Step:
    """Return a step whose image is pixels (H, W) or (H, W, 3), grey ones repeated in three channels."""
    return Step(name, note, np.broadcast_to(np.atleast_3d(pixels), (*pixels.shape[:2], 3)))


def _segment_garment(image: Image.Image, colour: ImageArray) -> tuple[Mask, str]:
    """Return the garment's mask, bool (H, W), never empty, and a note on how it was found."""
    if image.mode == "RGBA":
        opaque = np.asarray(image.getchannel("A")) > 127
        if 0 < opaque.mean() < 0.98:
            return opaque, f"already cut out: {opaque.mean():.0%} of the photo is opaque"
    mask = _clean_mask(_grab_cut(colour) & ~_plain_background(colour))
    if mask.mean() < 0.005:
        return np.ones_like(mask), "no garment found: the whole photo is used"
    return mask, f"garment found: {mask.mean():.0%} of the photo"


def _grab_cut(colour: ImageArray) -> Mask:
    """Return the foreground that GrabCut finds from an ellipse in the centre, bool (H, W); the border is background."""
    height, width = colour.shape[:2]
    border = max(1, round(0.03 * min(height, width)))
    rows, columns = np.mgrid[0:height, 0:width]
    ellipse = ((rows + 0.5) / height - 0.5) ** 2 + ((columns + 0.5) / width - 0.5) ** 2 < 0.45**2
    inner = slice(border, -border), slice(border, -border)
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[inner] = np.where(ellipse, cv2.GC_PR_FGD, cv2.GC_PR_BGD)[inner]
    if not (labels == cv2.GC_PR_FGD).any() or colour.reshape(-1, 3).std(axis=0).max() < 1:
        return np.zeros((height, width), bool)  # only a few pixels, or all of one colour: nothing to segment
    cv2.setRNGSeed(0)  # GrabCut's clusters start at random; the same photo must get the same prediction
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(cv2.cvtColor(colour, cv2.COLOR_RGB2BGR), labels, (0, 0, 1, 1), *models, 4, cv2.GC_INIT_WITH_MASK)
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _plain_background(colour: ImageArray) -> Mask:
    """Return the pixels that are certainly background, bool (H, W): if the border has one colour, all pixels of that
    colour that are connected to it; else none.

    GrabCut penalizes long outlines, so it fills concave corners, such as the one below a sleeve. This removes them
    again.
    """
    edges = colour[:2], colour[-2:], colour[:, :2], colour[:, -2:]
    border = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    median = np.median(border, axis=0)
    spread = float(np.percentile(np.abs(border - median).max(axis=1), 90))
    if spread > 10:
        return np.zeros(colour.shape[:2], bool)
    similar: Mask = np.abs(colour - median).max(axis=2) <= max(12, 2 * spread)
    _, components = cv2.connectedComponents(similar.astype(np.uint8), connectivity=4)
    at_border = np.unique(np.concatenate([components[0], components[-1], components[:, 0], components[:, -1]]))
    return similar & np.isin(components, at_border)


def _clean_mask(mask: Mask) -> Mask:
    """Return a mask without thin lines, gaps, pinholes, and components smaller than a tenth of the largest."""
    smooth: ImageArray = mask.astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
        smooth = cv2.morphologyEx(smooth, operation, kernel)
    areas = _component_areas(smooth, connectivity=8)
    large: Mask = areas >= 0.1 * max(areas.max(), 1)
    return large | (_component_areas(~large, connectivity=4) < 0.003 * mask.size)


def _component_areas(mask: ImageArray, connectivity: int) -> npt.NDArray[np.int32]:
    """Return for each pixel the area of its connected component in a mask, 0 outside of the mask."""
    _, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    stats[0] = 0  # component 0 is the background
    return np.asarray(stats[:, cv2.CC_STAT_AREA][components])


def _is_negative(colour: ImageArray, mask: Mask) -> bool:
    """Return whether a photo is grey on plain black, as the dataset's images are; cloth on a dark floor is neither."""
    background = colour[~mask]
    grey = np.ptp(colour.astype(np.int16), axis=2).max() <= 24
    return bool(grey and len(background) and np.percentile(background, 90) <= 8)


def _fit_centred(tone: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Return a grey image scaled to fit `size` (H, W), in the centre of black."""
    height, width = tone.shape
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = cv2.resize(tone, (columns, rows), interpolation=interpolation)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    return np.pad(small, ((top, size[0] - rows - top), (left, size[1] - columns - left)))
