import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataset_files import encode_heic, set_heif_size
from gingham.data import decode
from gingham.data.decode import decode_images, fit_square, read_properties, resize_images

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I")


def decode_image(file, size):
    """Return one file's pixels, (S, S) if they are grey, else (S, S, 3)."""
    (pixels,) = decode_images([file], np.empty((1, 3, size, size), np.uint8), "").images
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 90), st.integers(1, 90), st.integers(1, 70))
def test_any_image_becomes_a_square(mode, width, height, size):
    image = Image.new(mode, (width, height))
    square = fit_square(image, size)
    assert square.size == (size, size)
    assert square.mode == ("L" if mode in ("1", "L", "LA", "I;16", "I") else "RGB")
    assert image.size == (width, height)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40), st.integers(0, 255))
def test_an_image_of_one_colour_keeps_it(width, height, size, grey):
    assert (np.asarray(fit_square(Image.new("L", (width, height), grey), size)) == grey).all()


def test_proportions_are_kept_and_the_rest_takes_the_borders_median_colour():
    pixels = np.full((40, 80, 3), (200, 30, 10), np.uint8)  # a red image, twice as wide as high
    pixels[10:30, 20:60] = (0, 0, 255)  # with a blue middle
    square = np.asarray(fit_square(Image.fromarray(pixels), 40))
    assert (square[:10] == (200, 30, 10)).all()
    assert (square[30:] == (200, 30, 10)).all()
    blue = (square[..., 2] > 128).nonzero()
    assert (blue[0].min(), blue[0].max(), blue[1].min(), blue[1].max()) == (15, 24, 10, 29)


def test_a_few_bright_pixels_do_not_colour_the_border():
    pixels = np.zeros((20, 40), np.uint8)
    pixels[0, :8] = 255
    assert np.asarray(fit_square(Image.fromarray(pixels), 40))[0].max() == 0


def test_shrinking_is_antialiased():
    stripes = np.zeros((280, 280), np.uint8)
    stripes[:, ::2] = 255
    scaled = np.asarray(fit_square(Image.fromarray(stripes), 28)).astype(int)
    assert abs(scaled - 127).max() < 20, "nearest neighbours would be 0 or 255"


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (28, 28)).astype(np.uint8)
    assert (np.asarray(fit_square(Image.fromarray(pixels), 28)) == pixels).all()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert (decode_image(tmp_path / "a.png", 28) == pixels).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 20, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        turned = ImageOps.exif_transpose(stored)
    assert (decode_image(tmp_path / "a.png", 24) == np.asarray(fit_square(turned, 24))).all()
    assert turned.size == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize("suffix", ["heic", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_and_avif_are_rotated_once(tmp_path, orientation, suffix):
    """Both store the rotation in boxes of the file, which the decoders apply, and again in the EXIF data."""
    upright = Image.linear_gradient("L").resize((80, 60))
    upright = Image.merge("RGB", [upright, upright.transpose(Image.Transpose.ROTATE_90).resize((80, 60)), upright])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a.{suffix}"
    if suffix == "heic":
        file.write_bytes(encode_heic(upright, exif=exif.tobytes()))
        assert file.read_bytes().count(b"Exif") >= 1
    else:
        upright.save(file, quality=100, subsampling="4:4:4", exif=exif)
    upright.getexif()[0x0112] = orientation
    expected = np.asarray(fit_square(ImageOps.exif_transpose(upright), 40)).astype(int)
    assert abs(decode_image(file, 40).astype(int) - expected).max() <= 6


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "RGB;16", "I;16"])
@pytest.mark.parametrize("name", ["a.heic", "A.HEIC", "a.heif", "a.hif"])
def test_heic_is_read_with_alpha_and_with_10_bits(tmp_path, mode, name):
    import pillow_heif

    values = np.random.RandomState(0).randint(0, 256, (24, 24, 4)).astype(np.uint8)
    values = np.ascontiguousarray({1: values[..., 0], 3: values[..., :3], 4: values}[len(mode.split(";")[0])])
    if mode == "RGB;16":
        heif = pillow_heif.from_bytes(mode, (24, 24), (values.astype(np.uint16) << 8).tobytes())
        heif.save(tmp_path / name, quality=-1, chroma=444)
    else:
        image = Image.fromarray(values.astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(values)
        (tmp_path / name).write_bytes(encode_heic(image))
    pixels = decode_image(tmp_path / name, 24)
    expected = np.asarray(fit_square(Image.fromarray(values), 24))
    assert pixels.shape == expected.shape
    assert abs(pixels.astype(int) - expected).max() <= 2


def test_avif_is_read_with_transparency(tmp_path):
    values = np.full((24, 24, 4), (200, 30, 60, 255), np.uint8)
    values[:12, :, 3] = 0
    Image.fromarray(values).save(tmp_path / "a.AVIF", quality=100, subsampling="4:4:4")
    pixels = decode_image(tmp_path / "a.AVIF", 24).astype(int)
    assert abs(pixels[2:10] - 255).max() <= 3
    assert abs(pixels[14:22] - (200, 30, 60)).max() <= 3


def test_only_the_primary_image_of_a_heic_file_is_used(tmp_path):
    red, blue = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (20, 30), "blue")
    for index, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
        (tmp_path / "a.heic").write_bytes(encode_heic(red, blue, primary_index=index))
        result = decode_images([tmp_path / "a.heic"], np.empty((1, 3, 16, 16), np.uint8), "")
        assert abs(result.images[0, :, 8, 8].astype(int) - colour).max() <= 2
        assert result.issues == [(0, "has 2 frames, of which only the primary one is used")]


