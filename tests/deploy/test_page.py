"""The page in a real browser, served and as one file from disk: it answers, explains and is used as a person would."""

import base64
import io
import json
import re
import threading

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import gingham
from gingham.deploy import server as serving
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, features, gallery
from gingham.inference.predict import preprocess
from helpers import GROUNDS, drawn

pytestmark = pytest.mark.slow

ANSWER = """async (file) => {
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0));
  const entry = await GinghamEngine.answer(new File([bytes], file.name, { type: file.type }));
  const why = file.explain ? await GinghamEngine.explain(entry) : null;
  return { ...entry, picture: null, why };
}"""


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


@pytest.fixture(scope="module")
def one_file(tmp_path_factory, packaged, fashion_mnist, browser_libraries):
    return gingham.export(packaged, tmp_path_factory.mktemp("page") / "page.html", fashion_mnist).file


@pytest.fixture(scope="module")
def served(packaged, fashion_mnist):
    place = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serving.create_app(packaged, lambda: fashion_mnist.train), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield f"http://127.0.0.1:{place.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["from disk", "served"])
def page(request, browser):
    """A tab with the page in it. Whatever it complains of, or asks of anyone else, fails the test."""
    address = (
        request.getfixturevalue("one_file").as_uri() if request.param == "from disk" else request.getfixturevalue("served")
    )
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    asked, complaints = [], []
    tab.on("request", lambda sent: asked.append(sent.url))
    tab.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(address)
    yield tab
    context.close()
    allowed = ("blob:", "data:", address if request.param == "from disk" else request.getfixturevalue("served"))
    assert [url[:100] for url in asked if not url.startswith(allowed)] == []
    # Of a refused picture every browser says that itself.
    assert [said for said in complaints if "422 (Unprocessable" not in said] == []


def photographs(folder, fashion_mnist):
    """Photographs of every kind, and pictures of the dataset: what there is to compare."""
    folder.mkdir(exist_ok=True)
    files = []
    for number, (colour, ground) in enumerate(GROUNDS):
        photo, _ = drawn(colour, ground, texture=6)
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
        pixels = np.where(light > 0.04, colour * (0.4 + 0.6 * (1 - light)), (250, 248, 245)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"enlarged-{number}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=92)
    return files


def ask(page, file, *, explain=False):
    kind = "image/jpeg" if file.suffix == ".jpg" else "image/png"
    content = base64.b64encode(file.read_bytes()).decode()
    return page.evaluate(ANSWER, {"name": file.name, "content": content, "type": kind, "explain": explain})


def test_it_answers_as_predict_does(page, packaged, fashion_mnist, tmp_path):
    files = photographs(tmp_path / "photographs", fashion_mnist)
    for file, expected in zip(files, gingham.predict(packaged, files), strict=True):
        said = ask(page, file)
        assert (said["label"], said["unsure"]) == (expected.label, expected.unsure), file.name
        for name, share in expected.probabilities.items():
            assert said["probabilities"][name] == pytest.approx(share, abs=1e-4), file.name
        wanted = [(step.name, step.note) for step in expected.prepared.steps]
        assert [(step["step"], step["note"]) for step in said["steps"]] == wanted


def test_it_explains_as_predict_does(page, packaged, fashion_mnist, tmp_path):
    some = gallery(packaged.model, fashion_mnist.train, GALLERY_SIZE)
    for file in photographs(tmp_path / "photographs", fashion_mnist)[:14:3]:
        said = ask(page, file, explain=True)
        prepared = preprocess(packaged, Image.open(file))
        picture = torch.tensor(prepared.image)
        moved = occlusion(packaged.model, picture, packaged.model.classes.index(said["label"]), 5, 2)
        assert np.abs(np.array(said["why"]["moved"]) - moved.numpy()).max() < 2e-4
        like = some.nearest(features(packaged.model, picture[None])[0], 6)
        shown = [neighbour["label"] for neighbour in said["why"]["neighbours"]]
        # Kept in bytes, pictures that are nearly as alike may change places.
        assert len(shown) == 6
        assert sum(label in {some.labels[k] for k in like} for label in shown) >= 5
        first = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(said["why"]["neighbours"][0]["picture"].partition(",")[2]))).convert("L")
        )
        nearby = some.images[some.nearest(features(packaged.model, picture[None])[0], 12)][:, 0].numpy()
        assert any((first == one).all() for one in nearby)


