"""Decode image files in threads into square uint8 arrays."""

import contextlib
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from gingham.errors import one_line

# Pillow can open many more formats, some of them by starting other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIC")
FORMAT_LIST = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
HEIF_SUFFIXES = [".heic", ".heif", ".hif"]
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", *HEIF_SUFFIXES}
LARGEST_PIXELS = 120_000_000  # more than a photo from a phone has; 480 MB when decoded
LARGE_PIXELS = 16_000_000  # pixels; images with more are decoded one at a time
SMALL_FILE, TASK_SIZE = 1 << 12, 32  # bytes; how many small files a thread reads at a time
MAX_COMMON_SIDE, DEFAULT_SIDE = 64, 28
GROUP_SIZE = 512  # files per call of the thread pool, so that few decoded images wait to be stored
UNREADABLE = "cannot be read: "
GREY_BITS = (10, 12, 14, 16)  # of cameras and scanners whose values are stored in 16 bits
_LARGE_IMAGE_LOCK, _SMALL_FILES_LOCK = threading.Lock(), threading.Lock()
# The pixels of a file (C, S, S) or None, its issue or None, whether the error may be transient, the largest value of
# 16-bit grey, and the width and height in its header or None.
DecodedFile = tuple[npt.NDArray[np.uint8] | None, str | None, bool, int, tuple[int, int] | None]

# Pillow warns and logs about metadata, large images, and errors that it also raises. Both are hidden by default,
# because a user can do nothing about them. They are set once, because all threads share them. A program's own filters
# and handlers take precedence.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
logging.getLogger("PIL").addHandler(logging.NullHandler())


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Return an image fitted into a square of `size` pixels, of mode "L" or "RGB", with its proportions kept.

    The image is rotated as its EXIF data says, and transparency becomes white. It is then scaled, with antialiasing,
    until its longer side is `size`, and centred. The rest of the square gets the median colour of the image's border.
    16-bit grey becomes 8-bit.

    >>> fit_square(Image.new("RGB", (80, 40), "red"), 28).size
    (28, 28)

    Raises
        OSError: the image's file is damaged, which Pillow detects only when it reads the pixels.
        ValueError: the pixels are floating-point numbers, whose range is unknown.
    """
    return _fit(to_8_bit(ImageOps.exif_transpose(image)), size)


def _fit(image: Image.Image, size: int) -> Image.Image:
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    if image.size != (width, height):
        # Large images are first reduced by an integer factor, to about three times the size. This is faster and hardly
        # changes the result.
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    if width == height:
        return image
    square = Image.new(image.mode, (size, size), _border_colour(image))
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def is_16_bit(image: Image.Image) -> bool:
    """Return whether an image is grey with 16 bits per pixel. Its values may use fewer bits."""
    return image.mode == "I" or image.mode.startswith("I;16")


def to_8_bit(image: Image.Image, grey_bits: int = 16) -> Image.Image:
    """Return an image with 8 bits per channel and no transparency: of mode "L" if its mode is grey, else "RGB".

    The values of 16-bit grey are scaled as numbers of `grey_bits`.

    Raises
        ValueError: the pixels are floating-point numbers.
    """
    if is_16_bit(image):
        values = np.asarray(image.convert("I")).clip(0, (1 << grey_bits) - 1)
        return Image.fromarray((values >> (grey_bits - 8)).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 bits")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white")
        background.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
        image = background
    return image.convert("L" if grey else "RGB")


def _border_colour(image: Image.Image) -> tuple[int, ...]:
    pixels = np.atleast_3d(np.asarray(image))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return tuple(np.median(border, axis=0).round().astype(int).tolist())


def open_image(file: Path | bytes) -> Image.Image:
    """Open an image file, or the bytes of one, in one of FORMATS; its pixels are decoded when they are first used.

    Raises
        OSError: it is missing, empty, unreadable, not a regular file, damaged, or in another format.
        ImportError: it is a HEIC file, and pi-heif is not installed.
    """
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise OSError("it is not a regular file")  # reading a pipe could block forever
    if not (len(file) if isinstance(file, bytes) else file.stat().st_size):
        raise OSError("it is empty")
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
    except UnidentifiedImageError:
        raise OSError("its format is unknown") from None


def _open_heif(file: IO[bytes], name: str | bytes) -> ImageFile.ImageFile:
    """Open a HEIC file with pi-heif, which is imported only here, because most programs never need it."""
    try:
        from pi_heif import HeifImageFile

        image: ImageFile.ImageFile = HeifImageFile(file, name)
        return image
    except ImportError as error:
        reason = f"HEIC files need the package pi-heif, which cannot be imported ({one_line(error)})"
        raise ImportError(f"{reason}; install it, or save the image as a JPEG") from error
    except SyntaxError as error:  # Pillow would say that the format is unknown
        raise OSError(f"pi-heif cannot read this HEIC file: {one_line(error)}") from error


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS


# Pillow reads AVIF but not HEIC. The name differs from that of pi-heif's own plugin, which a program may register.
Image.register_open("HEIC", _open_heif, _is_heif)
Image.register_extensions("HEIF", HEIF_SUFFIXES)


def decoded_pixels(image: Image.Image) -> int:
    """Return how many pixels are decoded for an opened image: four times as many for an animated WEBP file, whose
    decoder holds four copies of its canvas."""
    return image.width * image.height * (4 if image.format == "WEBP" and getattr(image, "is_animated", False) else 1)


def _decode_square(image: Image.Image, size: int, grey_bits: int) -> tuple[Image.Image, int]:
    """Return an opened image as a square, as `fit_square` does, and the largest value of 16-bit grey, else 0.

    A large JPEG is decoded at a reduced scale.
    """
    width, height = image.size
    if decoded_pixels(image) > LARGEST_PIXELS:
        animated = " and is animated, which counts four times" if decoded_pixels(image) > width * height else ""
        raise OSError(f"it has {width}x{height} pixels{animated}, more than the {LARGEST_PIXELS:,} allowed")
    image.draft(None, (3 * size, 3 * size))  # decodes a JPEG of 12 megapixels 12 times as fast
    with _LARGE_IMAGE_LOCK if image.width * image.height > LARGE_PIXELS else contextlib.nullcontext():
        ImageOps.exif_transpose(image, in_place=True)  # without a copy, which may take half a gigabyte
        largest = int(np.asarray(image.convert("I")).max()) if is_16_bit(image) else 0
        return _fit(to_8_bit(image, grey_bits), size), largest


def _to_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image of mode "L" or "RGB" as uint8 (C, H, W)."""
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def common_side(sizes: Collection[tuple[int, int] | None]) -> int:
    """Return the side in pixels if all images are squares of one size up to 64, else 28.

    `sizes` are widths and heights; None, for files that cannot be read, is ignored.

    >>> common_side([(32, 32), None, (32, 32)]), common_side([(32, 32), (32, 30)])
    (32, 28)
    """
    sides = {side for size in sizes if size for side in size}
    return sides.pop() if len(sides) == 1 and max(sides) <= MAX_COMMON_SIDE else DEFAULT_SIDE


