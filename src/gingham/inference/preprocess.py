"""Prepare a photo like the images of the dataset. Every step is kept, so that it can be shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gingham.data.decode import FORMATS, LARGEST_PIXELS, fit_square, open_image, to_8_bit
from gingham.errors import DataError, one_line

ImageArray = npt.NDArray[Any]  # uint8; OpenCV's type hints know no more
Mask = npt.NDArray[np.bool_]
WORKING_SIDE = 160  # pixels of the longest side at which the garment is segmented: more finds no more and takes longer
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
        first: ImageArray = self.framings[0]
        return first

    @property
    def notes(self) -> list[str]:
        """What each step did, one note per step."""
        return [step.note for step in self.steps]


def open_photo(file: Path | bytes, name: str | None = None, max_pixels: int = LARGEST_PIXELS) -> Image.Image:
    """Return an image file, rotated as its EXIF data says: RGB, or RGBA if it has transparency; only the first frame.

    `file` is a path or the content of a file; errors call it `name`. A JPEG is decoded at full size: decoding it at a
    fraction would be faster, but browsers cannot, and the web page must give the same predictions.

    Raises
        DataError: the file is missing, not an image, damaged, or has more than `max_pixels` pixels (default: 120
        million).
    """
    display_name = name or ("the picture" if isinstance(file, bytes) else str(file))
    try:
        with open_image(file) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{display_name} has {width}x{height} pixels; allowed: {max_pixels:,} in all; make it smaller, "
                    "1000 a side are plenty"
                )
            return _to_upright_rgb(image)
    except FileNotFoundError:
        raise DataError(f"there is no file {display_name}; name a picture: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit applies first if it is lower
        raise DataError(
            f"{display_name} has far too many pixels; allowed: {max_pixels:,} in all; make it smaller"
        ) from error
    except DataError:
        raise
    # On a damaged file Pillow raises errors of nearly any type, including AssertionError and MemoryError.
    except Exception as error:
        if isinstance(file, Path) and file.is_dir():
            raise DataError(
                f"{display_name} is a folder; name the pictures in it, such as {display_name}/*.jpg"
            ) from error
        raise DataError(
            f"cannot read {display_name} as a picture ({_error_reason(error, display_name)}); give a file of the "
            f"formats {', '.join(FORMATS)}"
        ) from error


def _error_reason(error: Exception, display_name: str) -> str:
    text = one_line(error)
    return "it is of no known format" if "BytesIO" in text else text.replace(display_name, "").strip(" '")


def _to_upright_rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # no needless conversions here: each copy may take 200 MB
    if image.mode == "I" or image.mode.startswith("I;16"):
        return to_8_bit(image).convert("RGB")
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
    note = f"shrunk to {width}x{height} in its own proportions, padded in the colour of its border"
    steps = [Step("size", note, np.asarray(square.convert("RGB")))]
    pixels = np.asarray(square)
    if channels == 1 and background is not None:
        border = float(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
        if abs(border - background) > 96:
            pixels, border = 255 - pixels, 255 - border
            steps.append(Step("tone", "made negative: the training pictures have the other background", _rgb(pixels)))
        if background < 16:
            above_border = (pixels.astype(np.float32) - border - 8).clip(0)
            pixels = (above_border / max(float(above_border.max()), 32) * 255).astype(np.uint8)
            steps.append(Step("contrast", "its background made black, what stands out of it light", _rgb(pixels)))
    image = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return PreparedPhoto(np.ascontiguousarray(image)[None], tuple(steps))


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
    colour = np.asarray(on_white(small))
    steps = [Step("photo", f"looked at {colour.shape[1]}x{colour.shape[0]} pixels", colour)]
    mask, note = _segment_garment(small, colour)
    steps.append(Step("garment", note, _dim_background(colour, mask)))

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    crop = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cropped_mask = mask[crop]
    height, width = cropped_mask.shape
    note = f"cropped to {width}x{height} of {colour.shape[1]}x{colour.shape[0]}"
    steps.append(Step("crop", note, colour[crop] * cropped_mask[..., None]))

    # A median filter removes wrinkles and weave, which would look like a printed pattern at 28 pixels.
    grey = cv2.cvtColor(cv2.medianBlur(colour, 3), cv2.COLOR_RGB2GRAY)[crop]
    is_negative = _is_negative(colour, mask)
    tone = grey if is_negative else 255 - grey
    note = (
        "is a negative already, light on black: kept"
        if is_negative
        else "made negative, as the dataset is: dark cloth turns light"
    )
    steps.append(Step("tone", note, _rgb(tone * cropped_mask)))

    core = cv2.erode(cropped_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the outline is half background
    low, high = np.percentile(tone[core if core.any() else cropped_mask], (0.5, 99.5))
    stretched = _stretch_contrast(tone, low, high) * cropped_mask
    steps.append(
        Step("contrast", f"contrast stretched from {low:.0f}-{high:.0f} to {MIN_GARMENT_VALUE}-255", _rgb(stretched))
    )

    size = shape[1:]
    image = _fit_centred(stretched, size)
    steps.append(Step("size", f"longer side brought to {max(size)} pixels, centred on black", _rgb(image)))
    narrow = _fit_centred(
        cv2.resize(image, (round(size[1] * NARROW_WIDTH), size[0]), interpolation=cv2.INTER_AREA), size
    )
    note = f"answered for at {NARROW_WIDTH:.0%} of its width too, as clothes lie wider than they hang"
    steps.append(Step("narrower", note, _rgb(narrow)))
    return PreparedPhoto(np.repeat(np.stack([image, narrow])[:, None], shape[0], axis=1), tuple(steps))


def _stretch_contrast(tone: ImageArray, low: float, high: float) -> ImageArray:
    share = np.clip((tone.astype(np.float32) - low) / max(high - low, 40), 0, 1)  # 40: cloth of one colour stays so
    stretched: ImageArray = (MIN_GARMENT_VALUE + share * (255 - MIN_GARMENT_VALUE)).astype(np.uint8)
    return stretched


def is_grey(image: Image.Image) -> bool:
    """Return whether all pixels of an image are grey."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def on_white(image: Image.Image) -> Image.Image:
    """Return an image in RGB, blended onto white where it is transparent."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _segment_garment(image: Image.Image, colour: ImageArray) -> tuple[Mask, str]:
    """Return the garment's mask, bool (H, W), never empty, and a note on how it was found."""
    if image.mode == "RGBA":
        opaque = np.asarray(image.getchannel("A")) > 127
        if 0 < opaque.mean() < 0.98:
            return opaque, f"cut out already: {opaque.mean():.0%} of the picture is not transparent"
    mask = _clean_mask(_grab_cut(colour) & ~_plain_background(colour))
    if mask.mean() < 0.005:
        return np.ones_like(mask), "no garment stands out from its background: the whole picture is taken"
    return mask, f"garment found: {mask.mean():.0%} of the picture"