def test_formats_are_recognised_by_content_and_a_wrong_name_is_an_issue(tmp_path):
    image = Image.new("RGB", (20, 20), "red")
    image.save(tmp_path / "jpeg.heic", "JPEG")
    image.save(tmp_path / "avif.heic", "AVIF")
    (tmp_path / "heic.jpg").write_bytes(encode_heic(image))
    content = encode_heic(image)
    (tmp_path / "brand.heic").write_bytes(content[:8] + b"mif1" + content[12:])  # which AVIF files may have too
    files = [tmp_path / name for name in ("jpeg.heic", "avif.heic", "heic.jpg", "brand.heic")]
    result = decode_images(files, np.empty((4, 3, 20, 20), np.uint8), "")
    assert [reason.split(",")[0] for _, reason in result.issues] == [
        "is a JPEG file",
        "is an AVIF file",
        "is a HEIF file",
    ]
    assert abs(result.images.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as outside of pytest
def test_a_heic_file_that_cannot_be_read_is_not_decoded(tmp_path, monkeypatch):
    content = encode_heic(Image.fromarray(np.random.RandomState(0).randint(0, 256, (100, 100, 3)).astype(np.uint8)))
    cases = {
        "header.heic": (content[:40], "cannot be read: pi-heif cannot read this HEIC file: "),
        "truncated.heic": (content[: len(content) // 2], "cannot be read: Invalid input"),
        "large.heic": (set_heif_size(content, 12_000, 12_000), "cannot be read: it has 12000x12000 pixels, more than"),
        "bomb.heic": (set_heif_size(content, 40_000, 40_000), "cannot be read: Image size (1600000000 pixels)"),
        "lie.heic": (set_heif_size(content, 64, 64), "cannot be read: Invalid input: Invalid image size"),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        result = decode_images([tmp_path / name], np.empty((1, 3, 9, 9), np.uint8), "")
        assert result.missing == [0]
        assert result.issues[0][1].startswith(reason)
        assert not result.transient
    (tmp_path / "valid.heic").write_bytes(content)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    result = decode_images([tmp_path / "valid.heic"], np.empty((1, 3, 9, 9), np.uint8), "")
    assert result.issues[0][1].startswith("cannot be read: HEIC files need the package pi-heif")
    assert result.transient, "it may be installed later"


def test_pi_heif_is_imported_only_for_a_heic_file(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(encode_heic(Image.new("RGB", (9, 9))))
    script = (
        "import pathlib, sys\n"
        "from gingham.data.decode import read_size\n"
        "for name in ('a.png', 'b.heic'):\n"
        "    print(read_size(pathlib.Path(name)), 'pi_heif' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "(9, 9) False\n(9, 9) True\n"


def test_transparent_pixels_become_white():
    transparent = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert (np.asarray(fit_square(transparent, 10)) == 255).all()
    assert (np.asarray(fit_square(Image.new("LA", (10, 10), (0, 0)), 10)) == 255).all()
    palette = Image.new("P", (10, 10), 0)
    palette.putpalette([255, 0, 0])
    palette.info["transparency"] = 0
    assert (np.asarray(fit_square(palette, 10)) == 255).all()


def test_16_bit_images_become_8_bit():
    deep = Image.fromarray(np.array([[0, 256, 65535]], np.uint16))
    assert np.asarray(fit_square(deep, 3))[1].tolist() == [0, 1, 255]


def test_floating_point_pixels_are_an_error():
    with pytest.raises(ValueError, match="floating-point"):
        fit_square(Image.new("F", (4, 4)), 4)


def test_a_large_jpeg_decoded_at_reduced_scale_differs_little(tmp_path, fashion_mnist):
    image = Image.fromarray(fashion_mnist.train.images[0, 0].numpy()).resize((1600, 1600), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as stored:
        expected = np.asarray(fit_square(stored, 28)).astype(int)
    assert abs(decode_image(tmp_path / "a.jpg", 28).astype(int) - expected).max() <= 8


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_resized_as_image_files_are(channels):
    images = np.random.RandomState(0).randint(0, 256, (3, channels, 32, 20)).astype(np.uint8)
    resized = resize_images(images, 16)
    assert (resized.shape, resized.dtype) == ((3, channels, 16, 16), np.uint8)
    image = Image.fromarray(images[1, 0] if channels == 1 else images[1].transpose(1, 2, 0))
    expected = np.asarray(fit_square(image, 16))
    assert (resized[1] == (expected if channels == 1 else expected.transpose(2, 0, 1))).all()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as outside of pytest
def test_an_image_with_too_many_pixels_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 7_000)).save(tmp_path / "huge.png")  # 140 million pixels in a few thousand bytes
    Image.new("1", (9, 9)).save(tmp_path / "small.png")
    result = decode_images([tmp_path / "huge.png", tmp_path / "small.png"], np.empty((2, 3, 9, 9), np.uint8), "")
    assert result.missing == [0]
    assert result.issues == [(0, "cannot be read: it has 20000x7000 pixels, more than the 120,000,000 allowed")]


@pytest.mark.parametrize("small_first", [True, False])
def test_small_and_large_files_are_read_in_order(tmp_path, small_first):
    """Small files are read many at a time, and in another way than large ones."""
    random = np.random.RandomState(0)
    files, expected = [], []
    for number in range(120):
        side = 12 if (number % 3 != 0) == small_first else 40  # a noisy PNG of less or more than 4 KB
        pixels = random.randint(0, 256, (side, side, 3)).astype(np.uint8)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(files[-1])
        expected.append(np.asarray(fit_square(Image.fromarray(pixels), 12)).transpose(2, 0, 1))
    files[5].write_bytes(b"")
    files[7].write_bytes(b"no image")
    files[50].unlink()
    files[51].unlink()
    files[51].mkdir()
    result = decode_images(files, np.empty((120, 3, 12, 12), np.uint8), "")
    reasons = ["it is empty", "its format is unknown", "No such file or directory", "it is not a regular file"]
    assert result.issues == [(k, f"cannot be read: {why}") for k, why in zip((5, 7, 50, 51), reasons, strict=True)]
    assert (result.images == np.delete(expected, result.missing, axis=0)).all()


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    active, most_active = 0, 0

    def convert_slowly(image, *arguments):
        nonlocal active, most_active
        active += 1
        most_active = max(most_active, active)
        time.sleep(0.01)
        active -= 1
        return image.convert("L")

    monkeypatch.setattr(decode, "to_8_bit", convert_slowly)
    monkeypatch.setattr(decode, "LARGE_PIXELS", 50)
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for file in files:
        Image.new("L", (9, 9)).save(file)
    assert decode_images(files, np.empty((6, 3, 9, 9), np.uint8), "").missing == []
    assert most_active == 1


def test_pillow_prints_no_warnings_and_logs(tmp_path):
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")  # more pixels than Pillow opens without a warning
    script = (
        "import logging, pathlib\n"
        "from gingham.data.decode import read_size\n"
        "read_size(pathlib.Path('large.png'))\n"
        "logging.getLogger('PIL.TiffImagePlugin').error('More samples per pixel than can be decoded')"
    )

    def stderr(*options):
        command = [sys.executable, *options, "-c", script]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr

    assert stderr() == ""
    assert "DecompressionBombWarning" in stderr("-W", "default"), "a program's own filters win"


def test_an_animated_webp_file_counts_four_times(tmp_path, monkeypatch):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.webp")
    monkeypatch.setattr(decode, "LARGEST_PIXELS", 1000)
    images = np.zeros((2, 3, 8, 8), np.uint8)
    result = decode.decode_images([tmp_path / "animated.webp", tmp_path / "still.webp"], images, "")
    assert result.missing == [0]
    assert "it has 20x20 pixels and is animated, which counts four times" in dict(result.issues)[0]


def test_an_image_of_giant_dimensions_is_not_decoded_to_choose_a_recipe(tmp_path):
    Image.new("1", (16_000, 10_000)).save(tmp_path / "giant.png")
    assert read_properties(tmp_path / "giant.png") is None
