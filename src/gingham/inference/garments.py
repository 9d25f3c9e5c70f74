"""Prepare a photo of a garment as the images of Fashion-MNIST were made."""

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from gingham.data.decode import to_8_bit
from gingham.inference.preprocess import ImageArray, PreparedPhoto, make_step

Mask = npt.NDArray[np.bool_]
WORKING_SIDE = 160  # pixels of the longest side at which the garment is segmented: larger is slower and no better
NARROW_WIDTH = 0.85  # share of the width in the second framing
MIN_DIFFERENCE = 5  # from a plain background, of 255: a white garment on white differs by little more
MIN_GARMENT_VALUE = 65  # a garment's darkest value: its shape must stand out from black, whatever its colour


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
    steps = [make_step("photo", f"processed at {whole} pixels", colour)]
    mask, note = _segment_garment(small, colour)
    steps.append(make_step("garment", note, np.where(mask[..., None], colour, (colour * 0.2).astype(np.uint8))))

    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    crop = (slice(top, top + height), slice(left, left + width))
    cropped_mask = mask[crop]
    note = f"cropped to {width}x{height} of {whole} pixels"
    steps.append(make_step("crop", note, colour[crop] * cropped_mask[..., None]))

    # A median filter removes wrinkles and weave, which would look like a printed pattern at 28 pixels.
    tone = cv2.cvtColor(cv2.medianBlur(colour, 3), cv2.COLOR_RGB2GRAY)[crop]
    if _is_negative(colour, mask):
        note = "not inverted: already light on black"
    else:
        tone, note = 255 - tone, "inverted: dark cloth becomes light, as in the dataset"
    steps.append(make_step("tone", note, tone * cropped_mask))

    core = cv2.erode(cropped_mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0  # the outline is half background
    low, high = np.percentile(tone[core if core.any() else cropped_mask], (0.5, 99.5))
    # At least 40, so that the contrast of cloth of one colour is not exaggerated.
    share = np.clip((tone.astype(np.float32) - low) / max(high - low, 40), 0, 1)
    tone = (MIN_GARMENT_VALUE + share * (255 - MIN_GARMENT_VALUE)).astype(np.uint8) * cropped_mask
    steps.append(
        make_step("contrast", f"contrast stretched from {low:.0f}-{high:.0f} to {MIN_GARMENT_VALUE}-255", tone)
    )

    size = shape[1:]
    image = _fit_centred(tone, size)
    steps.append(make_step("size", f"longer side scaled to {max(size)} pixels, centred on black", image))
    narrow_size = round(size[1] * NARROW_WIDTH), size[0]
    narrow = _fit_centred(cv2.resize(image, narrow_size, interpolation=cv2.INTER_AREA), size)
    note = f"also classified at {NARROW_WIDTH:.0%} of the width, because clothes lying flat are wider"
    steps.append(make_step("narrower", note, narrow))
    return PreparedPhoto(np.repeat(np.stack([image, narrow])[:, None], shape[0], axis=1), tuple(steps), is_photo=True)


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
    similar: Mask = np.abs(colour - median).max(axis=2) <= max(MIN_DIFFERENCE, spread)
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
