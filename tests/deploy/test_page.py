"""The page in a real browser, from a server and from disk: predictions, explanations and the user interface."""

import base64
import io
import json
import re
import threading

import httpx2
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import gingham
from dataset_files import encode_heic
from gingham.deploy import server as serving
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, features, gallery
from gingham.inference.predict import preprocess
from helpers import COLOURS_AND_BACKGROUNDS, draw_garment_photo
from http_requests import encode_image, explain_with_neighbours

pytestmark = pytest.mark.slow

PREDICT = """async (file) => {
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
  const prediction = await GinghamEngine.predict(new File([bytes], file.name, { type: file.type }));
  const explanation = file.explain ? await GinghamEngine.explain(prediction) : null;
  return { ...prediction, framing: null, explanation };
}"""


@pytest.fixture(scope="module")
def exported_page(tmp_path_factory, packaged, fashion_mnist, browser_libraries):
    return gingham.export(packaged, tmp_path_factory.mktemp("page") / "page.html", fashion_mnist).file


@pytest.fixture(scope="module")
def served_url(packaged, fashion_mnist):
    listener = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(serving.create_app(packaged, lambda: fashion_mnist.train), log_level="error")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    try:
        with httpx2.Client(base_url=url, timeout=60) as client:
            explain_with_neighbours(client, encode_image(draw_garment_photo((40, 60, 120), (255, 255, 255))[0]))
        yield url
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(params=["from disk", "served"])
def page(request, browser):
    """A tab with the page. Console errors and warnings, and requests to other hosts, fail the test."""
    address = (
        request.getfixturevalue("exported_page").as_uri()
        if request.param == "from disk"
        else request.getfixturevalue("served_url")
    )
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    requests, messages = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.goto(address)
    yield tab
    context.close()
    allowed = ("blob:", "data:", address if request.param == "from disk" else request.getfixturevalue("served_url"))
    assert [url[:100] for url in requests if not url.startswith(allowed)] == []
    # Browsers log the status of a refused image themselves.
    assert [message for message in messages if "422 (Unprocessable" not in message] == []