def read_size(file: Path | bytes) -> tuple[int, int] | None:
    """Return the width and height in the header of an image file or of its content, or None if it cannot be read."""
    with contextlib.suppress(Exception), open_image(file) as image:  # Pillow raises errors of nearly any type
        return image.size
    return None


def read_properties(file: Path) -> tuple[int, int, bool] | None:
    """Return the width and height of an image file and whether it has colours, or None if it cannot be read."""
    with contextlib.suppress(Exception), open_image(file) as image:
        size = image.size
        pixels = np.asarray(_decode_square(image, MAX_COMMON_SIDE, 16)[0].convert("RGB")).astype(np.int16)
        return (*size, bool(np.ptp(pixels, axis=2).mean() > 2))  # JPEG gives grey pixels a tint of up to 2
    return None


class DecodedImages(NamedTuple):
    """The images of some files.

    `images` is uint8 (N, C, S, S), with one channel if all are grey. `issues` are the files' issues as (index, reason).
    `transient` is whether any error may be transient, such as a failed disk or a missing permission. `cached` is
    whether the images come from a cache. `grey_bits` is how many bits the values of 16-bit grey use, over all files.
    `side` is the `common_side` of all files.
    """

    images: npt.NDArray[np.uint8]
    issues: list[tuple[int, str]]
    transient: bool = False
    cached: bool = False
    grey_bits: int = 16
    side: int = DEFAULT_SIDE

    @property
    def missing(self) -> list[int]:
        """The indices of the files that cannot be read."""
        return [index for index, reason in self.issues if reason.startswith(UNREADABLE)]


