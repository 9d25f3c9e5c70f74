"""Shared fixtures: a small dataset made on the spot, the real one where it is found, and the command line."""

import contextlib
import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core for each worker: more threads would wait for each other

import numpy as np  # only now may torch be imported
import pytest

import gingham
from gingham.data.idx import IDX_FILES
from gingham.data.registry import find_dataset_dir
from gingham.deploy.browser_libraries import library_files

ROOT = Path(__file__).resolve().parent.parent


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def make_dataset(folder: Path, train: int = 300, test: int = 80, classes: int = 4, side: int = 28, seed: int = 0) -> Path:
    """Write four IDX files of noisy pictures with one bright quadrant a class: learned within an epoch or two."""
    random = np.random.RandomState(seed)
    half = side // 2
    corners = [(0, 0), (0, half), (half, 0), (half, half)]
    for count, (images_name, labels_name) in ((train, IDX_FILES[:2]), (test, IDX_FILES[2:])):
        labels = (np.arange(count) % classes).astype(np.uint8)
        images = random.randint(0, 90, (count, side, side)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = corners[label]
            image[row : row + half, column : column + half] += 140
        write_idx(folder / images_name, images)
        write_idx(folder / labels_name, labels)
    return folder


@pytest.fixture
def quadrants(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "quadrants")


@pytest.fixture
def small_run(quadrants: Path) -> tuple["gingham.Run", "gingham.DataSplits"]:
    data = gingham.load_data(str(quadrants), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32, validation_images=40)
    return gingham.fit(recipe, data.train, data.validation, progress=False), data


@pytest.fixture(scope="session")
def fashion_mnist_folder() -> Path:
    """The real dataset. CI installs it, so that nothing is skipped there; elsewhere `make data` fetches it."""
    folder = find_dataset_dir("fashion-mnist")
    if folder is None:
        pytest.skip("Fashion-MNIST is not on this machine; make data fetches it")
    return folder


@pytest.fixture(scope="session")
def fashion_mnist(fashion_mnist_folder: Path) -> "gingham.DataSplits":
    return gingham.load_data("fashion-mnist")


@pytest.fixture(scope="module")  # while it lives its event loop runs in this thread, and no other can
def browser():
    """A real browser. CI installs one, so that nothing is skipped there."""
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"there is no browser: none of {', '.join(names)}")
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        window = playwright.chromium.launch(executable_path=found, args=arguments)
        yield window
        window.close()


@pytest.fixture(scope="session")
def browser_libraries() -> dict[str, bytes]:
    """ONNX Runtime and OpenCV for browsers: from the cache, or downloaded."""
    try:
        return library_files()
    except gingham.DataError as error:
        pytest.skip(str(error))


class Done:
    """How a command ended: its exit code and what it printed."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr


class Command:
    """Runs `gingham` as a user does, in a folder of its own: in this process, or with `process=True` in one of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, code: int = 0, process: bool = False) -> Done:
        done = self.start(*arguments) if process else self.call(*arguments)
        assert done.code == code, f"exit {done.code}, not {code}\n{done.stdout}\n{done.stderr}"
        if code == 2:
            assert done.stdout == ""
            assert done.stderr.startswith("gingham: ")
            assert done.stderr.count("\n") == 1, f"more than one line: {done.stderr}"
        return done

    def call(self, *arguments: object) -> Done:
        from gingham.cli.app import main

        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(list(map(str, arguments)))
            except SystemExit as stop:
                return Done(stop.code, out.getvalue(), err.getvalue())
        raise AssertionError("main always exits")

    def start(self, *arguments: object) -> Done:
        line = [sys.executable, "-m", "gingham", *map(str, arguments)]
        done = subprocess.run(line, cwd=self.folder, capture_output=True, text=True, timeout=300, check=False)
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    folder = tmp_path / "user"
    folder.mkdir()
    return Command(folder)