def save_images(folder, fashion_mnist):
    """Save drawn photos, and images of the dataset, unchanged and enlarged as photos, and return their files."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, (colour, ground) in enumerate(COLOURS_AND_BACKGROUNDS):
        photo, _ = draw_garment_photo(colour, ground, texture=6)
        files += [folder / f"drawn-{number}.png", folder / f"drawn-{number}.jpg"]
        photo.save(files[-2])
        photo.save(files[-1], quality=88)
    for number in range(12):
        image = Image.fromarray(fashion_mnist.validation.images[number, 0].numpy())
        files.append(folder / f"dataset-{number}.png")
        image.save(files[-1])
        enlarged = image.resize((420, 420), Image.Resampling.BICUBIC)
        light = np.asarray(enlarged, np.float32)[..., None] / 255
        colour = np.array([(90, 30, 40), (20, 70, 110), (230, 220, 200)][number % 3])
        pixels = (
            np.where(light > 0.04, colour * (0.4 + 0.6 * (1 - light)), (250, 248, 245)).clip(0, 255).astype(np.uint8)
        )
        files.append(folder / f"enlarged-{number}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=92)
    return files


def predict(page, file, *, explain=False):
    kind = "image/jpeg" if file.suffix == ".jpg" else "image/png"
    content = base64.b64encode(file.read_bytes()).decode()
    return page.evaluate(PREDICT, {"name": file.name, "content": content, "type": kind, "explain": explain})


def assert_equal_prediction(prediction, expected):
    """Compare a prediction of the page with one of the library."""
    name = expected.image
    for field in ("label", "threshold", "unsure", "novel"):
        assert prediction[field] == getattr(expected, field), (name, field)
    assert prediction["novelty"] == pytest.approx(expected.novelty, abs=0.02), name
    for label, share in expected.probabilities.items():
        assert prediction["probabilities"][label] == pytest.approx(share, abs=1e-4), name
    steps = [(step.name, step.note) for step in expected.prepared.steps]
    assert [(step["step"], step["note"]) for step in prediction["steps"]] == steps, name


def test_predictions_equal_those_of_the_library(page, packaged, fashion_mnist, tmp_path):
    files = save_images(tmp_path / "images", fashion_mnist)
    for file, expected in zip(files, gingham.predict(packaged, files), strict=True):
        prediction = predict(page, file)
        assert_equal_prediction(prediction, expected)


@pytest.fixture(scope="module")
def digit_page(browser, browser_libraries, digit_run, tmp_path_factory):
    run, data = digit_run
    tab = browser.new_page()
    tab.goto(gingham.export(run, tmp_path_factory.mktemp("digits") / "digits.html", data, neighbours=20).file.as_uri())
    yield tab
    tab.close()


def test_predictions_of_digits_equal_those_of_the_library(digit_page, digit_run, digit_files):
    expected = gingham.predict(digit_run[0], digit_files)
    for file, prediction in zip(digit_files, expected, strict=True):
        assert_equal_prediction(predict(digit_page, file), prediction)
    assert {len(prediction.prepared.steps) > 1 for prediction in expected} == {False, True}
    assert {prediction.novel for prediction in expected} == {False, True}


def test_a_digit_on_a_white_page_is_classified(digit_page, digit_files):
    digit_page.set_input_files("#file", next(file for file in digit_files if file.stem == "small-7"))
    digit_page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    assert digit_page.inner_text("#kicker").startswith("Prediction, with")
    assert "the one most like the training images" in digit_page.inner_text("#steps li:last-child")


def test_explanations_equal_those_of_the_library(page, packaged, fashion_mnist, tmp_path):
    candidates = gallery(packaged.model, fashion_mnist.train, GALLERY_SIZE)
    for file in save_images(tmp_path / "images", fashion_mnist)[:14:3]:
        prediction = predict(page, file, explain=True)
        image = torch.tensor(preprocess(packaged, Image.open(file)).image)
        occlusion_map = occlusion(packaged.model, image, packaged.model.classes.index(prediction["label"]), 5, 2)
        assert np.abs(np.array(prediction["explanation"]["moved"]) - occlusion_map.numpy()).max() < 2e-4
        nearest = candidates.nearest(features(packaged.model, image[None])[0], 12)
        neighbours = prediction["explanation"]["neighbours"]
        # With int8 features, neighbours of nearly equal similarity may change their order.
        assert len(neighbours) == 6
        assert sum(neighbour["label"] in {candidates.labels[k] for k in nearest[:6]} for neighbour in neighbours) >= 5
        first = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(neighbours[0]["picture"].partition(",")[2]))).convert("L")
        )
        assert any((first == candidate).all() for candidate in candidates.images[nearest][:, 0].numpy())


def test_a_chosen_image_gets_a_prediction_and_an_explanation(page, packaged, tmp_path):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    (expected,) = gingham.predict(packaged, [tmp_path / "shirt.png"])
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#like li", timeout=60_000)
    assert page.inner_text("#verdict") == expected.label
    assert page.locator("#steps li").count() == 7
    assert page.locator("#bars .name").count() == 10
    assert f"threshold {100 * float(packaged.model.photo_threshold):.0f} %" in page.inner_text("#bars")
    assert expected.label in page.inner_text("#status")
    assert page.locator("#like li").count() == 6
    count_unnamed = (
        "[...document.querySelectorAll('img, canvas[role=img]')].filter((e) => !(e.alt || e.ariaLabel)).length"
    )
    assert page.evaluate(count_unnamed) == 0


def test_an_image_of_something_else_is_shown_as_such(page, digit_files):
    page.set_input_files("#file", next(file for file in digit_files if file.stem == "stripes"))
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    kicker = "Unlike anything it was trained on. Nearest class:"
    assert page.inner_text("#kicker") == kicker
    assert "It may belong to none of the classes" in page.inner_text("#meaning")
    assert page.inner_text("#status").startswith(f"{kicker} {page.inner_text('#verdict')}, ")
    assert "unsure" in page.get_attribute("#result", "class")
    page.wait_for_selector("#like li", timeout=60_000)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_a_pasted_or_dropped_image_gets_a_prediction(page, event, tmp_path):
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    content = base64.b64encode((tmp_path / "shirt.png").read_bytes()).decode()
    page.evaluate(
        """([event, content]) => {
          const data = new DataTransfer();
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          data.items.add(new File([bytes], 'shirt.png', { type: 'image/png' }));
          document.dispatchEvent(event === 'drop'
            ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
        }""",
        [event, content],
    )
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.png", b"\x89PNG\r\n\x1a\nnothing", "torn.png"),
        ("letter.txt", b"Dear Sir", "letter.txt is not an image"),
        ("empty.png", b"", "empty"),
    ],
)
def test_unreadable_files_show_a_one_line_error(page, name, content, message, tmp_path, request):
    (tmp_path / name).write_bytes(content)
    page.set_input_files("#file", tmp_path / name)
    page.wait_for_selector("#error:not([hidden])", timeout=60_000)
    text = page.inner_text("#error")
    assert message in text
    assert "\n" not in text
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)


def test_photos_of_phones_are_classified_if_the_browser_or_the_server_can_read_them(page, tmp_path, request):
    """Chromium reads AVIF but not HEIC, and may not know the type of either."""
    photo = draw_garment_photo((40, 60, 120), (255, 255, 255))[0]
    photo.save(tmp_path / "shirt.avif", quality=95)
    (tmp_path / "shirt.HEIC").write_bytes(encode_heic(photo))
    page.set_input_files("#file", tmp_path / "shirt.avif")
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    label = page.inner_text("#verdict")
    page.set_input_files("#file", tmp_path / "shirt.HEIC")
    if "from disk" in request.node.name:
        page.wait_for_selector("#error:not([hidden])", timeout=60_000)
        advice = "save it as a JPEG and choose that"
        assert page.inner_text("#error") == f"shirt.HEIC is a HEIC photo, which this browser cannot read; {advice}"
        assert page.get_attribute("#file", "accept") == "image/*"  # with it, iPhones convert their photos to JPEG
    else:
        page.wait_for_selector("#preview:not([hidden])[src^='data:']", timeout=60_000)
        assert page.inner_text("#verdict") == label
        assert page.get_attribute("#file", "accept") == "image/*,.heic,.heif,.hif,.avif"


def test_drawing_works_with_only_the_keyboard(page):
    page.focus("#draw")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "paper"
    strokes = (
        [("ArrowLeft", 3), ("ArrowUp", 3)],
        [("ArrowRight", 6), ("ArrowDown", 7), ("ArrowLeft", 6), ("ArrowUp", 7)],
    )
    for key, count in strokes[0]:
        for _ in range(count):
            page.keyboard.press(f"Shift+{key}")
    page.keyboard.press("Space")
    assert page.inner_text("#status") == "Pen down"
    for key, count in strokes[1]:
        for _ in range(count):
            page.keyboard.press(f"Shift+{key}")
    page.keyboard.press("Space")
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict")
    assert page.is_enabled("#undo")
    page.click("#undo")
    assert page.is_disabled("#undo")
    assert page.is_visible("#empty"), "an empty drawing has no prediction"
    assert page.is_hidden("#explanation")
    page.click("#finish")
    assert page.evaluate("document.activeElement.id") == "draw"


def test_drawing_works_with_a_pointer(page):
    page.click("#draw")
    box = page.locator("#paper").bounding_box()
    corners = [(0.3, 0.15), (0.7, 0.15), (0.7, 0.9), (0.55, 0.9), (0.5, 0.35), (0.45, 0.9), (0.3, 0.9)]
    for k, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if not k:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#prediction:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict") == "Trouser"
    page.click("#finish")
    page.wait_for_selector("#preview:not([hidden])")


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_is_wider_than_the_screen(page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 800})
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#like li", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_file_needs_no_network_and_may_not_send_data(exported_page, packaged):
    text = exported_page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "form-action 'none'" in policy
    assert not re.findall(r"""<[^>]+(?:src|href|action)=["']?(?:https?:)?//""", text)
    metadata = json.loads(re.search(r'id="metadata">(.*?)</script>', text)[1])
    assert metadata["classes"] == list(packaged.model.classes)
    assert len(metadata["labels"]) == GALLERY_SIZE


def test_a_page_of_a_model_of_own_colour_images(browser, browser_libraries, tmp_path):
    """Images are prepared as those of the run were, and class names are not interpreted as HTML."""
    random = np.random.RandomState(0)
    for name, colour in (('<b>red</b> & "co"', (200, 40, 40)), ("green", (40, 180, 60))):
        folder = tmp_path / "data" / name.replace("/", "\N{FRACTION SLASH}")
        folder.mkdir(parents=True)
        for k in range(30):
            pixels = (np.array(colour) + random.randint(-30, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{k}.png")
    data = gingham.load_data(str(tmp_path / "data"), validation=10)
    recipe = gingham.RECIPES["fast-85"].replace(epochs=4, batch_size=10, validation_images=10)
    run = gingham.fit(recipe, data.train, data.validation, progress=False)
    file = gingham.export(run, tmp_path / "own.html", data, neighbours=20).file
    photo = Image.fromarray(
        (np.array((190, 60, 60)) + random.randint(-20, 20, (90, 70, 3))).clip(0, 255).astype(np.uint8)
    )
    photo.save(tmp_path / "photo.png")
    (expected,) = gingham.predict(run, [tmp_path / "photo.png"])
    tab = browser.new_page()
    tab.goto(file.as_uri())
    prediction = predict(tab, tmp_path / "photo.png", explain=True)
    assert_equal_prediction(prediction, expected)
    assert len(prediction["explanation"]["neighbours"]) == 6
    assert tab.inner_text("h1") == "What is this?"
    tab.close()
