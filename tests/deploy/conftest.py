"""Shared fixtures: the packaged model, and its server as an app, on a port, and as a process; a model of digits."""

import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw, ImageFont

import gingham
from gingham.deploy import server as serving
from helpers import draw_garment_photo


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


@pytest.fixture(scope="session")
def packaged_onnx(tmp_path_factory, fashion_mnist):
    """The file of the packaged model, exported once."""
    return gingham.export(gingham.load_packaged(), tmp_path_factory.mktemp("onnx") / "model.onnx", fashion_mnist).file


@pytest.fixture(scope="session")
def digit_run(tmp_path_factory):
    """A run of drawn digits, light on black as in MNIST, and its data."""
    random = np.random.default_rng(0)
    images = np.zeros((480, 28, 28), np.uint8)
    labels = np.arange(len(images)) % 4
    for image, label in zip(images, labels, strict=True):
        height = random.integers(50, 65)
        drawing = {"height": height, "corner": (random.integers(16, 29), random.integers(6, 78 - height))}
        photo = draw_digit("0147"[label], (84, 84), ink=random.integers(190, 256), paper=0, seed=random, **drawing)
        image[:] = np.asarray(photo.resize((28, 28), Image.Resampling.BOX))
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, images=images, labels=labels)
    data = gingham.load_data(str(file), validation=120)
    recipe = gingham.RECIPES["fast-85"].replace(epochs=12, batch_size=32, validation_images=120)
    return gingham.fit(recipe, data.train, data.validation, progress=False), data


def draw_digit(digit, size, *, ink=40, paper=225, height=60, corner=(50, 40), noise=0.0, seed=None):
    """Return a grey image with a digit on a plain background, slightly rotated, with lines of random width."""
    random = np.random.default_rng(seed)
    mask = Image.new("L", size)
    font = ImageFont.load_default(height * 4 / 3)  # whose digits have three quarters of its size
    width = height * random.uniform(0, 0.06)
    left, top, *_ = font.getbbox(digit)
    ImageDraw.Draw(mask).text((corner[0] - left, corner[1] - top), digit, fill=255, font=font, stroke_width=width)
    centre = (corner[0] + height / 3, corner[1] + height / 2)
    share = np.asarray(mask.rotate(random.uniform(-15, 15), Image.Resampling.BICUBIC, center=centre)) / 255
    pixels = paper + (ink - paper) * share + random.normal(0, noise, share.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def digit_files(tmp_path_factory, digit_run):
    """Images for the model of digits, by name: like those of its dataset, their negatives, photos, and other things."""
    _, data = digit_run
    own = data.validation.images[:, 0].numpy()
    random = np.random.default_rng(1)
    images = {
        **{f"own-{k}": Image.fromarray(own[k]) for k in range(3)},
        **{f"negative-{k}": Image.fromarray(255 - own[k]) for k in range(3)},
        **{f"small-{digit}": draw_digit(digit, (640, 480), noise=3, seed=5) for digit in "0147"},
        "white-on-dark": draw_digit("4", (300, 400), ink=240, paper=30, height=90, noise=3, seed=6),
        "large": draw_digit("7", (300, 300), height=220, seed=7),
        "noise": Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)),
        "stripes": Image.fromarray(np.tile(np.uint8([[0, 0, 255, 255]]), (28, 7))),
        "blank": Image.new("L", (28, 28), 0),
        "white": Image.new("L", (100, 80), 255),
        "shirt": draw_garment_photo((200, 40, 40), (150, 150, 150), texture=6)[0],
    }
    folder = tmp_path_factory.mktemp("digit-images")
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in images]


@pytest.fixture(scope="module")
def client(packaged):
    with TestClient(serving.create_app(packaged)) as client:
        yield client


@pytest.fixture
def port(packaged):
    """The port of a server in this process, for tests that need a real connection."""
    listener = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serving.create_app(packaged), http="h11", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def process(tmp_path):
    """`gingham serve` as a user starts it, and its port."""
    # Restore Ctrl-C: if the tests run in the background, it is ignored, and child processes inherit this.
    script = (
        "import signal, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('gingham', run_name='__main__')"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    line = started.stderr.readline()
    yield started, int(re.search(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
    started.kill()
    started.wait()
    started.stderr.close()
