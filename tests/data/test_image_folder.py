import os
import subprocess
import unicodedata

import pytest

import gingham
from dataset_files import make_image_folder, save_image
from gingham import DataError, load_data
from gingham.data.image_files import list_images
from gingham.data.image_folder import require_outside_classes
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
    reasons = r"boot/gone.png \(No such file .*\), boot/loop.png \(Too many levels of symbolic links\); fix or remove"
    with pytest.raises(DataError, match=rf"2 of the 42 files of .* cannot be read as images ..png 2.: {reasons}"):
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
        "c of .* is a class folder without images; put images there, or remove it",
    ),
    "test lacks": (
        lambda d: (make_image_folder(d / "train", {"a": 3, "b": 3}), make_image_folder(d / "test", {"a": 3})),
        "the test split of .* no image of b",
    ),
    "train lacks": (
        lambda d: (make_image_folder(d / "train", {"a": 3}), make_image_folder(d / "test", {"a": 3, "b": 3})),
        "the train split of .* of b",
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


def test_a_link_to_a_missing_folder_is_an_error_and_diagnosed(shoes):
    (shoes / "clog").symlink_to("/nowhere/clog")
    with pytest.raises(DataError, match=r"clog of .* is a link to a missing folder; put images there, or remove it"):
        load_data(str(shoes), skip_unreadable=True)
    assert ("clog", "is a link to a missing folder") in load_unchecked(str(shoes))[1]


@pytest.mark.parametrize("name", ["train", "test", "train/clog"])
def test_a_link_to_a_missing_split_or_class_of_a_split_is_an_error(tmp_path, name):
    for split in ("train", "test"):
        make_image_folder(tmp_path / "d" / split, {"bar": 4, "disk": 4})
    if (tmp_path / "d" / name).exists():
        (tmp_path / "d" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "d" / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=f"{name} .*is a link to a missing folder"):
        load_data(str(tmp_path / "d"))


@pytest.fixture
def nested(tmp_path):
    """Classes in folders of themes, one of them in two."""
    make_image_folder(tmp_path / "d" / "animals", {"cat": 5, "dog": 5, "other": 5})
    make_image_folder(tmp_path / "d" / "tools", {"hammer": 5, "other": 5})
    return tmp_path / "d"


def test_the_class_may_be_the_folder_of_the_image(nested):
    assert load_data(str(nested)).classes == ("animals", "tools")
    data = load_data(str(nested), label_from="parent")
    assert data.classes == ("animals/other", "cat", "dog", "hammer", "tools/other")
    assert set(data.test.counts().values()) == {1}
    assert {file.rpartition("/")[0] for file in data.train.files} == {
        "animals/cat", "animals/dog", "animals/other", "tools/hammer", "tools/other",
    }  # fmt: skip


def test_the_class_may_be_the_folder_of_the_image_in_each_split(tmp_path):
    for split in ("train", "val", "test"):
        make_image_folder(tmp_path / "d" / split / "animals", {"cat": 4, "dog": 4})
    data = load_data(str(tmp_path / "d"), label_from="parent")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [8, 8, 8]


NAMES = ("cat_{}.jpg", "cat.{}.JPG", "cat ({}).jpeg", "cat{:03}.png", "cat-{}.webp", "cat_[{}].bmp", "cat #{}.png")


@pytest.mark.parametrize("form", NAMES)
def test_the_class_may_be_in_the_name(tmp_path, form):
    for k in range(10):
        save_image(tmp_path / "d" / form.format(k), seed=k)
        save_image(tmp_path / "d" / form.replace("cat", "american_bull dog").format(k), seed=50 + k)
    (tmp_path / "d" / "README.txt").write_text("no image")
    write_json(tmp_path / "d" / "runs" / "fast-0" / "model.json", {"recipe": {}})
    save_image(tmp_path / "d" / "runs" / "fast-0" / "confusion-test.png")
    with pytest.raises(DataError, match=r"it needs a folder of images for each class.* give .*--label-from name"):
        load_data(str(tmp_path / "d"))
    data = load_data(str(tmp_path / "d"), label_from="name", validation=0)
    assert data.classes == ("american_bull dog", "cat")
    assert data.train.counts() == {"american_bull dog": 8, "cat": 8}


def test_the_class_may_be_in_the_name_in_folders_of_splits(tmp_path):
    for split, count in (("train", 8), ("val", 3), ("test", 4)):
        for k in range(count):
            save_image(tmp_path / "d" / split / f"cat_{k}.png", seed=k)
            save_image(tmp_path / "d" / split / "more" / f"dog_{k}.png", seed=50 + k)
    data = load_data(str(tmp_path / "d"), label_from="name")
    assert [part.counts() for part in (data.train, data.validation, data.test)] == [
        {"cat": count, "dog": count} for count in (8, 3, 4)
    ]


def test_a_name_that_is_a_number_has_no_class(tmp_path):
    make_image_folder(tmp_path / "d", {"x": 4, "y": 4})
    with pytest.raises(DataError, match=r"x/0.png of .* has no class in its name; give it one, as in cat_1.jpg"):
        load_data(str(tmp_path / "d"), label_from="name")


def test_another_source_of_labels_is_an_error(shoes):
    with pytest.raises(DataError, match="label_from is 'label'; allowed: folder, parent, name"):
        load_data(str(shoes), label_from="label")


@pytest.mark.parametrize("out", ["boot/fast-0", "boot", "", "a/b/fast-0", "sandal/runs/fast-0"])
def test_a_run_folder_among_the_classes_is_an_error(shoes, out):
    with pytest.raises(DataError, match=r"is among the images of .*; give another --out, outside that folder or in"):
        require_outside_classes(shoes / out, shoes)


@pytest.mark.parametrize("out", ["runs/fast-0", "fast-0", "../fast-0", "../shoes-2/boot"])
def test_a_run_folder_beside_the_classes_changes_nothing(shoes, out):
    expected = load_data(str(shoes)).fingerprint
    for _ in range(2):
        require_outside_classes(shoes / out, shoes)
        write_json(shoes / out / "model.json", {"recipe": {}})
        save_image(shoes / out / "curves.png")
    assert load_data(str(shoes)).fingerprint == expected


def test_files_that_are_no_images_are_counted_by_format(shoes):
    for name in ("a.txt", "b.TXT", "c.mp4", "notes"):
        (shoes / "boot" / name).write_text("no image")
    count = (
        r"4 of the 44 files of .* cannot be read as images ..txt 2, .mp4 1, no extension 1.: boot/a.txt .*and 1 more"
    )
    with pytest.raises(DataError, match=count):
        load_data(str(shoes))
    note = load_data(str(shoes), skip_unreadable=True).notes
    assert "4 of the 44 files are left out (.txt 2, .mp4 1, no extension 1): boot/a.txt" in " ".join(note)


SMALL = ("--recipe", "fast", "--set", "network=tiny", "--set", "batch_size=8", "--epochs", 1)


@pytest.mark.parametrize("source", ["parent", "name"])
def test_every_command_uses_the_classes_of_the_option_and_a_run_stores_it(command, tmp_path, source):
    for label, name in enumerate(("cat", "dog")):
        for k in range(30):
            save_image(tmp_path / "d" / "animals" / name / f"{name}_{k}.png", seed=100 * label + k, label=label)
    data, option = tmp_path / "d", ("--label-from", source)
    command("train", "--data", data, *option, *SMALL)
    run = gingham.load(command.folder / "runs/fast-0")
    assert (run.data["label_from"], run.model.classes) == (source, ("cat", "dog"))
    command("evaluate", "runs/fast-0", "--split", "test")
    command("report", "runs/fast-0")
    command("diagnose", "runs/fast-0")
    assert "in 2 classes" in command("show", data, *option).stdout
    assert "checked for: odd files" in command("diagnose", data, *option).stdout
    command("trials", "--data", data, *option, "--seeds", 1, *SMALL)
    photos = make_image_folder(tmp_path / "e" / "animals", {"cat": 3, "dog": 3}) if source == "parent" else data
    assert command("evaluate", "runs/fast-0", "--data", photos).stdout
    assert "has 1 class" in command("train", "--data", data, *SMALL, code=2).stderr
    assert "Invalid value" in command("train", "--data", data, "--label-from", "label", code=2).stderr


@pytest.mark.parametrize("name", ["train", "trials"])
def test_a_run_folder_among_the_classes_is_refused_before_the_training(command, shoes, name):
    expected = load_data(str(shoes)).fingerprint
    done = command(name, "--data", shoes, "--out", shoes / "boot" / "x", *SMALL, code=2)
    assert "is among the images of" in done.stderr
    assert not (shoes / "boot" / "x").exists()
    command(name, "--data", shoes, "--out", shoes / "runs" / "x", *SMALL, *(["--seeds", 1] if name == "trials" else []))
    assert load_data(str(shoes)).fingerprint == expected