def decode_images(files: Sequence[Path], images: npt.NDArray[np.uint8], title: str, bits: int = 16) -> DecodedImages:
    """Decode image files into the first rows of `images`, uint8 (N, 3, S, S), in order, with a progress bar.

    If no 16-bit grey image uses all `bits`, the files are decoded again with the number of bits that they do use.

    A file that cannot be read is left out and becomes an issue whose reason starts with UNREADABLE. Other issues are a
    format that differs from the file name, several frames, a shape far from square, and images smaller than S.
    """
    count, grey, transient, largest = 0, True, False, 0
    issues, sizes = list[tuple[int, str]](), set[tuple[int, int] | None]()
    decoded = _decode_in_threads(files, images.shape[-1], bits)
    results = tqdm(decoded, title, len(files), unit=" images", disable=None, leave=False)
    for index, (pixels, reason, may_change, largest_value, size) in enumerate(results):
        sizes.add(size)
        if reason:
            issues.append((index, reason))
        transient |= may_change
        largest = max(largest, largest_value)
        if pixels is not None:
            grey = grey and (len(pixels) == 1 or bool((pixels == pixels[:1]).all()))
            images[count] = pixels
            count += 1
    used_bits = next((number for number in GREY_BITS if 0 < largest < 1 << number), bits)
    if used_bits < bits:
        return decode_images(files, images, title, used_bits)
    return DecodedImages(images[:count, : 1 if grey else 3], issues, transient, False, bits, common_side(sizes))


def _decode_file(file: Path, content: Path | bytes, side: int, grey_bits: int) -> DecodedFile:
    size = None
    try:
        with open_image(content) as image:
            size = image.size
            reason = _find_issue(image, file, side)
            square, largest = _decode_square(image, side, grey_bits)
            return _to_array(square), reason, False, largest, size
    except Exception as error:  # noqa: BLE001  # for damaged files Pillow raises errors of nearly any type
        errno = error.errno if isinstance(error, OSError) else None
        message = os.strerror(errno) if errno else one_line(error).replace(repr(str(file)), "").replace(str(file), "")
        may_change = errno is not None or isinstance(error, (MemoryError, ImportError))
        return None, UNREADABLE + message.strip(), may_change, 0, size


def _find_issue(image: Image.Image, file: Path, side: int) -> str | None:
    expected = Image.registered_extensions().get(file.suffix.lower())
    width, height = image.size
    if expected != image.format and not {expected, image.format} <= {"JPEG", "MPO"}:
        article = "an" if image.format == "AVIF" else "a"
        return f"is {article} {image.format} file, which does not match its name"
    # The other frames of MPO, a format of phones, contain brightness or depth.
    if (frames := getattr(image, "n_frames", 1)) > 1 and image.format != "MPO":
        used = "the primary one" if image.format == "HEIF" else "the first"
        return f"has {frames} frames, of which only {used} is used"
    if max(width, height) > 4 * min(width, height):
        return f"is {width}x{height}, far from square"
    if max(width, height) < side:
        return f"is {width}x{height}, smaller than the {side}x{side} used for training"
    return None


def _decode_in_threads(files: Sequence[Path], side: int, grey_bits: int) -> Iterator[DecodedFile]:
    """Yield the decoded files, in order.

    Threads read small files at the same time, many per task, but decode them in turn: most of the work is Python's, and
    threads that compete for its lock take up to four times as long. Larger files are decoded at the same time: Pillow
    releases the lock.
    """
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(files), GROUP_SIZE):
            group = files[start : start + GROUP_SIZE]
            size = TASK_SIZE if isinstance(_read_small(group[0]), bytes) else 1
            tasks = [group[first : first + size] for first in range(0, len(group), size)]
            for results in pool.map(partial(_decode_some, side=side, grey_bits=grey_bits), tasks):
                yield from results


def _decode_some(files: Sequence[Path], side: int, grey_bits: int) -> list[DecodedFile]:
    contents = [_read_small(file) for file in files]
    with _SMALL_FILES_LOCK if len(files) > 1 else contextlib.nullcontext():
        return [_decode_file(file, content, side, grey_bits) for file, content in zip(files, contents, strict=True)]


def _read_small(file: Path) -> Path | bytes:
    """Return the content of a regular file if it is small and can be read, else the file."""
    with contextlib.suppress(OSError):
        status = file.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL_FILE:
            return file.read_bytes()
    return file


def resize_images(images: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return images uint8 (N, C, H, W), C 1 or 3, as uint8 (N, C, size, size), each resized by `fit_square`."""
    resized = np.empty((len(images), images.shape[1], size, size), np.uint8)
    for row, pixels in zip(resized, images, strict=True):
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        row[:] = _to_array(fit_square(image, size))
    return resized
