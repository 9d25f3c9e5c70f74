"""The commands that documents show run, one after the other, in a folder that has what they name.

Trainings are shortened to a few steps. Left out are `serve`, which does not end, and `--finetune`, whose weights have
to be downloaded; both have tests of their own.
"""

import re
import shlex
import shutil
import sys

import pytest
from PIL import Image

import gingham
from gingham.data.image_folder import is_image_name
from helpers import ROOT, Command, draw_garment_photo

pytestmark = pytest.mark.slow
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
TRAINING = ("train", "trials")
# What README's table of commands calls files and folders.
STAND_INS = {"RUN": "runs/fast-0", "A": "runs/fast-0", "B": "runs/fast-1", "FOLDER": "shoes", "FILE": "answers.csv"}


@pytest.fixture(scope="module")
def saved_run(fashion_mnist_folder, tmp_path_factory):
    """A run of the default recipe after a few steps."""
    folder = tmp_path_factory.mktemp("run")
    Command(folder)("train", "--epochs", "0.05", "--out", "run")
    return folder / "run"


@pytest.fixture(scope="module")
def clothes(fashion_mnist_folder, tmp_path_factory):
    """A folder with a folder of small images for each of three classes."""
    folder, split = tmp_path_factory.mktemp("clothes"), gingham.load_data("fashion-mnist").train
    for name in ("Bag", "Coat", "Dress"):
        (folder / name).mkdir()
        for number, index in enumerate((split.labels == split.classes.index(name)).nonzero().flatten()[:40].tolist()):
            Image.fromarray(split.images[index, 0].numpy()).save(folder / name / f"{number}.png")
    return folder


def shown_commands(path):
    """Return the commands in a document's code blocks, and whether the document shows an error as their answer."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    if path.name == "README.md":
        blocks += re.findall(r"`(gingham [^`]+)`", text)
    commands = []
    for block in blocks:
        lines = block.replace("\\\n", " ").splitlines()
        for line, answer in zip(lines, [*lines[1:], ""], strict=True):
            if match := re.match(r"(?:\$ )?gingham (.*)", line.strip()):
                commands.append((match[1], answer.startswith("gingham: ")))
    return commands


def provide(folder, word, saved_run, clothes):
    """Create what an argument names, if it does not exist: an image, a run, or a folder of images."""
    path = folder / word
    if path.exists() or word.startswith("-") or "=" in word:
        return
    if is_image_name(path):
        draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(path)
    elif word.startswith("runs/"):
        shutil.copytree(saved_run, path)
    elif word in ("shoes", "my-photos", "my-photographs", "new-photos", "spoiled", "GroceryStoreDataset/dataset"):
        shutil.copytree(clothes, path)
        if word == "spoiled":
            (path / "Bag/bad.png").write_bytes(b"")


def shortened(words):
    """Return a training's options with few epochs and seeds, without a folder that an earlier command has written."""
    if "--epochs" in words:
        words[words.index("--epochs") + 1] = "0.02"
    else:
        words += ["--epochs", "0.02"]
    if "--seeds" in words:
        words[words.index("--seeds") + 1] = "2"
    return words


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_shown_commands_run(path, saved_run, clothes, command, monkeypatch):
    own_networks = (ROOT / "docs/own-networks.md").read_text(encoding="utf-8")
    (network,) = re.findall(r"```python\n(.*?class Net.*?)```", own_networks, re.DOTALL)
    (command.folder / "mynet.py").write_text(network, encoding="utf-8")
    monkeypatch.chdir(command.folder)
    monkeypatch.delitem(sys.modules, "mynet", raising=False)
    for line, is_error in shown_commands(path):
        words = [STAND_INS.get(word, word) for word in shlex.split(line, comments=True)]
        name = words[0]
        if name == "serve" or name.startswith("--") or "--finetune" in words or words == ["train", "--recipe"]:
            continue
        outputs = {words[k + 1] for k, word in enumerate(words[:-1]) if word in ("--out", "--csv", "--sort-into")}
        for word in words[1:]:
            if word not in outputs and "*" not in word:
                provide(command.folder, word, saved_run, clothes)
        if "*.jpg" in words:
            words = [*words[: words.index("*.jpg")], "shirt.jpg", *words[words.index("*.jpg") + 1 :]]
        if name in TRAINING:
            words = shortened(words)
            if "--teacher" in words and "--out" not in words:
                words += ["--out", "runs/taught"]
            if "--out" not in words and ("--resume" not in words or path.name == "README.md"):
                shutil.rmtree(command.folder / "runs/fast-0", ignore_errors=True)  # a stand-in
        for output in outputs:  # a document may show two ways of the same step
            if (command.folder / output).is_file():
                (command.folder / output).unlink()
        command(*words, code=2 if is_error else 0)
