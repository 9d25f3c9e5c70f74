"""Fuzzed image files: wrong headers, decompression bombs, arbitrary metadata, and the pixels of files that open."""

import functools
import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from dataset_files import encode_heic
from gingham.data.decode import LARGEST_PIXELS, common_side, decode_images, read_size
from gingham.errors import DataError
from gingham.inference.garments import prepare_garment
from gingham.inference.preprocess import open_photo, prepare_candidates
from stress.mutations import mutate
from stress.verdicts import Judge

Case = Callable[[], object]
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}
SUFFIXES |= {"AVIF": ".avif", "HEIC": ".heic"}
SIDES = (0, 1, 2, 3, 7, 28, 100, 4096, 30_000, 65_535, 2**31 - 1, 2**32 - 1)
TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    282,
    283,
    284,
    296,
    317,
    320,
    322,
    323,
    324,
    325,
    330,
    338,
    339,
    347,
    700,
    34675,
    34665,
    34853,
    40965,
    42016,
    65535,
)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # a copy, since Pillow stores the last options in the image
    return file.getvalue()


@functools.cache
def valid_files() -> dict[str, list[bytes]]:
    """Return a few files of each format, in many pixel modes."""
    random = np.random.RandomState(0)
    colour = Image.fromarray(random.randint(0, 256, (9, 12, 3)).astype(np.uint8))
    modes = {
        mode: colour.convert(mode)
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I", "F", "LAB", "HSV")
    }
    modes["I;16"] = Image.fromarray(random.randint(0, 65536, (9, 12)).astype(np.uint16))
    exif_tags = Image.Exif()
    exif_tags[0x0112], exif_tags[0x010F] = 6, "maker"

    large = colour.resize((80, 64))  # HEIC is not written for smaller images

    def frames() -> dict[str, Any]:
        return {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)], "duration": 20}

    return {
        "PNG": [encode(modes[mode], "PNG") for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16")]
        + [
            encode(colour, "PNG", exif=exif_tags),
            encode(modes["P"], "PNG", transparency=3),
            encode(colour, "PNG", **frames()),
        ],
        "JPEG": [encode(modes[mode], "JPEG") for mode in ("RGB", "L", "CMYK")]
        + [encode(colour, "JPEG", exif=exif_tags, progressive=True), encode(colour, "MPO", **frames())],
        "WEBP": [
            encode(modes["RGBA"], "WEBP", lossless=True),
            encode(colour, "WEBP", exif=exif_tags),
            encode(colour, "WEBP", **frames()),
        ],
        "BMP": [encode(modes[mode], "BMP") for mode in ("RGB", "L", "1", "P", "RGBA")],
        "GIF": [encode(modes["P"], "GIF", transparency=2), encode(colour, "GIF", **frames())],
        "TIFF": [
            encode(modes[mode], "TIFF")
            for mode in ("RGB", "L", "1", "P", "RGBA", "CMYK", "YCbCr", "I", "F", "LAB", "I;16")
        ]
        + [
            encode(colour, "TIFF", compression=compression)
            for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
        ]
        + [encode(modes["1"], "TIFF", compression="group4"), encode(colour, "TIFF", **frames())],
        "AVIF": [encode(modes[mode], "AVIF") for mode in ("RGB", "L", "RGBA")]
        + [encode(colour, "AVIF", exif=exif_tags), encode(colour, "AVIF", **frames())],
        "HEIC": [encode_heic(large.convert(mode)) for mode in ("RGB", "L", "RGBA")]
        + [encode_heic(large, exif=exif_tags.tobytes()), encode_heic(large, large.rotate(90))],
    }


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def fix_checksums(png: bytes) -> bytes:
    """Correct the checksums of a mutated PNG, so that the damage passes them."""
    result, offset = png[:8], 8
    while offset + 12 <= len(png):
        size = struct.unpack(">I", png[offset : offset + 4])[0]
        if offset + 12 + size > len(png):
            break
        result += chunk(png[offset + 4 : offset + 8], png[offset + 8 : offset + 8 + size])
        offset += 12 + size
    return result + png[offset:]


def tiff_directory(entries: Sequence[tuple[int, int, int, int]], start: int = 8, following: int = 0) -> bytes:
    """Return a little-endian TIFF with one directory of (tag, type, count, value) entries."""
    packed = b"".join(
        struct.pack("<HHII", *(n & top for n, top in zip(entry, (65535, 65535, 2**32 - 1, 2**32 - 1), strict=True)))
        for entry in entries
    )
    return b"II*\0" + struct.pack("<IH", start, len(entries)) + packed + struct.pack("<I", following)


def png(values: tuple[Any, ...]) -> bytes:
    width, height, depth, colour, interlace, body, extras = values
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 1)
    pixels = bytes(((width * channels * depth + 7) // 8 + 1) * height) if 0 < width * height < 20_000 else bytes(5000)
    data = {
        "right": zlib.compress(pixels, 1),
        "short": zlib.compress(pixels[: len(pixels) // 2], 1),
        "long": zlib.compress(pixels + bytes(100), 1),
        "torn": zlib.compress(pixels, 1)[:-5],
        "bomb": _bomb(),
        "noise": b"\x78\x9c" + bytes(range(50)),
        "none": b"",
    }[body]
    chunks = [chunk(kind, content) for kind, content in extras]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + b"".join([*chunks, chunk(b"IDAT", data), *chunks[:1], chunk(b"IEND", b"")])
    )


@functools.cache
def _bomb() -> bytes:
    return zlib.compress(bytes(30_000_000), 9)


@functools.cache
def huge(side: int) -> bytes:
    """Return a valid PNG of one colour, with a few hundred bytes per million pixels."""
    packer = zlib.compressobj(1)
    row = bytes(side + 1)
    data = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(values: tuple[Any, ...]) -> bytes:
    base, size, components, segments, scans = values
    content = valid_files()["JPEG"][base]
    frame = next(offset for offset in range(len(content)) if content[offset : offset + 2] in (b"\xff\xc0", b"\xff\xc2"))
    changed = bytearray(content)
    if size is not None:
        changed[frame + 5 : frame + 9] = struct.pack(">HH", *(side & 65535 for side in size))
    if components is not None:
        changed[frame + 9] = components
    scan = content.rindex(b"\xff\xda")
    metadata = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data for marker, data in segments
    )
    return bytes(changed[:2]) + metadata + bytes(changed[2:scan]) + bytes(changed[scan:-2]) * scans + b"\xff\xd9"


def gif(values: tuple[Any, ...]) -> bytes:
    screen, frames, blocks = values
    content = b"GIF89a" + struct.pack("<HHBBB", *(side & 65535 for side in screen), 0x80, 0, 0) + bytes(6)
    for left, top, width, height, bits, data in frames:
        position = struct.pack("<HHHHB", *(number & 65535 for number in (left, top, width, height)), 0)
        content += b"," + position + bytes([bits, len(data)]) + data + b"\0"
    return content + b"".join(b"!" + bytes([kind, len(data)]) + data + b"\0" for kind, data in blocks) + b";"


def bmp(values: tuple[Any, ...]) -> bytes:
    header, width, height, planes, bits, compression, colours, offset, body = values
    fields = [number & (2**32 - 1) for number in (header, width, height)]
    head = struct.pack("<IIIHHIIIIII", *fields, planes, bits, compression, 0, 0, 0, colours & (2**32 - 1), 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, offset & (2**32 - 1)) + head + body


def webp(values: tuple[Any, ...]) -> bytes:
    base, flags, width, height, chunks = values
    size = b"".join(struct.pack("<I", side & 0xFFFFFF)[:3] for side in (width, height))
    parts = [(b"VP8X", bytes([flags, 0, 0, 0]) + size), *chunks]
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in parts)
    body += valid_files()["WEBP"][base][12:]
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff(values: tuple[Any, ...]) -> bytes:
    width, height, changes, start, following, body = values
    defaults = {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8 + 6 + 12 * 10),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, len(body)),
    }
    entries = {**defaults, **{tag: (kind, count, value) for tag, kind, count, value in changes}}
    return tiff_directory([(tag, *entries[tag]) for tag in sorted(entries)], start, following) + body


