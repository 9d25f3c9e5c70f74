"""Preprocessing of photos: reading files, and the preparations for models of other things than garments."""

import io
import json
import struct
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import gingham
from dataset_files import encode_heic
from gingham.data.statistics import object_share
from gingham.errors import DataError
from gingham.inference.preprocess import open_photo, prepare_candidates, prepare_object, prepare_plain
from helpers import draw_garment_photo


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright, _ = draw_garment_photo((40, 60, 120), (255, 255, 255))
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(inverse[orientation]) if orientation in inverse else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(open_photo(tmp_path / "photo.png")), np.asarray(upright))


def test_a_heic_photo_is_an_error_without_pi_heif(monkeypatch):
    content = encode_heic(Image.new("RGBA", (30, 20), (255, 0, 0, 99)))
    assert open_photo(content).mode == "RGBA"
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(
        DataError, match=r"cannot read a\.heic as an image \(HEIC files need the package pi-heif, which .*; install it"
    ):
        open_photo(content, "a.heic")


def test_unreadable_files_are_errors_with_the_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "valid.png")
    content = (tmp_path / "valid.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(content[: len(content) // 2])
    for name, reason in (
        ("text.jpg", "its format is unknown"),
        ("empty.png", "it is empty"),
        ("truncated.png", "truncated"),
    ):
        with pytest.raises(
            DataError, match=f"cannot read .*{name} as an image .*{reason}.*it is damaged, or none of PNG"
        ):
            open_photo(tmp_path / name)
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.jpg; give an image"):
        open_photo(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match="is a folder; give images in it of the formats PNG"):
        open_photo(tmp_path)


def test_any_exception_that_pillow_raises_becomes_a_data_error(monkeypatch):
    buffer = io.BytesIO()
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(buffer, "PNG")
    for error in (AssertionError(), MemoryError(), struct.error("unpack"), TypeError("'NoneType' object")):
        monkeypatch.setattr(Image.Image, "has_transparency_data", property(mock.Mock(side_effect=error)))
        with pytest.raises(DataError, match="cannot read the image as an image"):
            open_photo(buffer.getvalue())


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as outside of pytest
def test_an_image_with_too_many_pixels_is_an_error(tmp_path):
    Image.new("1", (20_000, 7_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="20000x7000 pixels; allowed: 120,000,000"):
        open_photo(tmp_path / "huge.png")


def test_prepare_plain_keeps_the_whole_photo():
    photo = Image.new("RGB", (100, 50), (10, 200, 30))
    image = prepare_plain(photo, (3, 32, 32)).image
    assert image.shape == (3, 32, 32)
    assert (image == np.array([10, 200, 30])[:, None, None]).all()


def test_a_photo_is_inverted_on_request_and_put_on_black_for_models_with_a_black_background():
    photo = Image.new("RGB", (200, 200), (220, 215, 205))
    ImageDraw.Draw(photo).line((60, 40, 140, 160), fill=(30, 30, 60), width=14)
    on_black = prepare_plain(photo, (1, 28, 28), background=0.0, inverted=True).image[0]
    assert on_black[0, 0] == on_black[-1, -1] == 0
    assert on_black[14, 14] > 200
    on_white = prepare_plain(photo, (1, 28, 28), background=240.0).image[0]
    assert on_white[0, 0] > 200
    assert on_white[14, 14] < 80
    assert np.array_equal(prepare_plain(photo, (1, 28, 28)).image[0], on_white)


# --- grey models of other things than garments: the preparation with the lowest novelty score


NAMES = ("0", "1", "2", "4", "7")


def draw_digit(label, random, side=28, length=20):
    """Return a digit of a font as MNIST has them: light on black, `length` pixels high, a little turned and moved."""
    large = Image.new("L", (120, 120))
    font = ImageFont.load_default(size=80 + int(random.integers(0, 16)))
    stroke = int(random.integers(1, 4))
    ImageDraw.Draw(large).text((60, 60), NAMES[label], fill=255, font=font, anchor="mm", stroke_width=stroke)
    large = large.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    digit = large.crop(large.getbbox())
    scale = length / max(digit.size)
    digit = digit.resize([max(1, round(edge * scale)) for edge in digit.size], Image.Resampling.BOX)
    image = Image.new("L", (side, side))
    shift = random.integers(-1, 2, 2)
    image.paste(digit, [(side - edge) // 2 + int(move) for edge, move in zip(digit.size, shift, strict=True)])
    return image


def digit_split(count, seed, name="train"):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % len(NAMES)
    images = np.stack([np.asarray(draw_digit(label, random)) for label in labels])[:, None]
    return gingham.Split(name, torch.from_numpy(images), torch.from_numpy(labels), NAMES, "digits", "f")


@pytest.fixture(scope="module")
def digits():
    """A run trained on drawn digits, and digits that it has not seen."""
    recipe = gingham.RECIPES["fast-85"].replace(epochs=8, batch_size=50, validation_images=100)
    run = gingham.fit(recipe, digit_split(700, 0), digit_split(100, 1, "validation"), progress=False)
    return run, digit_split(40, 2, "test")


def to_photos(split, change):
    """Return the images of a split, each changed by a function of the array and a random generator."""
    random = np.random.default_rng(3)
    return [Image.fromarray(change(image[0].numpy(), random)) for image in split.images]


def negative(pixels, random):
    return 255 - pixels


def small_on_white(pixels, random):
    """Write a digit with a dark pen in a large white image, somewhere."""
    photo = np.full((300, 400, 3), 255, np.uint8)
    ink = np.asarray(Image.fromarray(pixels).resize((84, 84), Image.Resampling.BICUBIC))
    top, left = int(random.integers(0, 210)), int(random.integers(0, 310))
    photo[top : top + 84, left : left + 84] = 255 - np.multiply.outer(ink, [0.95, 0.9, 0.6]).astype(np.uint8)
    return photo


def on_squared_paper(pixels, random):
    """Write a digit on squared paper whose light falls off from one side to the other, and add noise."""
    side = 420
    paper = np.full((side, side), 235.0)
    paper[15::35] -= 22
    paper[:, 20::35] -= 22
    ink = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)) / 255
    top, left = random.integers(40, side - 264, 2)
    paper[top : top + 224, left : left + 224] *= 1 - 0.8 * ink
    light = np.linspace(1.0, random.uniform(0.55, 0.7), side)
    paper = paper * (light[None, :] if random.random() < 0.5 else light[::-1, None])
    return (paper + random.normal(0, 3, paper.shape)).clip(0, 255).astype(np.uint8)


def labels_of(predictions):
    return [NAMES.index(prediction.label) for prediction in predictions]


@pytest.mark.parametrize("change", [negative, small_on_white, on_squared_paper])
def test_digits_on_light_paper_get_the_class_of_the_original(digits, change):
    run, split = digits
    originals = gingham.predict(run, to_photos(split, lambda pixels, _: pixels))
    assert np.mean(np.array(labels_of(originals)) == split.labels.numpy()) > 0.95
    predictions = gingham.predict(run, to_photos(split, change))
    same = np.array(labels_of(predictions)) == labels_of(originals)
    assert same.mean() >= 0.9
    assert np.mean([prediction.novel for prediction in predictions]) < 0.5
    for prediction in predictions:
        prepared = prediction.prepared
        assert prepared.steps[-1].name == "choice"
        assert "preparations, the one most like the training images" in prepared.notes[-1]
        assert np.array_equal(prepared.steps[-1].image[..., 0], prepared.image[0])
        assert np.median(prepared.image[0][0]) < 64, "on black, as the training images"


def test_the_choice_has_the_lowest_novelty_of_all_preparations(digits):
    run, split = digits
    shape, background = run.model.input_shape, run.data["background"]
    for photo in to_photos(split, small_on_white)[:5]:
        candidates = prepare_candidates(photo, shape, background, run.data["object_share"], is_input=False)
        assert len(candidates) > 2
        scores = run.model.predict(np.concatenate([candidate.framings for candidate in candidates])).novelty
        prediction = gingham.predict(run, [photo])[0]
        assert prediction.novelty == pytest.approx(float(scores.min()), abs=1e-3)
        assert np.array_equal(prediction.prepared.framings, candidates[int(scores.argmin())].framings)
        assert f"of {len(candidates)} preparations" in prediction.prepared.notes[-1]


def test_an_image_with_the_background_of_the_training_images_is_used_unchanged(digits):
    run, split = digits
    for image, prediction in zip(
        split.images, gingham.predict(run, to_photos(split, lambda pixels, _: pixels)), strict=True
    ):
        assert prediction.prepared.notes == ["used unchanged"]
        assert np.array_equal(prediction.prepared.image, image.numpy())
    expected = run.model.predict(split.images)
    predictions = gingham.predict(run, to_photos(split, lambda pixels, _: pixels))
    assert labels_of(predictions) == expected.labels.tolist()


@pytest.mark.parametrize(
    "photo",
    [
        Image.new("L", (28, 28), 255),
        Image.new("L", (28, 28), 0),
        Image.new("RGB", (300, 200), "white"),
        Image.new("RGB", (300, 200), "black"),
        Image.new("RGB", (1, 1), "grey"),
        Image.new("RGB", (900, 2), "white"),
        Image.fromarray(np.tile(np.linspace(100, 200, 300).astype(np.uint8), (200, 1))),
    ],
    ids=["blank input", "black input", "white", "black", "one pixel", "a line", "a gradient"],
)
def test_blank_images_are_no_error(digits, photo):
    run, _ = digits
    (prediction,) = gingham.predict(run, [photo])
    assert prediction.error is None
    assert prediction.prepared.framings.shape == (1, 1, 28, 28)
    assert np.isfinite(prediction.novelty)
    json.dumps(prediction.to_dict(), allow_nan=False)


def test_no_object_is_found_in_an_image_without_contrast():
    random = np.random.default_rng(0)
    faint = Image.fromarray(random.integers(200, 212, (200, 300), dtype=np.uint8))
    for photo in (Image.new("RGB", (300, 200), "white"), Image.new("L", (1, 1)), faint):
        assert prepare_object(photo, (1, 28, 28), 0, 0.7) == []


@pytest.mark.parametrize("background", [0, 255])
def test_an_object_is_scaled_and_centred_on_the_background_of_the_training_images(background):
    photo = Image.new("L", (300, 200), 230)
    ImageDraw.Draw(photo).rectangle((200, 40, 219, 99), fill=30)
    framings = prepare_object(photo, (1, 28, 28), background, object_share=20 / 28)
    assert len(framings) == 12, "two outlines, three thicknesses and two centres"
    for prepared in framings:
        pixels = prepared.image[0] if background == 0 else 255 - prepared.image[0]
        assert pixels[0, 0] == 0
        rows, columns = (np.flatnonzero((pixels > 127).any(axis=axis)) for axis in (1, 0))
        assert abs(np.ptp(rows) + 1 - 20) <= 1
        assert abs((rows[0] + rows[-1]) / 2 - 13.5) <= 1
        assert abs((columns[0] + columns[-1]) / 2 - 13.5) <= 1
        assert np.ptp(columns) < np.ptp(rows)
        assert prepared.steps[0].name == "object"
        assert "of 224x149 pixels" in prepared.notes[0]


def test_a_digit_of_several_parts_is_kept_and_the_edge_of_the_paper_is_not():
    photo = Image.new("L", (200, 200), 235)
    draw = ImageDraw.Draw(photo)
    draw.rectangle((0, 0, 199, 6), fill=20)  # the edge of the table
    draw.rectangle((60, 80, 75, 140), fill=30)
    draw.rectangle((110, 80, 125, 140), fill=30)
    for prepared in prepare_object(photo, (1, 28, 28), 0, 0.7):
        middle = prepared.image[0][14]
        assert (middle[:13] > 127).any()
        assert (middle[15:] > 127).any()
        assert middle[13:15].max() < 64


def test_models_of_colour_images_have_one_preparation():
    photo = Image.new("RGB", (100, 50), (10, 200, 30))
    (prepared,) = prepare_candidates(photo, (3, 32, 32), 0.0, 0.7, is_input=False)
    assert [step.name for step in prepared.steps] == ["size"]
    (unchanged,) = prepare_candidates(Image.new("RGB", (32, 32), "white"), (3, 32, 32), 0.0, 0.7, is_input=True)
    assert unchanged.notes == ["used unchanged"]
    (unknown,) = prepare_candidates(photo, (1, 28, 28), None, None, is_input=False)
    assert np.array_equal(unknown.framings, prepare_plain(photo, (1, 28, 28)).framings)


def test_a_photo_for_a_model_with_a_textured_background_is_only_prepared_in_both_polarities():
    photo = Image.new("RGB", (300, 200), "white")
    candidates = prepare_candidates(photo, (1, 28, 28), 120.0, None, is_input=False)
    first, second = (candidate.image for candidate in candidates)
    assert np.array_equal(first, 255 - second)


@pytest.mark.parametrize(
    ("objects", "background", "expected"),
    [
        ([(0, 20), (2, 20)], 0, 20 / 28),
        ([(4, 12)], 255, 12 / 28),
        ([], 0, None),
        ([(0, 20)], 128, None),
    ],
)
def test_the_length_of_the_objects_in_grey_images(objects, background, expected):
    images = torch.full((max(1, len(objects)), 1, 28, 28), background, dtype=torch.uint8)
    for image, (start, length) in zip(images, objects, strict=False):
        image[0, start : start + length, 5:9] = 255 - background if background != 128 else 255
    share = object_share(images, background)
    assert share == (None if expected is None else pytest.approx(expected))
    assert object_share(images.expand(-1, 3, -1, -1), background) is None
