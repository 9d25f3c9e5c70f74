import csv
import json
import os
import random
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gingham
from gingham.inference.prediction_files import folder_names
from helpers import draw_garment_photo


def write_photo(file, colour=(40, 60, 120), background=(255, 255, 255)):
    file.parent.mkdir(parents=True, exist_ok=True)
    draw_garment_photo(colour, background)[0].save(file)


@pytest.fixture
def photos(command):
    """Four photos in folders, two of the same name, and two files that cannot be read."""
    folder = command.folder / "photos"
    write_photo(folder / "1.png")
    write_photo(folder / "a/1.png", colour=(200, 40, 40))
    write_photo(folder / "a/deep/2.png", colour=(20, 20, 20))
    write_photo(folder / "b/1.png")  # the same content as the first
    (folder / "b/3.png").write_text("not an image")
    (folder / "b/gone.png").symlink_to("nowhere")
    for file in folder.rglob("*.png"):
        os.utime(file, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    return folder


NAMES = [f"photos/{name}" for name in ("1.png", "a/1.png", "a/deep/2.png", "b/1.png", "b/3.png", "b/gone.png")]


def contents(folder):
    return sorted(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_the_table_has_the_values_of_the_json_and_a_row_for_each_error(command, photos):
    done = command.call("predict", "photos", "--json", "--csv", "new/table.csv")
    assert done.code == 2
    assert "table: new/table.csv" in done.stderr
    entries = json.loads(done.stdout)
    with (command.folder / "new/table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    classes = gingham.load_packaged().model.classes
    probabilities = [f"probability_{name}" for name in classes]
    assert list(rows[0]) == ["image", "label", "confidence", "unsure", "novel", *probabilities, "error"]
    assert [row["image"] for row in rows] == [entry["image"] for entry in entries] == NAMES
    for row, entry in zip(rows[:4], entries[:4], strict=True):
        assert (row["label"], row["error"]) == (entry["label"], "")
        assert (row["unsure"], row["novel"]) == tuple(str(entry[flag]).lower() for flag in ("unsure", "novel"))
        assert float(row["confidence"]) == pytest.approx(entry["confidence"], rel=1e-5)
        for name in classes:
            assert float(row[f"probability_{name}"]) == pytest.approx(entry["probabilities"][name], rel=1e-5)
    for row, entry in zip(rows[4:], entries[4:], strict=True):
        assert row.pop("error") == entry["error"]
        assert row.pop("image") == entry["image"]
        assert set(row.values()) == {""}


def test_an_existing_file_is_never_replaced_by_the_table(command, photos):
    (command.folder / "table.csv").write_text("mine")
    done = command("predict", photos / "1.png", "--csv", "table.csv", code=2)
    assert "table.csv already exists; give another file, or remove it first" in done.stderr
    assert (command.folder / "table.csv").read_text() == "mine"


def test_images_are_copied_into_folders_and_a_second_run_copies_none(command, photos):
    before = contents(photos)
    done = command.call("predict", "photos", "--sort-into", "sorted", "--json")
    assert done.code == 2
    assert "sorted into sorted: 5 copied, 1 not copied" in done.stderr, "a link to nothing cannot be copied"
    entries = json.loads(done.stdout)
    output = command.folder / "sorted"
    expected = {(output / "unreadable/3.png")}
    classes = gingham.load_packaged().model.classes
    names = dict(zip(classes, folder_names(classes), strict=True))
    used = {}
    for entry in entries[:4]:
        folder = output / ("novel" if entry["novel"] else "unsure" if entry["unsure"] else names[entry["label"]])
        stem = Path(entry["image"]).stem
        used[folder, stem] = used.get((folder, stem), 0) + 1
        number = used[folder, stem]
        target = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        assert target.read_bytes() == (command.folder / entry["image"]).read_bytes()
        expected.add(target)
    assert {file for file in output.rglob("*") if file.is_file()} == expected
    assert {file.stat().st_mtime for file in expected} == {1_000_000_000}
    assert contents(photos) == before == contents(output), "copied, not moved"
    assert "sorted into sorted: 5 already there" in command.call("predict", "photos", "--sort-into", "sorted").stderr
    assert {file for file in output.rglob("*") if file.is_file()} == expected


def test_files_in_the_folder_are_kept(command, photos):
    (entry,) = json.loads(command("predict", photos / "1.png", "--json").stdout)
    folder = "novel" if entry["novel"] else "unsure" if entry["unsure"] else entry["label"].replace("/", "-")
    folder = command.folder / "sorted" / folder
    folder.mkdir(parents=True)
    (folder / "1.png").write_text("mine")
    (folder / "1-2.png").mkdir()
    command("predict", photos / "1.png", photos / "1.png", "--sort-into", "sorted")
    assert (folder / "1.png").read_text() == "mine"
    assert (folder / "1-3.png").read_bytes() == (photos / "1.png").read_bytes()
    assert len(list(folder.iterdir())) == 3, "an image that is given twice is copied once"


def test_files_with_long_names_are_copied(command):
    name = "鞋" * 83 + ".png"  # 253 bytes; most file systems allow 255
    write_photo(command.folder / "photos" / name)
    command("predict", "photos", "--sort-into", "sorted")
    assert [file.name for file in (command.folder / "sorted").rglob("*.png")] == [name]


@pytest.mark.parametrize("target", ["photos", "photos/sorted", "link/sorted", "photos/../photos/a/b"])
def test_sorting_into_the_folder_of_the_images_is_an_error(command, photos, target):
    (command.folder / "link").symlink_to("photos")
    before = sorted(photos.rglob("*"))
    done = command("predict", "photos", "--sort-into", target, code=2)
    assert f"--sort-into {target} is a run folder or in a folder of the images; give another folder" in done.stderr
    assert sorted(photos.rglob("*")) == before


def test_run_folders_are_refused_and_left_out(command, photos):
    gingham.save(gingham.load_packaged(), photos / "run")
    Image.new("L", (28, 28)).save(photos / "run/curves.png")
    done = command("predict", "photos/run", code=2)
    assert (
        "photos/run is a run folder, not a folder of images; to predict with it, give --run photos/run" in done.stderr
    )
    assert "is a run folder" in command("predict", photos / "1.png", "--sort-into", "photos/run", code=2).stderr
    entries = json.loads(command.call("predict", "photos", "--json").stdout)
    assert [entry["image"] for entry in entries] == NAMES


def test_the_images_are_predicted_in_groups(command, monkeypatch):
    sizes = []
    predict = gingham.predict

    def record(run, images, *arguments):
        sizes.append(len(images))
        return predict(run, images, *arguments)

    monkeypatch.setattr(gingham, "predict", record)
    (command.folder / "many").mkdir()
    for k in range(150):
        Image.fromarray(np.full((28, 28), k, np.uint8)).save(command.folder / f"many/{k}.png")
    entries = json.loads(command("predict", "many", "--json").stdout)
    assert [entry["image"] for entry in entries] == [f"many/{k}.png" for k in range(150)]
    assert max(sizes) <= 64
    assert len(command("predict", "many").stdout.splitlines()) == 150


def test_folder_names_are_valid_and_different():
    names = folder_names(["a/b", "A:b", "unsure", "UNREADABLE", "..", ".hidden ", "con", "NUL.txt", "鞋" * 200, "Boot"])
    assert names[:8] == ["a-b", "A-b-2", "unsure-2", "UNREADABLE-2", "class", "hidden", "con-", "NUL-.txt"]
    assert names[9] == "Boot"
    assert max(len(name.encode()) for name in names) <= 200
    generator = random.Random(0)
    letters = string.ascii_letters + '/\\:*?"<>|. é鞋\x01'
    classes = ["".join(generator.choices(letters, k=generator.randint(1, 3))) for _ in range(2000)]
    names = folder_names(classes)
    assert len({name.casefold() for name in names}) == len(classes)
    assert not any(set(name) & set('/\\:*?"<>|\x01') or name != name.strip(" .") or not name for name in names)