sides = st.sampled_from(SIDES)
short_bytes = st.binary(max_size=40)
entries = st.lists(
    st.tuples(
        st.sampled_from(TAGS), st.integers(0, 14), st.sampled_from((0, 1, 2, 3, 9, 1000, 2**31, 2**32 - 1)), sides
    ),
    max_size=6,
)
exif = entries.map(tiff_directory)
segments = st.tuples(
    st.sampled_from((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD)),
    st.one_of(
        short_bytes,
        exif.map(lambda data: b"Exif\0\0" + data),
        exif.map(lambda data: b"MPF\0" + data),
        short_bytes.map(lambda data: b"ICC_PROFILE\0\1\1" + data),
        short_bytes.map(lambda data: b"http://ns.adobe.com/xap/1.0/\0" + data),
    ),
)
png_chunks = st.tuples(
    st.sampled_from(
        (
            b"PLTE",
            b"tRNS",
            b"gAMA",
            b"iCCP",
            b"zTXt",
            b"iTXt",
            b"tEXt",
            b"eXIf",
            b"acTL",
            b"fcTL",
            b"fdAT",
            b"pHYs",
            b"cHRM",
            b"sRGB",
            b"IHDR",
            b"IEND",
            b"abcd",
        )
    ),
    st.one_of(
        short_bytes, exif, st.just(b"a\0\0" + zlib.compress(bytes(4_000_000))), st.sampled_from((bytes(768), bytes(26)))
    ),
)
images = st.sampled_from(("L", "RGB", "RGBA", "1")).flatmap(
    lambda mode: st.tuples(st.just(mode), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
)
EXAMPLES = st.one_of(
    st.tuples(
        st.just("PNG"),
        st.tuples(
            sides,
            sides,
            st.sampled_from((0, 1, 2, 3, 4, 8, 8, 16)),
            st.integers(0, 7),
            st.integers(0, 2),
            st.sampled_from(("right", "right", "short", "long", "torn", "bomb", "noise", "none")),
            st.lists(png_chunks, max_size=3),
        ),
    ),
    st.tuples(
        st.just("JPEG"),
        st.tuples(
            st.integers(0, 4),
            st.none() | st.tuples(sides, sides),
            st.none() | st.integers(0, 5),
            st.lists(segments, max_size=3),
            st.sampled_from((0, 1, 1, 2, 50)),
        ),
    ),
    st.tuples(
        st.just("GIF"),
        st.tuples(
            st.tuples(sides, sides),
            st.lists(st.tuples(sides, sides, sides, sides, st.integers(0, 20), short_bytes), max_size=3),
            st.lists(st.tuples(st.sampled_from((0xF9, 0xFE, 0xFF, 1)), short_bytes), max_size=2),
        ),
    ),
    st.tuples(
        st.just("BMP"),
        st.tuples(
            st.sampled_from((12, 40, 40, 52, 64, 108, 124, 0, 2**31)),
            sides | st.just(-5),
            sides | st.just(-5),
            st.integers(0, 2),
            st.sampled_from((0, 1, 2, 4, 8, 16, 24, 32, 64)),
            st.integers(0, 6),
            sides,
            sides,
            short_bytes,
        ),
    ),
    st.tuples(
        st.just("WEBP"),
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 255),
            sides,
            sides,
            st.lists(
                st.tuples(
                    st.sampled_from((b"ANIM", b"ANMF", b"EXIF", b"XMP ", b"ICCP", b"ALPH", b"VP8 ")), short_bytes | exif
                ),
                max_size=3,
            ),
        ),
    ),
    st.tuples(st.just("TIFF"), st.tuples(sides, sides, entries, st.just(8) | sides, st.just(0) | sides, short_bytes)),
    st.tuples(st.just("whole"), images),
    st.tuples(st.just("huge"), st.sampled_from((11_000, 13_000))),
)
BUILDERS = {"PNG": png, "JPEG": jpeg, "GIF": gif, "BMP": bmp, "WEBP": webp, "TIFF": tiff, "huge": huge}


