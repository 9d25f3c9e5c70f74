"""The notebooks run from start to end, as a reader runs them, and show what their text says."""

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
pytestmark = pytest.mark.slow


def copy_dataset(source, target):
    """Put the dataset where torchvision looks for it."""
    target.mkdir(parents=True)
    for file in source.glob("*-ubyte*"):
        if file.suffix == ".gz":
            (target / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
        else:
            shutil.copy(file, target)


@pytest.fixture
def run_notebook(fashion_mnist_folder, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    # The notebooks start the command gingham.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    copy_dataset(fashion_mnist_folder, tmp_path / "data/FashionMNIST/raw")

    def run(name, changes=()):
        notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4)
        notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
        for before, after in changes:
            cells = [cell for cell in notebook.cells if before in cell.source]
            assert len(cells) == 1
            cells[0].source = cells[0].source.replace(before, after)
        client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
        return client.execute()

    return run


def shown(notebook, source):
    """Return what the cell that contains `source` shows: texts, HTML without tags, and the number of figures."""
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    texts, figures = [], 0
    for output in cell.outputs:
        data = output.get("data", {})
        texts.append(output.get("text") or data.get("text/html") or data.get("text/plain") or "")
        figures += "image/png" in data or "data:image/png" in texts[-1]
        if "image/png" in data:
            assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    return re.sub("<[^>]+>", "", "\n".join(texts)), figures


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_saved_without_outputs_and_installs_with_one_cell(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    installs = [cell for cell in code if "%pip install" in "".join(cell["source"])]
    assert [cell["metadata"].get("tags") for cell in installs] == [["install"]]
    assert code[0] is installs[0]


def test_the_article_step_by_step(run_notebook, tmp_path):
    notebook = run_notebook("first-model", [("SHARE = 1.0", "SHARE = 0.1"), ("EPOCHS = 3", "EPOCHS = 10")])
    text, _ = shown(notebook, "optimizer = ")
    accuracies = re.findall(r"epoch \d+: test accuracy ([\d.]+%)", text)
    assert len(accuracies) == 10
    # The file does the same: with the same seed, and nothing of Gingham in between, it gets the same result.
    options = ["--share", "0.1", "--epochs", "10"]
    command = [sys.executable, str(ROOT / "examples/first_model.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.findall(r"test accuracy ([\d.]+%)", done.stdout) == accuracies
    assert float(accuracies[-1].rstrip("%")) > 65
    assert shown(notebook, "plt.subplots(2, 3")[1] == 1
    text, figures = shown(notebook, "gingham.summarize(")
    assert "48,884" in text
    assert figures == 1
    text, figures = shown(notebook, 'gingham.RECIPES["fast-90"]')
    assert "of the validation images right" in text
    assert figures == 1
    assert shown(notebook, 'result.plot("mistakes")')[1] == 1
    assert "Ankle boot" in shown(notebook, "gingham.load_packaged()")[0]


def test_own_images(run_notebook):
    notebook = run_notebook("own-images")
    assert re.search(r"all +321 +60 +69", shown(notebook, "load_data(str(FOLDER), validation=60)")[0])
    text, _ = shown(notebook, "!gingham train")
    assert "recipe fast, a small network from scratch" in text
    assert not re.search("warning: (a batch of one image|the learning rate)", text), "it was chosen for the images"
    text, figures = shown(notebook, "result = gingham.evaluate")
    assert float(re.search(r"([\d.]+)% of \d+ validation images right", text)[1]) > 90
    assert figures == 1
    assert re.search(r"Bag/001.png: (Bag \(|not sure .*; Bag )", shown(notebook, "images = sorted(")[0])
    assert "unlike anything it was trained on" in shown(notebook, "ring")[0]


def test_trust(run_notebook):
    notebook = run_notebook("trust")
    text, figures = shown(notebook, "trials = gingham.trials")
    assert "mean and standard deviation over 5 seeds" in text
    assert figures == 1
    assert "runs/fast-85-trials (A)" in shown(notebook, "gingham.compare")[0]
    assert shown(notebook, 'result.plot("reliability")')[1] == 1
    assert shown(notebook, "noise = ")[0].count("novel: unlike the training images") == 10
    assert shown(notebook, "run.test_openings")[0].count("'images': 10000") == 1


def test_own_network(run_notebook):
    notebook = run_notebook("own-network")
    text, _ = shown(notebook, "gingham.summarize(")
    assert "23,946" in text
    assert "network __main__:Net" in shown(notebook, "network=Net)")[0]
    assert "network __main__:Net" in shown(notebook, "gingham.load(")[0]
    assert "softmax" in shown(notebook, "check_run")[0]