def _grab_cut(colour: ImageArray) -> Mask:
    """Return the foreground that GrabCut finds, bool (H, W), from an ellipse in the centre; the border is background."""
    height, width = colour.shape[:2]
    border = max(1, round(0.03 * min(height, width)))
    rows, columns = np.mgrid[0:height, 0:width]
    ellipse = ((rows + 0.5) / height - 0.5) ** 2 + ((columns + 0.5) / width - 0.5) ** 2 < 0.45**2
    labels = np.where(ellipse, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[:border] = labels[-border:] = cv2.GC_BGD
    labels[:, :border] = labels[:, -border:] = cv2.GC_BGD
    if not (labels == cv2.GC_PR_FGD).any() or colour.reshape(-1, 3).std(axis=0).max() < 1:
        return np.zeros((height, width), bool)  # only a few pixels, or all of one colour: nothing to segment
    cv2.setRNGSeed(0)  # GrabCut's clusters start at random; the same photo must get the same prediction
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(cv2.cvtColor(colour, cv2.COLOR_RGB2BGR), labels, (0, 0, 1, 1), *models, 4, cv2.GC_INIT_WITH_MASK)
    mask: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return mask


def _plain_background(colour: ImageArray) -> Mask:
    """Return the pixels that are certainly background, bool (H, W): if the border has one colour, all pixels of that
    colour that are connected to it; else none.

    GrabCut penalizes long outlines, so it fills concave corners, such as the one below a sleeve. This removes them
    again.
    """
    border = np.concatenate(
        [
            colour[:2].reshape(-1, 3),
            colour[-2:].reshape(-1, 3),
            colour[:, :2].reshape(-1, 3),
            colour[:, -2:].reshape(-1, 3),
        ]
    )
    median = np.median(border, axis=0)
    spread = float(np.percentile(np.abs(border - median).max(axis=1), 90))
    if spread > 10:
        return np.zeros(colour.shape[:2], bool)
    similar = np.abs(colour - median).max(axis=2) <= max(12, 2 * spread)
    _, components = cv2.connectedComponents(similar.astype(np.uint8), connectivity=4)
    at_border = np.unique(np.concatenate([components[0], components[-1], components[:, 0], components[:, -1]]))
    background: Mask = similar & np.isin(components, at_border)
    return background


def _clean_mask(mask: Mask) -> Mask:
    """Return a mask without thin lines, gaps, pinholes, and components smaller than a tenth of the largest."""
    smooth = cv2.morphologyEx(
        mask.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    )
    smooth = cv2.morphologyEx(smooth, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _, components, stats, _ = cv2.connectedComponentsWithStats(smooth, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # component 0 is the background
    large = (areas >= 0.1 * max(areas.max(), 1))[components]
    _, holes, stats, _ = cv2.connectedComponentsWithStats((~large).astype(np.uint8), connectivity=4)
    pinholes = (stats[:, cv2.CC_STAT_AREA] < 0.003 * mask.size)[holes]
    cleaned: Mask = large | (pinholes & ~large)
    return cleaned


def _is_negative(colour: ImageArray, mask: Mask) -> bool:
    """Return whether a photo is grey on plain black, as the dataset's images are; cloth on a dark floor is neither."""
    background = colour[~mask]
    if not len(background):
        return False
    grey = int(np.ptp(colour.astype(np.int16), axis=2).max()) <= 24
    return bool(grey and np.percentile(background, 90) <= 8)


def _fit_centred(tone: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Return a grey image scaled to fit `size` (H, W), in the centre of black."""
    height, width = tone.shape
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = np.zeros(size, np.uint8)
    top, left = (size[0] - rows) // 2, (size[1] - columns) // 2
    image[top : top + rows, left : left + columns] = cv2.resize(tone, (columns, rows), interpolation=interpolation)
    return image


def _dim_background(colour: ImageArray, mask: Mask) -> ImageArray:
    dimmed: ImageArray = np.where(mask[..., None], colour, (colour * 0.2).astype(np.uint8))
    return dimmed


def _rgb(grey: ImageArray) -> ImageArray:
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)
