import shutil

import pytest

from gingham import DataError, load_data


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


INVALID_TABLES = {
    "header": (["boot/1.png,x,train"], "name,kind,split", "starts with name, kind, split; it needs a first line"),
    "columns": (["boot/1.png"], "path,label", "line 2 of .* has 1 columns"),
    "label": (["boot/1.png,"], "path,label", "an empty path or label"),
    "split": (["boot/1.png,x,training"], "path,label,split", "line 2 of .* has the split 'training'; allowed: train"),
    "twice": (["boot/1.png,x", "boot/2.png,x", "boot/1.png,y"], "path,label", ("lines 2 and 4 of .* both list "
                                                                              "boot/1.png")),
    "zero byte": (["boot/1.png\0,x"], "path,label", "is not a table in UTF-8 .it contains a zero byte."),
    "no rows": ([], "path,label", "found no training images in .*; it needs a first line with the columns path"),
    "quotes": (['"boot/1.png,x'], "path,label", "is not a table in UTF-8"),
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
    with pytest.raises(DataError, match="is not a table in UTF-8"):
        load_data(str(shoes / "list.csv"))
