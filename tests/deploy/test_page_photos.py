"""photos.js in a browser against the package gingham.inference: the same images and the same notes for each file."""

import base64
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image, ImageDraw

import gingham
from dataset_files import encode_heic
from gingham.inference.garments import prepare_garment
from gingham.inference.preprocess import is_input_like, least_novel, open_photo, prepare_candidates
from helpers import COLOURS_AND_BACKGROUNDS, draw_garment_photo

pytestmark = pytest.mark.slow

PHOTOS_JS = Path(gingham.__file__).parent / "deploy/web/photos.js"
DIGITS = {"input_shape": [1, 28, 28], "garments": False, "background": 0, "object_share": 0.7}
GARMENT = {"input_shape": [1, 28, 28], "garments": True, "background": None, "object_share": None}
# Before version 13 Pillow always resampled the width first, so that intermediate rounding may differ.
ROUNDING = 0 if int(PIL.__version__.split(".")[0]) >= 13 else 2
SCRIPT = """async ([model, steps]) => {
  const bytes = (data) => {
    let text = '';
    for (const value of data) text += String.fromCharCode(value);
    return btoa(text);
  };
  try {
    const photo = await GinghamPhotos.openPhoto(document.querySelector('input').files[0]);
    const candidates = GinghamPhotos.preprocess(await cv, photo, model).map((candidate) => ({
      ...candidate,
      framings: bytes(candidate.framings),
      steps: candidate.steps.map((step) => ({ ...step, rgba: steps ? bytes(step.rgba) : null })),
    }));
    return { size: [photo.width, photo.height], transparent: photo.transparent, candidates };
  } catch (error) {
    return { error: String(error.message) };
  }
}"""


@pytest.fixture(scope="module")
def page(tmp_path_factory, browser, browser_libraries):
    opencv = tmp_path_factory.mktemp("libraries") / "opencv.js"
    opencv.write_bytes(browser_libraries["opencv.js"])
    scripts = "".join(f'<script src="{path.as_uri()}"></script>' for path in (PHOTOS_JS, opencv))
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><input type="file">{scripts}')
    tab = browser.new_page()
    tab.goto(file.as_uri())
    yield tab
    tab.close()


def in_browser(page, file, model=GARMENT, steps=True):
    """Return the size and transparency of the photo and its candidates, or an error."""
    page.set_input_files("input", file)
    result = page.evaluate(SCRIPT, [model, steps])
    for candidate in result.get("candidates", ()):
        shape = [candidate["count"], *model["input_shape"]]
        candidate["framings"] = np.frombuffer(base64.b64decode(candidate["framings"]), np.uint8).reshape(shape)
    return result


def in_python(file, model=GARMENT):
    photo = open_photo(file)
    shape = tuple(model["input_shape"])
    is_input = is_input_like(photo, shape)
    if model["garments"] and not is_input:
        return [prepare_garment(photo, shape)]
    return prepare_candidates(photo, shape, model["background"], model["object_share"], is_input)


def check_equal(page, file, model=GARMENT):
    """Compare the notes, the framings and the image of every step of all candidates, and return those of Python."""
    candidates, expected_candidates = in_browser(page, file, model)["candidates"], in_python(file, model)
    for candidate, prepared in zip(candidates, expected_candidates, strict=True):
        assert [step["note"] for step in candidate["steps"]] == prepared.notes
        assert [step["name"] for step in candidate["steps"]] == [step.name for step in prepared.steps]
        assert candidate.get("isPhoto", False) == prepared.is_photo
        for step, expected in zip(candidate["steps"], prepared.steps, strict=True):
            rgba = np.frombuffer(base64.b64decode(step["rgba"]), np.uint8).reshape(step["height"], step["width"], 4)
            assert largest_difference(rgba[..., :3], expected.image) == 0, (step["name"], step["note"])
            assert (rgba[..., 3] == 255).all()
        assert largest_difference(candidate["framings"], prepared.framings) == 0
    return expected_candidates


