import shutil

import numpy as np
import pytest

from dataset_files import make_image_folder, save_image
from gingham import DataError, load_data
from gingham.data.splits import _choose_groups


def write_table(shoes, rows, name="list.csv", head="path,label,split"):
    (shoes / name).write_text("\n".join([head, *rows]) + "\n")
    return str(shoes / name)


def test_a_table_with_splits_is_read(shoes):
    rows = [f"boot/{k}.png,Stiefel,train" for k in range(10)] + [f"sandal/{k}.png,Sandale,train" for k in range(10)]
    rows += [
        "boot/11.png,Stiefel,val",
        "sandal/11.png,Sandale,validation",
        "boot/12.png,Stiefel,Test",
        "sandal/12.png,Sandale,test",
    ]
    data = load_data(write_table(shoes, rows))
    assert data.classes == ("Sandale", "Stiefel")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 2, 2]
    assert data.test.files == ("sandal/12.png", "boot/12.png")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_without_splits_is_split(shoes, delimiter):
    rows = [f'"{name}/{k}.png"{delimiter}{name}{delimiter}"a, b"' for name in ("boot", "sandal") for k in range(20)]
    data = load_data(write_table(shoes, rows, head=f"\ufeffImage{delimiter}Class{delimiter}remark"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [28, 6, 6]
    assert data.classes == ("boot", "sandal")


HEADS = [
    "filename,label", "FILE_NAME,Class", "filepath,class_name", "file_path,category", "image,target",
    "image_path,labels", "Image ID,Class Name (str)", "img,class_id", "id,label", "name,label", "label;image_name",
]  # fmt: skip


@pytest.mark.parametrize("head", HEADS)
def test_columns_may_have_other_usual_names(shoes, head):
    delimiter = ";" if ";" in head else ","
    rows = [(f"{name}/{k}.png", name) for name in ("boot", "sandal") for k in range(20)]
    rows = [delimiter.join(row if head[:5] != "label" else row[::-1]) for row in rows]
    data = load_data(write_table(shoes, rows, head=f"\ufeff{head}"))
    assert data.classes == ("boot", "sandal")
    assert (
        data.fingerprint
        == load_data(
            write_table(shoes, rows, head=f"path{delimiter}label" if head[:5] != "label" else f"label{delimiter}path")
        ).fingerprint
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt"])
def test_spaces_and_other_delimiters_in_names_are_kept(tmp_path, pack_folder, delimiter, suffix):
    other = ";" if delimiter == "," else ","
    make_image_folder(tmp_path / "a", {f"my{other} boots": 5, f"men's{other} left": 5})
    rows = [f"{name}/{k}.png{delimiter}{name}" for name in (f"my{other} boots", f"men's{other} left") for k in range(5)]
    data = load_data(write_table(tmp_path / "a", rows, f"list.{suffix}", f"path{delimiter}label"), validation=0)
    assert data.classes == (f"men's{other} left", f"my{other} boots")


def test_the_split_may_have_another_usual_name(shoes):
    for head, values in (("set", ("train", "test")), ("Subset", ("Train", "TEST"))):
        rows = [f"{name}/{k}.png,{name},{values[k >= 15]}" for name in ("boot", "sandal") for k in range(20)]
        assert len(load_data(write_table(shoes, rows, head=f"path,label,{head}")).test) == 10
    rows = [f"{name}/{k}.png,{name},{'AB'[k % 2]}" for name in ("boot", "sandal") for k in range(20)]
    assert len(load_data(write_table(shoes, rows, head="path,label,set")).test) == 6, "a column of something else"


@pytest.mark.parametrize("place", ["", "images", "train"])
@pytest.mark.parametrize("suffix", [".png", ".PNG", ""])
def test_names_are_completed_and_found_in_a_folder_beside_the_table(tmp_path, pack_folder, place, suffix):
    for k in range(20):
        save_image(tmp_path / "d" / place / f"img.{k}{suffix or '.png'}", seed=k, label=k)
    rows = [f"img.{k}{suffix},{'ab'[k % 2]}" for k in range(20)]
    data = load_data(write_table(tmp_path / "d", rows, "labels.csv", "image_id,label"), validation=0)
    assert data.train.counts() == {"a": 8, "b": 8}
    assert data.train.images[data.train.labels == 0, :, :14].float().mean() > 100


def test_a_name_that_several_files_fit_is_an_error(tmp_path, pack_folder):
    make_image_folder(tmp_path, {"x": 8, "y": 8})
    path = write_table(tmp_path, [f"{k},{'ab'[k % 2]}" for k in range(8)], head="id,label")
    with pytest.raises(DataError, match=r"line 2 of .* names 0, which is .*0.png or .*0.png; write which"):
        load_data(path)
    with_folders = [f"{name}/{k},{name}" for name in "xy" for k in range(4)]
    assert load_data(write_table(tmp_path, with_folders, "b.csv", "id,label"), validation=0).classes == ("x", "y")
    (tmp_path / "x").rename(tmp_path / "List")
    assert load_data(path, validation=0).classes == ("a", "b"), "the folder called as the table"


def write_groceries(folder, suffix="txt", splits=("train", "val", "test"), form="{}, {}, 0", prefix=""):
    """Write tables without names of columns, as those of the Grocery Store dataset."""
    for split in splits:
        make_image_folder(folder / split / "Fruit", {"Apple": 4, "Pear": 4})
        labels = {"Apple": 10, "Pear": 9}
        rows = [form.format(f"{split}/Fruit/{name}/{k}.png", labels[name]) for name in labels for k in range(4)]
        (folder / f"{prefix}{split}.{suffix}").write_text("\n".join(rows))


@pytest.mark.parametrize(("suffix", "form", "prefix"), [
    ("txt", "{}, {}, 0", ""), ("csv", "{},{}", "fruit_"), ("tsv", "{}\t{}", ""), ("txt", "{} {}", "a-b-"),
])  # fmt: skip
@pytest.mark.parametrize("splits", [("train", "val", "test"), ("train", "test"), ("train", "valid"), ("Train", "Test")])
def test_a_folder_with_a_table_for_each_split_has_these_splits(tmp_path, pack_folder, suffix, form, prefix, splits):
    write_groceries(tmp_path / "d", suffix, splits, form, prefix)
    data = load_data(str(tmp_path / "d"))
    assert data.classes == ("9", "10")
    sizes = {"val": [8, 8, 8], "valid": [6, 8, 2], "test": [7, 1, 8], "Test": [7, 1, 8]}
    assert [len(part) for part in (data.train, data.validation, data.test)] == sizes[splits[1]]
    assert data.train.files[0].startswith(f"{splits[0]}/Fruit/Pear/")


CLASS_FILES = {
    "classes.csv": "Class Name (str),Class ID (int),Other\nPear,9,x\nApple,10,x\nPlum,11,x\n",
    "classes.tsv": "9\tPear\n10\tApple\n",
    "classes.txt": "9 Pear\n10 Apple\n",
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_a_file_beside_the_tables_names_the_classes(tmp_path, pack_folder, name):
    write_groceries(tmp_path / "d")
    (tmp_path / "d" / name).write_text(CLASS_FILES[name])
    data = load_data(str(tmp_path / "d"))
    assert data.classes == ("Apple", "Pear")
    assert {file.split("/")[2] for file, label in zip(data.test.files, data.test.labels, strict=True) if label} == {
        "Pear"
    }


def test_a_file_may_list_the_names_of_classes_from_0_on(shoes):
    path = write_table(shoes, [f"{name}/{k}.png,{i}" for i, name in enumerate(("boot", "sandal")) for k in range(20)],
                       head="path,label")  # fmt: skip
    (shoes / "classes.txt").write_text("Winter Boot\nSandal\n")
    data = load_data(path)
    assert data.classes == ("Sandal", "Winter Boot")
    assert data.test.files[0].startswith("sandal")
    (shoes / "classes.txt").write_text("name\nWinter Boot\nSandal\n")
    assert load_data(path).classes == ("0", "1"), "which names they are is not clear"
    (shoes / "classes.txt").write_text("")
    assert load_data(path).classes == ("0", "1")


def test_a_validation_split_may_lack_classes(tmp_path, pack_folder):
    write_groceries(tmp_path / "d")
    (tmp_path / "d" / "val.txt").write_text("val/Fruit/Apple/0.png, 10\n")
    data = load_data(str(tmp_path / "d"))
    assert data.notes[-1] == "the validation split has no image of 9"
    assert data.validation.counts() == {"9": 0, "10": 1}


def test_an_image_in_two_tables_is_an_error(tmp_path, pack_folder):
    write_groceries(tmp_path / "d")
    (tmp_path / "d" / "test.txt").write_text("train/Fruit/Pear/2.png, 9\n")
    with pytest.raises(DataError, match=r"line 7 of .*train.txt and line 1 of .*test.txt both list train/Fruit/Pear/2"):
        load_data(str(tmp_path / "d"))


def test_an_image_that_is_listed_by_two_paths_is_an_error(shoes):
    rows = [f"boot/{k}.png,boot" for k in range(9)] + [f"sandal/{k}.png,sandal" for k in range(9)]
    with pytest.raises(DataError, match=r"line 2 of .* and line 20 of .* both list sandal/../boot/0.png"):
        load_data(write_table(shoes, [*rows, "sandal/../boot/0.png,boot"], head="path,label"))


def test_names_are_found_in_either_unicode_form(shoes):
    (shoes / "boot" / "0.png").rename(shoes / "boot" / "e\u0301.png")
    rows = [f"boot/{k}.png,boot" for k in range(1, 9)] + [f"sandal/{k}.png,sandal" for k in range(9)]
    data = load_data(write_table(shoes, [*rows, "boot/\u00e9.png,boot"], head="path,label"))
    assert sum(len(part) for part in (data.train, data.validation, data.test)) == 18


def test_a_folder_with_the_tables_of_two_datasets_is_an_error(tmp_path, pack_folder):
    write_groceries(tmp_path / "d", prefix="a_")
    write_groceries(tmp_path / "d", prefix="b_")
    with pytest.raises(DataError, match=r"the tables of 2 datasets .a_train.txt, b_train.txt.; give each a folder"):
        load_data(str(tmp_path / "d"))


def test_other_tables_with_the_names_of_splits_are_an_error(shoes):
    for split in ("train", "test"):
        (shoes / f"{split}.csv").write_text("seed,accuracy\n0,0.9\n")
    message = r"train.csv starts with seed, accuracy; it needs a first line with the columns .* move it elsewhere"
    with pytest.raises(DataError, match=message):
        load_data(str(shoes))


def write_groups(folder, groups):
    """Write images and a table of them; `groups` has a class, a group and a number of images in each tuple."""
    rows = []
    for name, group, count in groups:
        for k in range(count):
            save_image(folder / f"{name}-{group}-{k}.png", seed=len(rows), label=ord(name[0]))
            rows.append(f"{name}-{group}-{k}.png,{name},{group}")
    return write_table(folder, rows, head="file,label,group")


def groups_of(split):
    return {file.split("-")[1] for file in split.files}


def test_images_of_one_group_stay_in_one_split(tmp_path, pack_folder):
    path = write_groups(tmp_path / "d", [(name, f"{name}{k}", 2 + k % 4) for name in "abc" for k in range(12)])
    data = load_data(path)
    parts = [groups_of(part) for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 36
    assert all(count for part in (data.train, data.validation, data.test) for count in part.counts().values())
    assert 0.1 < len(data.test) / 126 < 0.2
    assert 0.1 < len(data.validation) / 126 < 0.2
    assert data.notes == (
        f"read 126 images of {path}",
        "each group is in one split; groups of each split: "
        + ", ".join(
            f"{part.name} {len(groups_of(part))} ({len(part)} images)"
            for part in (data.train, data.test, data.validation)
        ),
    )
    again = load_data(path, validation=len(data.validation))
    assert again.validation.files == data.validation.files, "a run loads the same images again"


@pytest.mark.parametrize("seed", range(8))
def test_groups_of_any_sizes_and_classes_are_held_out_whole(seed):
    random = np.random.RandomState(seed)
    labels = random.randint(0, 4, 300)
    groups = [str(group) for group in random.randint(0, (9, 30, 100, 290)[seed % 4], 300)]
    if seed > 3:  # one class in a group
        groups = [f"{group} {label}" for group, label in zip(groups, labels, strict=True)]
    for count in (1, 20, 60):
        rows = _choose_groups(labels, groups, count)
        held_out = {groups[row] for row in rows}
        assert [row for row in range(300) if groups[row] in held_out] == rows.tolist()
        assert np.array_equal(np.unique(np.delete(labels, rows)), np.unique(labels))
        assert np.array_equal(_choose_groups(labels, groups, len(rows)), rows)


def test_an_image_without_a_group_is_a_group_of_its_own(tmp_path, pack_folder):
    path = write_groups(tmp_path / "d", [("a", "", 20), ("b", "", 20), ("a", "x", 3), ("b", "x", 3)])
    data = load_data(path)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [32, 7, 7]


def test_a_class_keeps_training_images_if_it_has_one_group(tmp_path, pack_folder):
    data = load_data(write_groups(tmp_path / "d", [("a", "x", 9), *(("b", f"b{k}", 2) for k in range(9))]))
    assert data.train.counts()["a"] == 9
    assert data.test.counts()["b"] == 4
    with pytest.raises(
        DataError, match=r"no group of .* can be held out for the test, because .* such as a; give each"
    ):
        load_data(write_groups(tmp_path / "e", [("a", "x", 9), ("b", "y", 9)]))


@pytest.mark.parametrize("head", ["path,label,split,group", "path,label,subset,Patient ID"])
def test_a_group_in_two_splits_is_an_error(shoes, head):
    splits = ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    rows = [f"{name}/{k}.png,{name},{splits[k]},{k // 4}" for name in ("boot", "sandal") for k in range(20)]
    data = load_data(write_table(shoes, rows, head=head))
    assert data.notes[-1] == (
        "each group is in one split; groups of each split: "
        "train 3 (24 images), validation 1 (8 images), test 1 (8 images)"
    )
    rows[-1] = rows[-1].replace(",4", ",2")
    with pytest.raises(DataError, match=r"the group 2 of .*list.csv has images in train and test; move all of them to"):
        load_data(write_table(shoes, rows, head=head))


INVALID_TABLES = {
    "header": (["boot/1.png,x,train"], "name,kind,split", "starts with name, kind, split; it needs a first line"),
    "columns": (["boot/1.png"], "path,label", "line 2 of .* has 1 columns"),
    "label": (["boot/1.png,"], "path,label", "an empty path or label"),
    "split": (["boot/1.png,x,training"], "path,label,split", "line 2 of .* has the split 'training'; allowed: train"),
    "twice": (["boot/1.png,x", "boot/2.png,x", "boot/1.png,y"], "path,label", "line 2 of .* and line 4 .* both list"),
    "zero byte": (["boot/1.png\0,x"], "path,label", "cannot read .* .it contains a zero byte.; give a table in UTF-8"),
    "no rows": ([], "path,label", "found no training images in .*; it needs a first line with the columns path"),
    "quotes": (['"boot/1.png,x'], "path,label", "cannot read .*; give a table in UTF-8"),
    "missing": ([f"boot/{k}.png,x" for k in range(9)] + [f"no/{k}.png,y" for k in range(9)], "path,label",
                r"9 of the 18 files of .* no/0.png \(No such file or directory\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID_TABLES)
def test_an_invalid_table_is_an_error(shoes, name):
    rows, head, message = INVALID_TABLES[name]
    with pytest.raises(DataError, match=message):
        load_data(write_table(shoes, rows, head=head))


def test_a_binary_table_is_an_error(shoes):
    shutil.copy(shoes / "boot" / "1.png", shoes / "list.csv")
    with pytest.raises(DataError, match=r"cannot read .*list.csv .*; give a table in UTF-8"):
        load_data(str(shoes / "list.csv"))


def test_every_command_accepts_tables_with_groups_and_a_run_on_them(command, tmp_path, pack_folder):
    path = write_groups(tmp_path / "d", [(name, f"{name}{k}", 3) for name in "ab" for k in range(10)])
    command("train", "--data", path, "--recipe", "fast", "--set", "network=tiny", "--epochs", 1)
    assert command("evaluate", "runs/fast-0").stdout, "the same images are held out for validation again"
    command("evaluate", "runs/fast-0", "--split", "test")
    assert "each group is in one split" in command("show", path).stderr
    command("diagnose", path)
