import json
import re

import pytest
from PIL import Image

from dataset_files import make_image_folder
from helpers import make_dataset


def test_diagnose_draws_the_images_of_each_issue(command, run_json, tmp_path):
    quadrants = make_dataset(tmp_path / "quadrants", train=76)  # too few for the check of their labels
    images = quadrants / "t10k-images-idx3-ubyte"
    content = bytearray(images.read_bytes())
    content[16:800] = (quadrants / "train-images-idx3-ubyte").read_bytes()[16:800]
    images.write_bytes(content)
    (issue,) = run_json("diagnose", quadrants)
    assert issue["pictures"] == [[["train", 0], ["test", 0]]]
    with Image.open(command.folder / issue["file"]) as figure:
        assert figure.width > 500


@pytest.mark.parametrize("name", ["checkpoint", "model.json", "trials.json"])
def test_data_with_a_class_named_like_a_file_of_a_run_is_diagnosed_as_data(command, tmp_path, name):
    make_image_folder(tmp_path / "shapes", {"bar": 6, name: 6})
    assert "checked for: odd files" in command("diagnose", tmp_path / "shapes").stdout
    message = "no run in .*shapes"
    for arguments in (("report", tmp_path / "shapes"), ("compare", tmp_path / "shapes", tmp_path / "shapes")):
        assert re.search(message, command(*arguments, code=2).stderr)


def test_files_that_are_no_images_and_dead_links_are_listed(run_json, tmp_path):
    folder = make_image_folder(tmp_path / "shapes", {"bar": 6, "disk": 6})
    for name in ("a.txt", "b.txt", "c.mp4"):
        (folder / "bar" / name).write_text("no image")
    (folder / "ring").symlink_to(tmp_path / "nowhere")
    evidence = {issue["code"]: issue["evidence"] for issue in run_json("diagnose", folder)}
    assert evidence["unreadable-files"].startswith(".txt 2, .mp4 1: bar/a.txt cannot be read")
    assert "ring is a link to a missing folder" in evidence["odd-files"]


def test_json_of_a_split_prints_the_accuracy_beside_it(command, trained):
    done = command("diagnose", "runs/article-0", "--split", "validation", "--json")
    assert "validation images are duplicates or near duplicates of training images: accuracy" in done.stderr
    assert isinstance(json.loads(done.stdout), list)
