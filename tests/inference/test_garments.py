"""Preparation of garments: drawn ones, whose true mask is known, on various backgrounds."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dataset_files import encode_heic
from gingham.inference.garments import prepare_garment
from gingham.inference.preprocess import open_photo
from helpers import COLOURS_AND_BACKGROUNDS, draw_garment_photo


def garment_mask(prepared):
    return prepared.image[0] > 30


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


def expected_mask():
    """Return the mask of the shirt alone, filling the frame as the garments of the dataset do."""
    mask = draw_garment_photo((0, 0, 0), (255, 255, 255))[1]
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = Image.fromarray(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    width, height = crop.size
    scale = 28 / max(width, height)
    small = crop.convert("L").resize((round(width * scale), round(height * scale)), Image.Resampling.BOX)
    frame = Image.new("L", (28, 28))
    frame.paste(small, ((28 - small.width) // 2, (28 - small.height) // 2))
    return np.asarray(frame) > 100


@pytest.mark.parametrize(("colour", "background"), COLOURS_AND_BACKGROUNDS)
@pytest.mark.parametrize("corner", [(50, 80), (95, 155), (20, 20)])
def test_garments_of_any_colour_and_position_are_segmented(colour, background, corner):
    photo, _ = draw_garment_photo(colour, background, corner=corner, texture=6)
    prepared = prepare_garment(photo)
    assert prepared.image.shape == (1, 28, 28)
    assert prepared.image.dtype == np.uint8
    assert iou(garment_mask(prepared), expected_mask()) > 0.85
    shirt = prepared.image[0][garment_mask(prepared)]
    assert np.median(shirt) >= 65  # light on black, whatever the photo's colours
    assert (prepared.image[0][~expected_mask()] == 0).mean() > 0.8


def test_every_step_is_kept_with_its_image_and_note():
    prepared = prepare_garment(draw_garment_photo((40, 60, 120), (255, 255, 255))[0])
    assert [step.name for step in prepared.steps] == [
        "photo",
        "garment",
        "crop",
        "tone",
        "contrast",
        "size",
        "narrower",
    ]
    assert prepared.notes[0] == "processed at 120x160 pixels"
    assert "inverted: dark cloth becomes light" in prepared.notes[3]
    for step in prepared.steps:
        assert step.image.dtype == np.uint8
        assert step.image.shape[2] == 3
    assert np.array_equal(prepared.steps[5].image[..., 0], prepared.image[0])
    assert prepared.framings.shape == (2, 1, 28, 28)
    widths = [np.flatnonzero((framing[0] > 30).any(axis=0)) for framing in prepared.framings]
    assert np.ptp(widths[1]) < np.ptp(widths[0])


def test_dark_cloth_becomes_lighter_than_light_cloth():
    """As in the dataset, whose images are negatives. The shirt has a light and a dark half."""
    photo, mask = draw_garment_photo((90, 90, 90), (255, 255, 255))
    pixels = np.array(photo)
    pixels[:, 150:][mask[:, 150:]] = 20
    image = prepare_garment(Image.fromarray(pixels)).image[0]
    assert image[12:20, 16:19].mean() > image[12:20, 9:12].mean() + 60


def test_a_negative_photo_is_not_inverted():
    photo, mask = draw_garment_photo((90, 90, 90), (0, 0, 0))
    pixels = np.array(photo)
    pixels[:, 150:][mask[:, 150:]] = 240
    prepared = prepare_garment(Image.fromarray(pixels))
    assert "not inverted" in prepared.notes[3]
    assert prepared.image[0][12:20, 16:19].mean() > prepared.image[0][12:20, 9:12].mean() + 60


def test_the_same_photo_always_gives_the_same_image():
    photo, _ = draw_garment_photo((200, 40, 40), (150, 150, 150), texture=20)
    first = prepare_garment(photo)
    for _ in range(3):
        prepare_garment(draw_garment_photo((1, 2, 3), (99, 99, 99), texture=9)[0])
        assert np.array_equal(prepare_garment(photo).framings, first.framings)


def test_proportions_are_kept():
    photo = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(photo).rectangle((100, 120, 299, 219), fill=(30, 60, 90))
    rows, columns = np.nonzero(prepare_garment(photo).image[0] > 30)
    assert np.ptp(columns) + 1 == 28
    assert abs(np.ptp(rows) + 1 - 14) <= 1
    assert abs((rows.min() + rows.max()) / 2 - 13.5) <= 1


def test_the_alpha_channel_is_used_as_the_mask():
    """A white shirt on white, which can only be found by its alpha channel."""
    photo, mask = draw_garment_photo((255, 255, 255), (255, 255, 255))
    photo.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
    prepared = prepare_garment(photo)
    assert "already cut out" in prepared.notes[1]
    assert iou(garment_mask(prepared), expected_mask()) > 0.9


@pytest.mark.parametrize(
    "photo",
    [
        Image.new("RGB", (1, 1), "red"),
        Image.new("RGB", (500, 1), "red"),
        Image.new("RGB", (3, 400), "blue"),
        Image.new("RGB", (300, 300), "white"),
        Image.new("RGB", (5, 5), "white"),
        Image.new("RGBA", (60, 60), (0, 0, 0, 0)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)),
    ],
    ids=["one pixel", "a row", "a column", "one colour", "tiny", "all transparent", "noise"],
)
def test_a_photo_without_a_garment_is_not_an_error_and_not_all_black(photo):
    prepared = prepare_garment(photo)
    assert prepared.image.shape == (1, 28, 28)
    assert prepared.image.max() > 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "I;16", "RGBA", "YCbCr"])
def test_every_pixel_mode_is_read(tmp_path, mode):
    photo, _ = draw_garment_photo((40, 40, 40), (250, 250, 250))
    grey = np.asarray(photo.convert("L")).astype(np.uint16)
    photo = Image.fromarray(grey * 257) if mode == "I;16" else photo.convert(mode)
    file = tmp_path / ("photo.tif" if mode in ("CMYK", "I;16", "YCbCr") else "photo.png")
    photo.save(file)
    assert iou(garment_mask(prepare_garment(open_photo(file))), expected_mask()) > 0.85


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff", "avif", "heic"])
def test_every_format_is_read(tmp_path, suffix):
    photo, file = draw_garment_photo((40, 60, 120), (255, 255, 255))[0], tmp_path / f"photo.{suffix}"
    if suffix == "heic":
        file.write_bytes(encode_heic(photo))
    else:
        photo.save(file)
    assert iou(garment_mask(prepare_garment(open_photo(file))), expected_mask()) > 0.85
