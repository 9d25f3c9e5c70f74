"""List the images of tables of paths and labels."""

import csv
import functools
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from gingham.data.image_folder import SPLIT_NAMES, SPLIT_ORDER, Entry, is_image_name, scan_folder
from gingham.errors import DataError, list_first
from gingham.io import explain_read_errors

DELIMITERS = ",;\t"
TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
# The names of columns, without case and punctuation. If a table has several of a kind, the first in this list is used.
COLUMN_NAMES = {
    "path": "path file image filename filepath imagepath imagefile imagename imageid img imgpath imgname id name",
    "label": "label class labels classname category target labelname categoryname classid labelid y",
    "split": "split set subset partition usage",
    "group": "group groupid patient patientid subject subjectid person personid",
}
TABLE_LAYOUT = (
    "a first line with the columns path (or file, filename, image, image_id, id), label (or class, class_name, "
    "category, target) and optionally split and group, and a line for each image; or only such lines, of a path and a "
    "label; or lines of a label, a whole number, and the N*N or 3*N*N pixels of an image"
)


def find_tables(path: Path) -> dict[str, Path]:
    """Return a table by the split of its images, or the tables of a folder by their splits; empty if there are none.

    The tables of a folder are called train and test (also validation, val or valid), such as `train.txt` and
    `test.txt`, or end in these names, such as `signs_train.csv` and `signs_test.csv`.

    Raises
        DataError: a folder has the tables of several datasets.
    """
    if not path.is_dir():
        return {"train": path} if path.suffix.lower() in TABLE_SUFFIXES and path.exists() else {}
    datasets: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in scan_folder(path)[1]:
        name = re.split("[_.-]", file.stem.lower())[-1]
        if name in SPLIT_NAMES and file.suffix.lower() in TABLE_SUFFIXES:
            datasets[file.stem[: -len(name)]].setdefault(SPLIT_NAMES[name], file)
    pairs = [tables for tables in datasets.values() if "train" in tables and len(tables) > 1]
    if len(pairs) > 1:
        names = list_first([tables["train"].name for tables in pairs], 4)
        raise DataError(f"{path} has the tables of {len(pairs)} datasets ({names}); give each a folder of its own")
    return {split: pair[split] for pair in pairs for split in SPLIT_ORDER if split in pair}


def list_tables(tables: Mapping[str, Path]) -> list[Entry]:
    """Return the entries of tables of paths and labels, given by the split of their images.

    If all labels are numbers, a file `classes.csv`, `.tsv` or `.txt` beside the tables may name them.

    Raises
        DataError: a table is not readable or has no path or label; an image is listed twice; a group is in two splits.
    """
    listed, splits = dict[str, str](), dict[str, str]()
    entries = [entry for split, path in tables.items() for entry in _list_table(path, split, listed)]
    for entry in entries:
        if entry.group and (first := splits.setdefault(entry.group, entry.split)) != entry.split:
            raise DataError(
                f"the group {entry.group} of {tables['train']} has images in {first} and {entry.split}; move all of "
                "them to one split, or remove the column of groups"
            )
    names = _read_class_names(tables["train"].parent, {entry.label for entry in entries})
    return [entry._replace(label=names.get(entry.label, entry.label)) for entry in entries]


def find_column(header: list[str], kind: str) -> int | None:
    """Return the index of the first column of a kind, a key of COLUMN_NAMES, or None if there is none."""
    plain = [re.sub(r"\(.*|\W|_", "", name.lower()) for name in header]
    return next((plain.index(name) for name in COLUMN_NAMES[kind].split() if name in plain), None)


