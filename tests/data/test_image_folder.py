import os
import subprocess
import unicodedata

import pytest

from dataset_files import make_image_folder, save_image
from gingham import DataError, load_data
from gingham.data.image_files import list_images
from gingham.data.load_data import load_unchecked
from gingham.io import write_json

pytestmark = pytest.mark.usefixtures("pack_folder")


def test_a_class_can_be_named_train(tmp_path):
    make_image_folder(tmp_path / "d", {"train": 4, "car": 4, "plane": 4})
    assert load_data(str(tmp_path / "d")).classes == ("car", "plane", "train")


def test_nested_folders_are_read_and_hidden_files_and_runs_are_not(shoes):
    save_image(shoes / "boot" / "more" / "deep.png", seed=77)
    for hidden in (
        "boot/.DS_Store",
        "boot/Thumbs.db",
        ".git/x.png",
        "boot/.cache/y.png",
        "__MACOSX/a/b.png",
        "boot/._0.png",
    ):
        (shoes / hidden).parent.mkdir(parents=True, exist_ok=True)
        (shoes / hidden).write_text("no image")
    (shoes / "runs" / "fast-0").mkdir(parents=True)
    write_json(shoes / "runs" / "fast-0" / "model.json", {"recipe": {}})
    (shoes / "labels.txt").write_text("beside the classes")
    data = load_data(str(shoes), validation=0)
    assert data.classes == ("boot", "sandal")
    assert len(data.train) + len(data.test) == 41
    assert "boot/more/deep.png" in data.train.files + data.test.files


def test_links_are_followed_and_loops_of_links_end(shoes, tmp_path):
    make_image_folder(tmp_path / "elsewhere", {"clog": 5})
    (shoes / "clog").symlink_to(tmp_path / "elsewhere" / "clog")
    (shoes / "boot" / "loop").symlink_to(shoes / "boot")
    (shoes / "boot" / "linked.png").symlink_to(shoes / "sandal" / "3.png")
    data = load_data(str(shoes), validation=0)
    assert data.classes == ("boot", "clog", "sandal")
    assert len(data.train) + len(data.test) == 46


def test_links_that_cannot_be_followed_are_unreadable_files(shoes):
    (shoes / "boot" / "loop.png").symlink_to("loop.png")
    (shoes / "boot" / "gone.png").symlink_to("nowhere")
    (shoes / "loop").symlink_to("loop")
    reasons = r"boot/gone.png \(No such file .*\), boot/loop.png \(Too many levels of symbolic links\); fix or remove"
    with pytest.raises(DataError, match=rf"2 of the 42 files of .* cannot be read as images: {reasons}"):
        load_data(str(shoes))
    data = load_data(str(shoes), validation=0, skip_unreadable=True)
    assert len(data.train) + len(data.test) == 40
    assert [name for name, _ in load_unchecked(str(shoes))[1]] == ["boot/gone.png", "boot/loop.png"]


def test_links_to_links_do_not_make_millions_of_paths(shoes):
    for level in range(40):
        (shoes / "clog" / str(level)).mkdir(parents=True)
        for name in "ab":
            (shoes / "clog" / str(level) / name).symlink_to(f"../{level + 1}")
    make_image_folder(shoes / "clog", {"40": 5})
    assert len(list_images(shoes).entries) == 45


def test_folders_of_any_depth_are_listed(shoes):
    folder = shoes / "boot"
    for _ in range(1200):
        folder /= "d"
        folder.mkdir()
    save_image(folder / "deep.png", seed=78)
    assert len(list_images(shoes).entries) == 41
    subprocess.run(["rm", "-rf", str(shoes / "boot")], check=True)  # Python cannot remove folders so deep


INVALID_FOLDERS = {
    "nothing": (
        lambda d: d.mkdir(),
        "found no training images in .*; it needs a folder of images for each class",
    ),
    "loose": (lambda d: save_image(d / "a.png"), "found no training images in"),
    "no classes": (
        lambda d: (save_image(d / "train/a.png"), save_image(d / "test/b.png")),
        "found no training images in",
    ),
    "no train": (
        lambda d: make_image_folder(d / "test", {"a": 3, "b": 3}),
        "found no training images in .* directly or in train, validation and test folders",
    ),
    "unsorted": (
        lambda d: (make_image_folder(d / "train", {"a": 3, "b": 3}), save_image(d / "test/b.png")),
        "has images in test beside the split",
    ),
    "both": (
        lambda d: (make_image_folder(d / "train", {"a": 3}), make_image_folder(d, {"b": 3})),
        "has images in b beside the split folder train",
    ),
    "one class": (lambda d: make_image_folder(d, {"a": 9}), "has 1 class; allowed: 2 to 10,000"),
    "few": (lambda d: make_image_folder(d, {"a": 9, "b": 2}), "the class b of .* has 2 training images, too few"),
    "empty": (
        lambda d: (make_image_folder(d, {"a": 9, "b": 9}), (d / "c").mkdir()),
        "the class folder c of .* is empty",
    ),
    "test lacks": (
        lambda d: (make_image_folder(d / "train", {"a": 3, "b": 3}), make_image_folder(d / "test", {"a": 3})),
        "the test split of .* no image of b",
    ),
    "train lacks": (
        lambda d: (make_image_folder(d / "train", {"a": 3}), make_image_folder(d / "test", {"a": 3, "b": 3})),
        "the train split of .* of b",
    ),
    "val lacks": (
        lambda d: (make_image_folder(d / "train", {"a": 3, "b": 3}), make_image_folder(d / "val", {"b": 3})),
        "the validation split of .* of a",
    ),
    "name": (lambda d: make_image_folder(d, {"a": 9, "b\nc": 9}), "has a class named"),
}


@pytest.mark.parametrize("name", INVALID_FOLDERS)
def test_an_invalid_folder_is_an_error_of_one_line(tmp_path, name):
    make, message = INVALID_FOLDERS[name]
    make(tmp_path / "d")
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(tmp_path / "d"))
    assert "\n" not in str(caught.value)


def test_class_names_in_two_unicode_forms_are_one_class(tmp_path):
    make_image_folder(tmp_path / "d", {unicodedata.normalize("NFD", "é"): 3, "f": 6})
    make_image_folder(tmp_path / "d", {unicodedata.normalize("NFC", "é"): 3})
    assert load_data(str(tmp_path / "d")).classes == ("f", "é")


def test_a_folder_without_permission_is_an_error(shoes, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        """Refuse as the system does for every user but root."""
        if path == shoes / "boot":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot list"):
        load_data(str(shoes))


@pytest.mark.parametrize("split", ["", "train"])
@pytest.mark.parametrize("name", ["checkpoint", "model", "model.json", "trials", "trials.json"])
def test_a_class_may_have_the_name_of_a_file_of_a_run(tmp_path, name, split):
    make_image_folder(tmp_path / "d" / split, {"bar": 4, name: 4})
    (tmp_path / "d" / split / "bar" / "model.json").write_text('{"modelTopology": {}}')  # another program's
    data = load_data(str(tmp_path / "d"), validation=0, skip_unreadable=True)
    assert data.classes == ("bar", name)
    assert len(data.train) + len(data.test) == 8


def test_a_run_beside_the_classes_of_a_split_does_not_hide_the_split(tmp_path):
    make_image_folder(tmp_path / "d" / "train", {"bar": 4, "disk": 4})
    write_json(tmp_path / "d" / "train" / "fast-0" / "model.json", {"recipe": {}})
    assert load_data(str(tmp_path / "d")).classes == ("bar", "disk")