class Images:
    """Image files: one that opens is within the size limit and can be prepared; a valid one has the pixels written."""

    def __init__(self, judge: Judge) -> None:
        self.folder = judge.folder
        self.valid_path = self.folder / "good.png"
        self.valid_path.write_bytes(valid_files()["PNG"][0])
        self.examples = st.tuples(EXAMPLES, st.integers(0, 9))

    def mutated_case(self, random: Random) -> Case:
        kind = random.choice([*SUFFIXES])
        content = mutate(
            random,
            valid_files()[kind]
            if random.random() < 0.95
            else [file for files in valid_files().values() for file in files],
        )
        if kind == "PNG" and random.random() < 0.6:
            content = fix_checksums(content)
        return self.case(content, SUFFIXES[kind], random.randrange(10))

    def generated_case(self, example: Any) -> Case:
        (kind, values), variant = example
        if kind == "whole":
            return self.exact_case(values)
        try:
            content = BUILDERS[kind](values)
        except struct.error:  # a value too large for its field
            return lambda: None
        return self.case(content, SUFFIXES.get(kind, ".png"), variant)

    def exact_case(self, values: tuple[str, int, int, int]) -> Case:
        mode, width, height, seed = values
        image = Image.fromarray(
            np.random.RandomState(seed).randint(0, 256, (height, width, 4)).astype(np.uint8)
        ).convert(mode)
        content = encode(image, "PNG")

        def case() -> None:
            photo = open_photo(content)
            expected = image.convert("RGBA" if mode == "RGBA" else "RGB")
            assert photo.mode == expected.mode
            assert photo.tobytes() == expected.tobytes()

        return case

    def case(self, content: bytes, suffix: str, variant: int) -> Case:
        path = self.folder / f"image{suffix}"
        path.write_bytes(content)
        return (
            (lambda: self.read_in_folder(path))
            if variant < 3
            else lambda: self.read_single(path if variant < 6 else content, variant)
        )

    def read_single(self, file: Path | bytes, variant: int) -> None:
        photo = open_photo(file, None if variant % 2 else "an image")
        assert photo.mode in ("RGB", "RGBA")
        assert 0 < photo.width * photo.height <= LARGEST_PIXELS
        if photo.width * photo.height > 1_000_000:
            return  # large ones take long
        shape = (1, 28, 28) if variant % 2 else (3, 10, 14)
        for prepared in prepare_candidates(photo, shape, (None, 0.0, 255.0)[variant % 3], 0.7, is_input=False):
            assert prepared.image.shape == shape
        if variant == 9:
            prepared = prepare_garment(photo)
            assert prepared.framings.shape == (2, 1, 28, 28)
        assert prepared.framings.dtype == np.uint8
        assert prepared.notes

    def read_in_folder(self, file: Path) -> None:
        images = np.zeros((2, 3, 8, 8), np.uint8)
        side = common_side([read_size(file), read_size(self.valid_path)])
        assert side in (28, *range(1, 65))
        result = decode_images([file, self.valid_path], images, "")
        assert result.missing in ([], [0])
        if result.missing:
            reason = dict(result.issues)[0]
            raise DataError(reason)  # the reader of a folder puts it into a message
