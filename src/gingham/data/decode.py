"""Decode image files in threads into square uint8 arrays."""

import contextlib
import io
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from gingham.errors import one_line

# Pillow opens many more, some of them by starting other programs; these are pictures and nothing else.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LARGEST_PIXELS = 120_000_000  # of a file: more than phones take, and 480 MB once decoded
LARGE = 16_000_000  # pixels; more than an ordinary photograph of a phone, and decoded one at a time
LARGEST_OWN_SIDE, DEFAULT_SIDE = 64, 28
TOGETHER = 512  # files handed to the threads at a time, so that few pictures wait to be stored
UNREADABLE = "cannot be read: "
_LARGE_ONES = threading.Lock()


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Return an image as a square of `size` pixels, whole and in its own proportions, of mode "L" or "RGB".

    It is turned as its EXIF data says and laid on white where it is transparent; then scaled, with antialiasing, until
    its longer side is `size`, and centred; what is left of the square takes the median colour of the image's own border.
    16 bits of grey become 8. The image given stays as it is.

    >>> fit_square(Image.new("RGB", (80, 40), "red"), 28).size
    (28, 28)

    Raises
        OSError: the image's file is damaged, which Pillow notices only now.
        ValueError: the pixels are floating-point numbers, of no range that is known.
    """
    return _fit(to_8_bit(ImageOps.exif_transpose(image)), size)


def _fit(flat: Image.Image, size: int) -> Image.Image:
    width, height = (max(1, round(side * size / max(flat.size))) for side in flat.size)
    # Large ones are first shrunk in whole steps, to three times the size: quicker, and hardly to be told apart.
    small = flat if flat.size == (width, height) else flat.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    if width == height:
        return small
    square = Image.new(small.mode, (size, size), _border_colour(small))
    square.paste(small, ((size - width) // 2, (size - height) // 2))
    return square


def to_8_bit(image: Image.Image) -> Image.Image:
    """Return an image with 8 bits a channel and nothing transparent, of mode "L" if it is grey by its kind, else "RGB".

    Raises
        ValueError: the pixels are floating-point numbers.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image.convert("I")).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 bits")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
        image = white
    return image.convert("L" if grey else "RGB")


def _border_colour(image: Image.Image) -> int | tuple[int, ...]:
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    colour = np.median(border, axis=0).round().astype(int)
    return int(colour) if image.mode == "L" else tuple(colour.tolist())


def open_image(file: Path | bytes) -> Image.Image:
    """Open an image file, or what is in one, of one of FORMATS; its pixels are decoded where they are first used.

    Raises
        OSError: it is missing, empty, not readable, no plain file, or not of these formats.
    """
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise OSError("it is no plain file")  # a pipe would be waited for without end
    if not (len(file) if isinstance(file, bytes) else file.stat().st_size):
        raise OSError("it is empty")
    return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)


def decode_image(file: Path, size: int) -> Image.Image:
    """Return an image file as a square picture: what `fit_square` gives, with large JPEGs decoded at a reduced scale.

    Raises
        OSError, ValueError: as `open_image` and `fit_square`, more than LARGEST_PIXELS, or what else Pillow meets in a damaged
            file.
    """
    with open_image(file) as image:
        return _square(image, size)


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise OSError(f"it has {width}x{height} pixels, of {LARGEST_PIXELS:,} allowed in all")
    image.draft(None, (3 * size, 3 * size))  # a JPEG of 12 megapixels is read 12 times as fast
    with _LARGE_ONES if image.width * image.height > LARGE else contextlib.nullcontext():
        ImageOps.exif_transpose(image, in_place=True)  # and no copy, as fit_square makes: each may take half a gigabyte
        return _fit(to_8_bit(image), size)


def common_side(files: Sequence[Path]) -> int:
    """Return the side in pixels that pictures keep: their own where all are squares of one size up to 64, else 28.

    Only the headers are read, no further than to the first picture that differs; files that cannot be read do not count.
    """
    found = set()
    with ThreadPoolExecutor(_threads()) as pool, silence_pillow():
        for group in _groups(files):
            found |= {size for size in pool.map(_size, group) if size}
            if len(found) > 1:
                return DEFAULT_SIDE
    width, height = found.pop() if found else (0, 0)
    return width if width == height and 0 < width <= LARGEST_OWN_SIDE else DEFAULT_SIDE