def largest_difference(a, b):
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(("colour", "ground"), COLOURS_AND_BACKGROUNDS)
@pytest.mark.parametrize("corner", [(50, 80), (95, 155), (20, 20)])
def test_drawn_garments(page, tmp_path, colour, ground, corner):
    draw_garment_photo(colour, ground, corner=corner, texture=6)[0].save(tmp_path / "photo.png")
    check_equal(page, tmp_path / "photo.png")


def fake_photo(image, background, tint, seed):
    """Return an image of the dataset as a photo: its negative, enlarged and tinted, on a background."""
    random = np.random.default_rng(seed)
    large = np.asarray(Image.fromarray(image).resize((280, 280), Image.Resampling.BICUBIC)).astype(float)
    large = np.pad(large, ((60, 80), (90, 70)))
    alpha = np.clip(large / 40, 0, 1)[..., None]
    cloth = (255 - large[..., None]) / 255 * np.array(tint)
    rows, columns = np.mgrid[: len(large), : len(large[0])]
    backgrounds = {
        "white": np.full((*large.shape, 3), 255.0),
        "plain": np.full((*large.shape, 3), (150.0, 170.0, 140.0)),
        "patterned": (np.sin(rows / 9) * np.cos(columns / 13))[..., None] * 40 + np.array((170.0, 140.0, 110.0)),
    }
    pixels = alpha * cloth + (1 - alpha) * backgrounds[background] + random.normal(0, 3, (*large.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("background", ["white", "plain", "patterned"])
def test_garments_of_the_dataset(page, tmp_path, fashion_mnist, background):
    for index in range(8):
        image = fashion_mnist.validation.images[index][0].numpy()
        tint = [(60, 90, 160), (200, 60, 60), (230, 220, 200), (90, 90, 90)][index % 4]
        fake_photo(image, background, tint, index).save(tmp_path / "photo.png")
        check_equal(page, tmp_path / "photo.png")


def test_transparent_files(page, tmp_path):
    photo, mask = draw_garment_photo((250, 250, 250), (255, 255, 255), texture=6)
    photo.putalpha(
        Image.fromarray((mask * 255).astype(np.uint8)).resize(photo.size).rotate(3, Image.Resampling.BICUBIC)
    )
    photo.save(tmp_path / "photo.png")
    assert "already cut out" in check_equal(page, tmp_path / "photo.png")[0].notes[1]
    for shape in ([3, 32, 32], [1, 28, 28]):
        check_equal(
            page,
            tmp_path / "photo.png",
            {"input_shape": shape, "garments": False, "background": None, "object_share": None},
        )
    photo.putalpha(255)
    photo.save(tmp_path / "opaque.png")
    assert not in_browser(page, tmp_path / "opaque.png")["transparent"]
    check_equal(page, tmp_path / "opaque.png")


def test_an_image_that_is_negative_already(page, tmp_path):
    draw_garment_photo((140, 140, 140), (0, 0, 0), texture=4)[0].convert("L").save(tmp_path / "photo.png")
    assert "not inverted" in check_equal(page, tmp_path / "photo.png")[0].notes[3]


@pytest.mark.parametrize("size", [(1, 1), (500, 1), (3, 200), (5, 5), (300, 300), (161, 160)])
@pytest.mark.parametrize("kind", ["garment", "plain"])
def test_images_of_one_colour_and_of_a_few_pixels(page, tmp_path, size, kind):
    Image.new("RGB", size, (180, 40, 90)).save(tmp_path / "photo.png")
    model = (
        GARMENT
        if kind == "garment"
        else {"input_shape": [3, 32, 32], "garments": False, "background": None, "object_share": None}
    )
    check_equal(page, tmp_path / "photo.png", model)


@pytest.mark.parametrize("background", [0, 7.5, 255, None])
@pytest.mark.parametrize("shape", [[1, 28, 28], [3, 32, 32], [1, 20, 30]])
@pytest.mark.skipif(ROUNDING > 0, reason="Pillow before 13 rounds differently")
def test_models_of_other_datasets(page, tmp_path, shape, background):
    model = {"input_shape": shape, "garments": False, "background": background, "object_share": 0.7}
    random = np.random.default_rng(0)
    for number, size in enumerate([(300, 400), (640, 97), (27, 31), (1600, 900)]):
        small = Image.fromarray(random.integers(0, 256, (size[1] // 9 + 1, size[0] // 9 + 1, 3), dtype=np.uint8))
        image = (
            small.resize(size)
            if number % 2
            else draw_garment_photo((30, 30, 60), (220, 215, 205), size=size, texture=5)[0]
        )
        image.save(tmp_path / "photo.png")
        check_equal(page, tmp_path / "photo.png", model)


def test_a_border_between_two_values(page, tmp_path):
    pixels = np.full((56, 56), 10, np.uint8)
    pixels[:, 28:] = 11
    pixels[20:36, 20:36] = 160
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    check_equal(page, tmp_path / "photo.png", DIGITS)


def test_an_image_of_the_models_input_size_is_not_changed(page, tmp_path):
    random = np.random.default_rng(0)
    for shape, pixels in (([1, 28, 28], (28, 28)), ([3, 32, 32], (32, 32, 3))):
        values = random.integers(0, 256, pixels, dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "photo.png")
        (result,) = in_browser(page, tmp_path / "photo.png", {**GARMENT, "input_shape": shape, "background": 127})[
            "candidates"
        ]
        assert [(step["name"], step["note"]) for step in result["steps"]] == [("size", "used unchanged")]
        assert np.array_equal(result["framings"][0], values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


def draw_digit(size, ink=40, paper=220, corner=(0.4, 0.3), scale=0.2, noise=3.0, seed=0):
    """Return a photo of a seven in thin lines on unevenly lit paper with ruled lines."""
    random = np.random.default_rng(seed)
    light = paper - np.linspace(0, 40, size[0])[None] * np.linspace(0.5, 1, size[1])[:, None]
    light[:: max(8, size[1] // 12)] -= 12
    image = Image.fromarray((light + random.normal(0, noise, light.shape)).clip(0, 255).astype(np.uint8))
    points = [(0, 0), (0.6, 0), (0.2, 1), (0.35, 0.5), (0.1, 0.5), (0.5, 0.5)]
    length = scale * min(size)
    path = [(corner[0] * size[0] + x * length, corner[1] * size[1] + y * length) for x, y in points]
    ImageDraw.Draw(image).line(path, fill=ink, width=max(1, round(length / 12)))
    return image


@pytest.mark.parametrize("size", [(200, 200), (640, 480), (301, 977)])
@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 14, 32)])
@pytest.mark.skipif(ROUNDING > 0, reason="Pillow before 13 rounds differently")
def test_objects_on_a_plain_background(page, tmp_path, size, background, shape):
    model = {**DIGITS, "input_shape": shape, "background": background}
    small, in_corner = {"scale": 0.1}, {"corner": (0, 0.1), "scale": 0.5}
    for seed, drawing in enumerate(({}, {"ink": 250, "paper": 60}, small, in_corner)):
        draw_digit(size, seed=seed, **drawing).save(tmp_path / "photo.png")
        assert len(check_equal(page, tmp_path / "photo.png", model)) == 14


def test_images_of_the_models_size_but_another_background(page, tmp_path, fashion_mnist):
    for index in range(5):
        image = 255 - fashion_mnist.validation.images[index, 0].numpy()
        Image.fromarray(image).save(tmp_path / "photo.png")
        assert check_equal(page, tmp_path / "photo.png", DIGITS)[0].notes == ["used unchanged"]
        assert len(check_equal(page, tmp_path / "photo.png", {**GARMENT, "background": 0})) == 3
        Image.fromarray(255 - image).save(tmp_path / "photo.png")
        assert len(check_equal(page, tmp_path / "photo.png", DIGITS)) == 1


def test_the_least_novel_candidate_is_chosen(page, tmp_path):
    draw_digit((300, 400)).save(tmp_path / "photo.png")
    page.set_input_files("input", tmp_path / "photo.png")
    script = """async ([model, novelty]) => {
      const photo = await GinghamPhotos.openPhoto(document.querySelector('input').files[0]);
      const candidates = GinghamPhotos.preprocess(await cv, photo, model);
      const { steps, framings, ...best } = GinghamPhotos.leastNovel(candidates, novelty);
      return { ...best, steps: steps.map(({ name, note }) => [name, note]), framings: [...framings] };
    }"""
    novelty = [9.0] * 14
    novelty[4], novelty[11] = -2.49, -2.5  # differ by rounding
    chosen, expected = (
        page.evaluate(script, [DIGITS, novelty]),
        least_novel(in_python(tmp_path / "photo.png", DIGITS), novelty),
    )
    assert (chosen["index"], chosen["novelty"]) == (4, -2.49)
    assert chosen["steps"] == [[step.name, step.note] for step in expected.steps]
    assert chosen["framings"] == expected.framings.flatten().tolist()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_rotated_as_their_exif_data_says(page, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo, _ = draw_garment_photo((40, 60, 120), (200, 180, 150), size=(310, 420), texture=6)
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=90)
    check_equal(page, tmp_path / "photo.jpg")


@pytest.mark.parametrize(
    ("mode", "file"),
    [
        ("L", "photo.jpg"),
        ("CMYK", "photo.jpg"),
        ("RGB", "photo.webp"),
        ("RGBA", "photo.webp"),
        ("P", "photo.gif"),
        ("RGB", "photo.bmp"),
        ("1", "photo.png"),
        ("P", "photo.png"),
        ("LA", "photo.png"),
    ],
)
def test_all_file_formats_and_modes(page, tmp_path, mode, file):
    draw_garment_photo((40, 60, 120), (200, 180, 150), texture=6)[0].convert(mode).save(tmp_path / file)
    check_equal(page, tmp_path / file)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_avif_photos_differ_only_by_rounding(page, tmp_path, mode, orientation):
    """The conversion from YUV to RGB of the browser rounds differently from that of Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo, _ = draw_garment_photo((40, 60, 120), (200, 180, 150), size=(310, 420))
    photo.convert(mode).save(tmp_path / "photo.avif", quality=95, exif=exif)
    result, (prepared,) = in_browser(page, tmp_path / "photo.avif"), in_python(tmp_path / "photo.avif")
    assert result["size"] == ([310, 420] if orientation == 1 else [420, 310])
    (candidate,) = result["candidates"]
    assert [step["name"] for step in candidate["steps"]] == [step.name for step in prepared.steps]
    assert np.abs(candidate["framings"].astype(int) - prepared.framings).mean() <= 2


@pytest.mark.parametrize(
    ("size", "file"), [((1300, 1700), "photo.jpg"), ((4000, 3000), "photo.jpg"), ((3600, 4601), "photo.png")]
)
def test_photos_of_the_size_of_a_phone(page, tmp_path, size, file):
    photo, _ = draw_garment_photo((40, 60, 120), (200, 180, 150), texture=9)
    photo.resize(size, Image.Resampling.BICUBIC).save(tmp_path / file, quality=85, compress_level=1)
    check_equal(page, tmp_path / file)


def test_larger_photos_are_halved_to_save_memory(page, tmp_path):
    """Python does not halve them, so that the results differ by rounding."""
    photo, _ = draw_garment_photo((40, 60, 120), (200, 180, 150), texture=9)
    photo.resize((5203, 5120), Image.Resampling.BICUBIC).save(tmp_path / "photo.jpg", quality=85)
    result, (prepared,) = in_browser(page, tmp_path / "photo.jpg", steps=False), in_python(tmp_path / "photo.jpg")
    assert result["size"] == [2602, 2560]
    (candidate,) = result["candidates"]
    assert [step["note"] for step in candidate["steps"]][:3] == prepared.notes[:3]
    difference = np.abs(candidate["framings"].astype(int) - prepared.framings)
    assert difference.max() <= 32
    assert difference.mean() <= 1


def test_unreadable_files_give_a_one_line_error(page, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "heic.jpg").write_bytes(encode_heic(Image.new("RGB", (64, 64))))
    Image.new("1", (20_000, 7_000)).save(tmp_path / "huge.png")
    for name, reason in (
        ("text.jpg", "text.jpg cannot be read as an image"),
        ("empty.png", "empty.png is empty (0 bytes); choose an image"),
        ("heic.jpg", "heic.jpg is a HEIC photo, which this browser cannot read; save it as a JPEG"),
        ("huge.png", "huge.png has 20000x7000 pixels; allowed: 120,000,000; reduce its size"),
    ):
        message = in_browser(page, tmp_path / name)["error"]
        assert message.startswith(reason)
        assert "\n" not in message


def test_resampling_equals_that_of_pillow(page):
    """Random sizes, shrunk and enlarged, with and without a first integer reduction, opaque and transparent."""
    random = np.random.default_rng(0)
    script = """([data, transparent, width, height, size, filter, gap]) => {
      const pixels = Uint8ClampedArray.from(atob(data), (c) => c.charCodeAt(0));
      const image = { width, height, channels: 4, transparent, data: pixels };
      const { thumbnail, resize } = GinghamPhotos;
      const small = size === null
        ? thumbnail(image, 160)
        : resize(image, ...size, GinghamPhotos[filter], gap ?? undefined);
      return [small.width, small.height, btoa(String.fromCharCode(...small.data))];
    }"""
    for number in range(60):
        width, height = (int(side) for side in random.integers(1, 700, 2))
        size = [int(side) for side in random.integers(1, 60, 2)]
        name, gap = [("LANCZOS", 3), ("LANCZOS", None), ("BICUBIC", None)][number % 3]
        pixels = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
        if transparent := number % 2 == 1:
            pixels[..., 3] = random.choice([0, 255, 77], (height, width))
        else:
            pixels[..., 3] = 255
        image = Image.fromarray(pixels)
        if number % 5 == 0:
            image.thumbnail((160, 160), Image.Resampling.LANCZOS)
            size = None
        else:
            image = image.resize(size, Image.Resampling[name], reducing_gap=gap)
        data = base64.b64encode(pixels.tobytes()).decode()
        result = page.evaluate(script, [data, transparent, width, height, size, name, gap])
        assert tuple(result[:2]) == image.size
        resampled = np.frombuffer(base64.b64decode(result[2]), np.uint8).reshape(image.height, image.width, 4)
        assert largest_difference(resampled, np.asarray(image)) <= ROUNDING, (width, height, size, name, gap)


@pytest.mark.parametrize("model", [GARMENT, DIGITS])
def test_memory_of_opencv_is_freed(page, tmp_path, model):
    """A large matrix gets the same address each time only if the earlier ones were freed."""
    draw_garment_photo((40, 60, 120), (200, 180, 150), texture=6)[0].save(tmp_path / "photo.png")
    page.set_input_files("input", tmp_path / "photo.png")
    script = """async (model) => {
      const photo = await GinghamPhotos.openPhoto(document.querySelector('input').files[0]);
      const opencv = await cv;
      const addresses = [];
      for (let time = 0; time < 9; time++) {
        GinghamPhotos.preprocess(opencv, photo, model);
        const mat = new opencv.Mat(2000, 2000, opencv.CV_8UC1);
        addresses.push(mat.data.byteOffset);
        mat.delete();
      }
      return addresses;
    }"""
    addresses = page.evaluate(script, model)
    assert len(set(addresses[2:])) == 1
