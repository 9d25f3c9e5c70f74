"""examples/first_model.py is the article's system: its network, its data and its results are those of Gingham."""

import gzip
import re
import shutil
import subprocess
import sys

import pytest
import torch

import gingham
from gingham.data.splits import Split
from gingham.models.classifier import Classifier
from helpers import ROOT

SHARE, EPOCHS = 0.1, 12  # a tenth of the images needs more epochs than all of them
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(scope="module")
def tenth():
    """The first tenth of the training and test images, as the example takes them."""
    data = gingham.load_data("fashion-mnist", validation=0)
    train, test = (
        Split(split.name, *(x[: len(split) // 10] for x in (split.images, split.labels)), data.classes, "tenth", "1")
        for split in (data.train, data.test)
    )
    return train, test


@pytest.fixture(scope="module")
def example(fashion_mnist_folder, tmp_path_factory):
    """What the example prints, and the folder that it writes to."""
    folder = tmp_path_factory.mktemp("example")
    raw = folder / "data/FashionMNIST/raw"  # where torchvision looks for it
    raw.mkdir(parents=True)
    for name in IDX_FILES:
        write_idx_bytes(fashion_mnist_folder, name, raw / name)
    options = ["--share", str(SHARE), "--epochs", str(EPOCHS)]
    command = [sys.executable, str(ROOT / "examples/first_model.py"), *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, folder


def write_idx_bytes(folder, name, file):
    plain, packed = folder / name, folder / f"{name}.gz"
    if plain.exists():
        shutil.copy(plain, file)
    else:
        file.write_bytes(gzip.decompress(packed.read_bytes()))


@pytest.mark.slow
def test_its_network_is_the_articles(example, tenth):
    output, folder = example
    network = gingham.NETWORKS["article"]()
    weights = torch.load(folder / "first-model.pt", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    images, labels = tenth[1].images, tenth[1].labels
    with torch.no_grad():
        predicted = network((images.float() / 255 - 0.5) / 0.5).argmax(dim=1)  # 1,000 at once, as in the example
    accuracy = float((predicted == labels).double().mean())
    printed = re.findall(r"test accuracy ([\d.]+)%", output)
    assert len(printed) == EPOCHS
    assert accuracy == pytest.approx(float(printed[-1]) / 100, abs=1e-6)
    by_gingham = Classifier(network, tenth[1].classes, (1, 28, 28)).predict(images).labels
    assert int((by_gingham != predicted).sum()) <= 1, "its memory format is another one, so rounding may decide a tie"
    summary = gingham.summarize(network, (1, 28, 28), "article")
    rows = re.findall(r"^(\w+) +\((.*?)\) +([\d,]+)$", output, re.MULTILINE)
    assert [int(parameters.replace(",", "")) for _, _, parameters in rows] == [x.parameters for x in summary.layers]
    assert [[int(size) for size in shape.split(",")][1:] for _, shape, _ in rows] == [
        layer.output_shape for layer in summary.layers
    ]
    assert re.search(rf"^total +{summary.parameters:,}$", output, re.MULTILINE)


@pytest.mark.slow
def test_its_accuracy_is_that_of_the_recipe_article(example, tenth):
    output, folder = example
    accuracy = float(re.findall(r"test accuracy ([\d.]+)%", output)[-1]) / 100
    run = gingham.fit(gingham.RECIPES["article"].replace(epochs=EPOCHS), tenth[0], progress=False)
    assert accuracy > 0.65
    assert gingham.evaluate(run, tenth[1]).accuracy == pytest.approx(accuracy, abs=0.08)
    for name in ("first-batch.png", "first-model.png"):
        assert (folder / name).stat().st_size > 10_000