def _size(file: Path) -> tuple[int, int] | None:
    try:
        with open_image(file) as image:
            return image.size
    except Exception:  # noqa: BLE001  # as _read
        return None


@dataclass(frozen=True)
class DecodeResult:
    """What came of reading image files: the places in the list of those that were read, whether all of them are grey,
    what is odd, as (place, reason), and whether that may be different another time (a disk that failed, a permission)."""

    kept: list[int]
    grey: bool
    odd: list[tuple[int, str]]
    passing: bool


def decode_images(files: Sequence[Path], images: npt.NDArray[np.uint8], title: str) -> DecodeResult:
    """Read image files into the first rows of `images`, uint8 (N, 3, S, S), in order, with a bar on a terminal.

    A file that cannot be read is left out and named as odd, its reason beginning with UNREADABLE. Odd are, too, pictures of a
    format their name does not say, with several frames, far longer than wide, or smaller than S.
    """
    kept, odd, grey, passing = list[int](), list[tuple[int, str]](), True, False
    size = images.shape[-1]
    with silence_pillow(), ThreadPoolExecutor(_threads()) as pool, _bar(len(files), title) as bar:
        results = (result for group in _groups(files) for result in pool.map(_read, group, repeat(size)))
        for place, (pixels, reason, may_pass) in enumerate(results):
            if reason:
                odd.append((place, reason))
            passing |= may_pass
            if pixels is not None:
                grey = grey and (pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()))
                images[len(kept)] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
                kept.append(place)
            bar.update()
    return DecodeResult(kept, grey, odd, passing)


def _read(file: Path, size: int) -> tuple[npt.NDArray[np.uint8] | None, str | None, bool]:
    """A file's pixels (S, S) or (S, S, 3), what is odd about it, and whether that may be different another time."""
    try:
        with open_image(file) as image:
            reason = _oddity(image, file, size)
            return np.asarray(_square(image, size)), reason, False
    except Exception as error:  # noqa: BLE001  # in a damaged file Pillow meets errors of nearly any type
        errno = error.errno if isinstance(error, OSError) else None
        said = os.strerror(errno) if errno else one_line(error).replace(repr(str(file)), "").replace(str(file), "")
        return None, UNREADABLE + said.strip(), errno is not None or isinstance(error, MemoryError)


def _oddity(image: Image.Image, file: Path, side: int) -> str | None:
    named = Image.registered_extensions().get(file.suffix.lower())
    width, height = image.size
    if named != image.format and not {named, image.format} <= {"JPEG", "MPO"}:
        return f"is a {image.format} file, whatever its name says"
    # Of a phone's photograph, MPO, the others are what its brightness or depth is made from.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        return f"has {frames} frames, of which only the first counts"
    if max(width, height) > 4 * min(width, height):
        return f"is {width}x{height}, far from square"
    if max(width, height) < side:
        return f"is {width}x{height}, smaller than the {side}x{side} it would be trained at"
    return None


def _groups(files: Sequence[Path]) -> Iterator[Sequence[Path]]:
    return (files[start : start + TOGETHER] for start in range(0, len(files), TOGETHER))


def _threads() -> int:
    return min(8, 2 * (os.cpu_count() or 1))  # Pillow lets go of Python's lock while it decodes


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Silence what Pillow warns of and logs: metadata, pictures that are merely large, and errors that it then raises anyway."""
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _bar(count: int, title: str) -> "tqdm[None]":
    return tqdm(total=count, desc=title, unit=" pictures", disable=not sys.stderr.isatty(), leave=False)


def resize_images(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return pictures uint8 (N, C, H, W), C 1 or 3, as uint8 (N, C, size, size), each as `fit_square` does it."""
    resized = np.empty((len(images), images.shape[1], size, size), np.uint8)
    for row, picture in zip(resized, images, strict=True):
        image = Image.fromarray(picture[0] if len(picture) == 1 else np.ascontiguousarray(picture.transpose(1, 2, 0)))
        pixels = np.asarray(fit_square(image, size))
        row[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return resized