def test_a_picture_chosen_is_answered_and_explained(page, packaged, tmp_path):
    drawn((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    (expected,) = gingham.predict(packaged, [tmp_path / "shirt.png"])
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#like li", timeout=60_000)
    assert page.inner_text("#verdict") == expected.label
    assert page.locator("#steps li").count() == 7
    assert page.locator("#bars .name").count() == 10
    assert f"sure from {100 * float(packaged.model.threshold):.0f} %" in page.inner_text("#bars")
    assert expected.label in page.inner_text("#status")
    assert page.locator("#like li").count() == 6
    unnamed = "[...document.querySelectorAll('img, canvas[role=img]')].filter((e) => !(e.alt || e.ariaLabel)).length"
    assert page.evaluate(unnamed) == 0


@pytest.mark.parametrize("way", ["paste", "drop"])
def test_a_picture_pasted_or_dropped_is_answered(page, way, tmp_path):
    drawn((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    content = base64.b64encode((tmp_path / "shirt.png").read_bytes()).decode()
    page.evaluate(
        """([way, content]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], 'shirt.png', { type: 'image/png' }));
          document.dispatchEvent(way === 'drop' ? new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent('paste', { clipboardData: data, bubbles: true }));
        }""",
        [way, content],
    )
    page.wait_for_selector("#said:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("torn.png", b"\x89PNG\r\n\x1a\nnothing", "torn.png"),
        ("letter.txt", b"Dear Sir", "letter.txt is no picture"),
        ("empty.png", b"", "empty"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(page, name, content, said, tmp_path, request):
    (tmp_path / name).write_bytes(content)
    page.set_input_files("#file", tmp_path / name)
    page.wait_for_selector("#error:not([hidden])", timeout=60_000)
    text = page.inner_text("#error")
    assert said in text
    assert "\n" not in text
    drawn((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#said:not([hidden])", timeout=60_000)


def test_a_drawing_is_made_and_answered_with_the_keyboard_alone(page):
    page.focus("#draw")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "paper"
    strokes = [("ArrowLeft", 3), ("ArrowUp", 3)], [("ArrowRight", 6), ("ArrowDown", 7), ("ArrowLeft", 6), ("ArrowUp", 7)]
    for key, count in strokes[0]:
        for _ in range(count):
            page.keyboard.press(f"Shift+{key}")
    page.keyboard.press("Space")
    assert page.inner_text("#status") == "Pen down"
    for key, count in strokes[1]:
        for _ in range(count):
            page.keyboard.press(f"Shift+{key}")
    page.keyboard.press("Space")
    page.wait_for_selector("#said:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict")
    assert page.is_enabled("#undo")
    page.click("#undo")
    assert page.is_disabled("#undo")
    assert page.is_visible("#empty"), "an empty paper has no answer"
    assert page.is_hidden("#why")
    page.click("#leave")
    assert page.evaluate("document.activeElement.id") == "draw"


def test_a_drawing_is_made_with_a_pointer(page):
    page.click("#draw")
    box = page.locator("#paper").bounding_box()
    corners = [(0.3, 0.15), (0.7, 0.15), (0.7, 0.9), (0.55, 0.9), (0.5, 0.35), (0.45, 0.9), (0.3, 0.9)]
    for k, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if not k:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_selector("#said:not([hidden])", timeout=60_000)
    assert page.inner_text("#verdict") == "Trouser"
    page.click("#leave")
    page.wait_for_selector("#shown:not([hidden])")


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_is_wider_than_the_screen(page, width, tmp_path):
    page.set_viewport_size({"width": width, "height": 800})
    drawn((40, 60, 120), (255, 255, 255))[0].save(tmp_path / "shirt.png")
    page.set_input_files("#file", tmp_path / "shirt.png")
    page.wait_for_selector("#like li", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_file_holds_all_it_needs_and_may_send_nothing(one_file, packaged):
    text = one_file.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "form-action 'none'" in policy
    assert not re.findall(r"""<[^>]+(?:src|href|action)=["']?(?:https?:)?//""", text)
    metadata = json.loads(re.search(r'id="metadata">(.*?)</script>', text)[1])
    assert metadata["classes"] == list(packaged.model.classes)
    assert len(metadata["labels"]) == GALLERY_SIZE


def test_a_page_of_own_data_in_colour(browser, browser_libraries, tmp_path):
    """Pictures of other kinds are prepared as those of the run were, and names from the user stay text."""
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
    photo = Image.fromarray((np.array((190, 60, 60)) + random.randint(-20, 20, (90, 70, 3))).clip(0, 255).astype(np.uint8))
    photo.save(tmp_path / "photo.png")
    (expected,) = gingham.predict(run, [tmp_path / "photo.png"])
    tab = browser.new_page()
    tab.goto(file.as_uri())
    said = ask(tab, tmp_path / "photo.png", explain=True)
    assert said["label"] == expected.label
    for name, share in expected.probabilities.items():
        assert said["probabilities"][name] == pytest.approx(share, abs=1e-4)
    assert len(said["why"]["neighbours"]) == 6
    assert tab.inner_text("h1") == "What is this?"
    tab.close()
