"""Turn a photo into an image like those of the dataset. Every step is kept, so that it can be shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from gingham.data.decode import FORMATS, LARGEST_PIXELS, fit_square, open_image, to_8_bit
from gingham.errors import DataError, one_line

Bytes = npt.NDArray[Any]  # uint8; OpenCV's type hints know no more
Mask = npt.NDArray[np.bool_]
WORKING_SIDE = 160  # the garment is looked for at this size, longest side in pixels: finer finds no more and takes longer
NARROWER = 0.85  # of its width, for the second framing


@dataclass(frozen=True)
class Step:
    """One step of a preparation: its `name`, what it did in words, and the picture after it, uint8 (H, W, 3)."""

    name: str
    note: str
    image: Bytes


@dataclass(frozen=True)
class PreparedPhoto:
    """A prepared photograph: uint8 `framings` (V, C, H, W), the pictures a model is to answer for, whose probabilities are
    averaged, and the steps that led to them."""

    framings: Bytes
    steps: tuple[Step, ...]

    @property
    def image(self) -> Bytes:
        """The first of the framings, uint8 (C, H, W): the one that is shown."""
        first: Bytes = self.framings[0]
        return first

    @property
    def notes(self) -> list[str]:
        """What was done, a sentence a step."""
        return [step.note for step in self.steps]


def open_photo(file: Path | bytes, name: str | None = None, largest: int = LARGEST_PIXELS) -> Image.Image:
    """Return an image file upright, as its EXIF data says: RGB, or RGBA where it has transparency; the first frame alone.

    `file` is a path or what is in a file; `name` is what errors call it. A JPEG is decoded whole: at a
    fraction of its size would be quicker, but a browser cannot, and a page is to answer the same.

    Raises
        DataError: missing, no picture, damaged, or of more than `largest` pixels (120 million unless told).
    """
    called = name or ("the picture" if isinstance(file, bytes) else str(file))
    try:
        with open_image(file) as image:
            width, height = image.size
            if width * height > largest:
                raise DataError(
                    f"{called} has {width}x{height} pixels; allowed: {largest:,} in all; make it smaller, 1000 a side are plenty"
                )
            return _upright(image)
    except FileNotFoundError:
        raise DataError(f"there is no file {called}; name a picture: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:  # Pillow's own limit comes first where it is lower
        raise DataError(f"{called} has far too many pixels; allowed: {largest:,} in all; make it smaller") from error
    except DataError:
        raise
    # In a damaged file Pillow meets errors of nearly any type, failed asserts and want of memory too.
    except Exception as error:
        if isinstance(file, Path) and file.is_dir():
            raise DataError(f"{called} is a folder; name the pictures in it, such as {called}/*.jpg") from error
        raise DataError(
            f"cannot read {called} as a picture ({_reason(error, called)}); give a file of the formats {', '.join(FORMATS)}"
        ) from error


def _reason(error: Exception, called: str) -> str:
    text = one_line(error)
    return "it is of no known format" if "BytesIO" in text else text.replace(called, "").strip(" '")


def _upright(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # and no conversion for nothing: each copy may take 200 MB
    if image.mode == "I" or image.mode.startswith("I;16"):
        return to_8_bit(image).convert("RGB")
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    image.load()
    return image if image.mode == wanted else image.convert(wanted)


def prepare_plain(photo: Image.Image, shape: tuple[int, int, int], background: float | None = None) -> PreparedPhoto:
    """Return a photograph as the files of an own dataset are read: whole, in its own proportions, in a square.

    `photo` is what `open_photo` gives, `shape` is (C, H, W). `background` is the median value around the model's training
    pictures, from 0 to 255, where it is known: a grey picture with a light border becomes negative, and its border black,
    for a model that has learned from light objects on black, such as MNIST's digits; and the other way round.
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
            lifted = (pixels.astype(np.float32) - border - 8).clip(0)
            pixels = (lifted / max(float(lifted.max()), 32) * 255).astype(np.uint8)
            steps.append(Step("contrast", "its background made black, what stands out of it light", _rgb(pixels)))
    picture = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return PreparedPhoto(np.ascontiguousarray(picture)[None], tuple(steps))