def _list_table(path: Path, split: str, listed: dict[str, str]) -> list[Entry]:
    """Return the entries of a table. `listed` has the line of each file listed so far, and is extended."""
    rows = _read_rows(path)
    header = rows[0][1] if rows else [""]
    if is_image_name(header[0]):  # no line with the names of columns
        header = ["path", "label", *header[2:]][: len(header)]
    else:
        rows = rows[1:]
    path_column, label_column, split_column, group_column = (find_column(header, kind) for kind in COLUMN_NAMES)
    if path_column is None or label_column is None:
        advice = f"it needs {TABLE_LAYOUT}; if it is no list of images, move it elsewhere"
        raise DataError(f"{path} starts with {', '.join(header[:6]) or 'nothing'}; {advice}")
    if split_column is not None and header[split_column].lower() != "split":  # such a column may mean something else
        values = {cell.lower() for _, cells in rows for cell in cells[split_column : split_column + 1]}
        split_column = split_column if values <= SPLIT_NAMES.keys() else None
    beside = functools.cache(_files_beside)
    entries: list[Entry] = []
    for line, cells in rows:
        where = f"line {line} of {path}"
        if len(cells) != len(header) or not cells[path_column] or not cells[label_column]:
            raise DataError(f"{where} has {len(cells)} columns, or an empty path or label; give it all {len(header)}")
        name, label = (unicodedata.normalize("NFC", cells[column]) for column in (path_column, label_column))
        of_line = split if split_column is None else cells[split_column].lower()
        if of_line not in SPLIT_NAMES:
            raise DataError(f"{where} has the split {of_line!r}; allowed: {', '.join(SPLIT_NAMES)}")
        file = path.parent / cells[path_column]
        if not os.path.lexists(file) and (found := beside(path.parent).get(name)):
            found = [file for file in found if file.parent.name.lower() in (path.stem.lower(), of_line)] or found
            if len(found) > 1:
                raise DataError(f"{where} names {name}, which is {found[0]} or {found[1]}; write which")
            file = found[0]
        identity = unicodedata.normalize("NFC", os.path.normpath(file))
        if (previous := listed.setdefault(identity, where)) != where:
            raise DataError(f"{previous} and {where} both list {name}; list each image once")
        # An image without a group is a group of its own.
        group = "" if group_column is None else cells[group_column] or f"\0{name}"
        entries.append(Entry(SPLIT_NAMES[of_line], label, name, file, group))
    return entries


def _files_beside(folder: Path) -> dict[str, list[Path]]:
    """Return the images in a folder and the folders in it, by their names and paths with and without extension."""
    by_name = defaultdict(list)
    folders, files = scan_folder(folder)
    for file in filter(is_image_name, [*files, *(file for each in folders for file in scan_folder(each)[1])]):
        relative = file.relative_to(folder)
        for name in {file.name, file.stem, relative.as_posix(), relative.with_suffix("").as_posix()}:
            by_name[unicodedata.normalize("NFC", name)].append(file)
    return by_name


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines of a table that are not empty: their numbers and cells."""
    with explain_read_errors(path, f"give a table in UTF-8 that has {TABLE_LAYOUT}"):
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it contains a zero byte")
        first_line = text.partition("\n")[0]
        # Not csv.Sniffer, which takes the semicolons in "a;1.png,cat" for the delimiter, whatever the first line has.
        delimiter = max(DELIMITERS, key=first_line.count)
        if delimiter not in first_line:  # such as "train/a b.png 3" or "3 cat"
            text, delimiter = re.sub(r"(?m)^(\d+|.*\.\w{3,4}) +(?=\S)", r"\1\t", text), "\t"
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
        return [(line, cells) for line, cells in rows if any(cells)]


def _read_class_names(folder: Path, labels: set[str]) -> dict[str, str]:
    """Return the names of numbered classes, by number, from a file of names in `folder`; empty if there is none.

    The file has a number and a name in the first two columns, in either order, or the name of each class from 0 on.
    """
    path = next((file for suffix in TABLE_SUFFIXES if (file := folder / f"classes{suffix}").is_file()), None)
    if path is None or not all(label.isdecimal() for label in labels):
        return {}
    rows = [cells[:2] for _, cells in _read_rows(path)]
    if all(len(row) == 1 for row in rows) and len(rows) == len(labels):
        rows = [[str(k), *row] for k, row in enumerate(rows)]
    for number, name in ((0, 1), (1, 0)):
        names = {row[number]: row[name] for row in rows if len(row) == 2}
        if labels <= names.keys() and len({names[label] for label in labels}) == len(labels):
            return names
    return {}