def prepare_garment(photo: Image.Image, shape: tuple[int, int, int] = (1, 28, 28)) -> PreparedPhoto:
    """Return a photograph of a garment as the pictures of Fashion-MNIST were made: light on black, filling the frame.

    `photo` is what `open_photo` gives, of any size; `shape` is (C, H, W), C copies of a grey picture. The steps: find the
    garment (by transparency where the file has some, else GrabCut from the middle outwards), crop to it, make it grey
    and negative (unless it is one already), stretch the contrast, bring the longer side to the frame's, centre. There
    are two framings, the second at 85 % of its width: clothes lie wider than the dataset's hang.

        prepared = prepare_garment(open_photo(Path("shirt.jpg")))
        prepared.image.shape, prepared.notes       # (1, 28, 28), what was done

    Source: the order of the steps is that of Xiao, Rasul & Vollgraf, "Fashion-MNIST" (arXiv 1708.07747), whose photographs
    had plain backgrounds; Rother, Kolmogorov & Blake, "GrabCut" (2004), through OpenCV.
    """
    small = photo.copy()
    small.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.LANCZOS)
    colour = np.asarray(on_white(small))
    steps = [Step("photo", f"looked at {colour.shape[1]}x{colour.shape[0]} pixels", colour)]
    found, note = _find(small, colour)
    steps.append(Step("garment", note, _dimmed(colour, found)))

    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = found[window]
    height, width = inside.shape
    steps.append(
        Step("crop", f"cropped to {width}x{height} of {colour.shape[1]}x{colour.shape[0]}", colour[window] * inside[..., None])
    )

    # A median takes out wrinkles and weave, which a picture of 28 pixels shows as patterns that are none.
    grey = cv2.cvtColor(cv2.medianBlur(colour, 3), cv2.COLOR_RGB2GRAY)[window]
    negative = _is_negative(colour, found)
    tone = grey if negative else 255 - grey
    words = (
        "is a negative already, light on black: kept"
        if negative
        else "made negative, as the dataset is: dark cloth turns light"
    )
    steps.append(Step("tone", words, _rgb(tone * inside)))

    core = cv2.erode(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the outline is half background
    low, high = np.percentile(tone[core if core.any() else inside], (0.5, 99.5))
    lifted = _stretch(tone, low, high) * inside
    steps.append(Step("contrast", f"contrast stretched from {low:.0f}-{high:.0f} to {FLOOR}-255", _rgb(lifted)))

    side = shape[1:]
    picture = _centred(lifted, side)
    steps.append(Step("size", f"longer side brought to {max(side)} pixels, centred on black", _rgb(picture)))
    squeezed = _centred(cv2.resize(picture, (round(side[1] * NARROWER), side[0]), interpolation=cv2.INTER_AREA), side)
    steps.append(
        Step(
            "narrower", f"answered for at {NARROWER:.0%} of its width too, as clothes lie wider than they hang", _rgb(squeezed)
        )
    )
    return PreparedPhoto(np.repeat(np.stack([picture, squeezed])[:, None], shape[0], axis=1), tuple(steps))


FLOOR = 65  # the darkest that a garment becomes: its shape must show against black, whatever its colour


def _stretch(tone: Bytes, low: float, high: float) -> Bytes:
    share = np.clip((tone.astype(np.float32) - low) / max(high - low, 40), 0, 1)  # cloth of one colour stays of one colour
    stretched: Bytes = (FLOOR + share * (255 - FLOOR)).astype(np.uint8)
    return stretched


def is_grey(image: Image.Image) -> bool:
    """Return whether no pixel of an image has a colour."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def on_white(image: Image.Image) -> Image.Image:
    """Return an image in RGB, its transparent parts white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _find(image: Image.Image, colour: Bytes) -> tuple[Mask, str]:
    """Where the garment is, bool (H, W), never empty, and how it was found."""
    if image.mode == "RGBA":
        opaque = np.asarray(image.getchannel("A")) > 127
        if 0 < opaque.mean() < 0.98:
            return opaque, f"cut out already: {opaque.mean():.0%} of the picture is not transparent"
    found = _tidy(_grab(colour) & ~_plain_ground(colour))
    if found.mean() < 0.005:
        return np.ones_like(found), "no garment stands out from its background: the whole picture is taken"
    return found, f"garment found: {found.mean():.0%} of the picture"


def _grab(colour: Bytes) -> Mask:
    """GrabCut from an ellipse in the middle, the picture's rim being background."""
    height, width = colour.shape[:2]
    rim = max(1, round(0.03 * min(height, width)))
    down, across = np.mgrid[0:height, 0:width]
    middle = ((down + 0.5) / height - 0.5) ** 2 + ((across + 0.5) / width - 0.5) ** 2 < 0.45**2
    labels = np.where(middle, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[:rim] = labels[-rim:] = cv2.GC_BGD
    labels[:, :rim] = labels[:, -rim:] = cv2.GC_BGD
    if not (labels == cv2.GC_PR_FGD).any() or colour.reshape(-1, 3).std(axis=0).max() < 1:
        return np.zeros((height, width), bool)  # a few pixels, or all of one colour: there is nothing to tell apart
    cv2.setRNGSeed(0)  # its clusters start at random; the same photo must get the same answer
    cv2.grabCut(
        cv2.cvtColor(colour, cv2.COLOR_RGB2BGR),
        labels,
        (0, 0, 1, 1),
        np.zeros((1, 65)),
        np.zeros((1, 65)),
        4,
        cv2.GC_INIT_WITH_MASK,
    )
    found: Mask = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found


def _plain_ground(colour: Bytes) -> Mask:
    """What surely is background, bool (H, W): where the picture's rim is of one colour, all of that colour that reaches the rim.

    GrabCut counts edges, and fills the corner below an arm for the shorter one; on a plain ground nobody else would.
    """
    rim = np.concatenate(
        [colour[:2].reshape(-1, 3), colour[-2:].reshape(-1, 3), colour[:, :2].reshape(-1, 3), colour[:, -2:].reshape(-1, 3)]
    )
    middle = np.median(rim, axis=0)
    spread = float(np.percentile(np.abs(rim - middle).max(axis=1), 90))
    if spread > 10:
        return np.zeros(colour.shape[:2], bool)
    alike = np.abs(colour - middle).max(axis=2) <= max(12, 2 * spread)
    _, pieces = cv2.connectedComponents(alike.astype(np.uint8), connectivity=4)
    edges = np.unique(np.concatenate([pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]]))
    ground: Mask = alike & np.isin(pieces, edges)
    return ground


def _tidy(found: Mask) -> Mask:
    """Threads off, gaps and pinholes closed, and every piece gone that is below a tenth of the largest."""
    whole = cv2.morphologyEx(found.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    whole = cv2.morphologyEx(whole, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3)))
    _, pieces, sizes, _ = cv2.connectedComponentsWithStats(whole, connectivity=8)
    areas = sizes[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # what is not found
    kept = (areas >= 0.1 * max(areas.max(), 1))[pieces]
    _, holes, sizes, _ = cv2.connectedComponentsWithStats((~kept).astype(np.uint8), connectivity=4)
    filled = (sizes[:, cv2.CC_STAT_AREA] < 0.003 * found.size)[holes]
    tidy: Mask = kept | (filled & ~kept)
    return tidy


def _is_negative(colour: Bytes, found: Mask) -> bool:
    """Whether a picture is grey on plain black, as the dataset's own are: cloth on a dark floor is neither."""
    around = colour[~found]
    if not len(around):
        return False
    grey = int(np.ptp(colour.astype(np.int16), axis=2).max()) <= 24
    return bool(grey and np.percentile(around, 90) <= 8)


def _centred(tone: Bytes, side: tuple[int, int]) -> Bytes:
    height, width = tone.shape
    scale = min(side[0] / height, side[1] / width)
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.zeros(side, np.uint8)
    top, left = (side[0] - rows) // 2, (side[1] - columns) // 2
    picture[top : top + rows, left : left + columns] = cv2.resize(tone, (columns, rows), interpolation=way)
    return picture


def _dimmed(colour: Bytes, found: Mask) -> Bytes:
    shown: Bytes = np.where(found[..., None], colour, (colour * 0.2).astype(np.uint8))
    return shown


def _rgb(grey: Bytes) -> Bytes:
    return np.repeat(grey[..., None].astype(np.uint8), 3, axis=2)
