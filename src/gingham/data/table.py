"""List the images that a `.csv` table of paths and labels names."""

import csv
import io
import unicodedata
from pathlib import Path

from gingham.data.listing import SPLITS, Entry
from gingham.errors import DataError, one_line


def list_table(path: Path, training: bool) -> tuple[list[Entry], list[str]]:
    head = "a first line with the columns path (or file, image) and label (or class), and, if you like, split"
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8 ({one_line(error)}); it needs {head}") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    columns = [next((header.index(name) for name in names if name in header), None) for names in
               (("path", "file", "image"), ("label", "class"), ("split",))]  # fmt: skip
    at, label_at, split_at = columns
    if at is None or label_at is None:
        raise DataError(f"{path} begins with {', '.join(header[:6]) or 'nothing'}; it needs {head}")
    entries: list[Entry] = []
    lines: dict[str, int] = {}
    for line, row in rows[1:]:
        cells = [unicodedata.normalize("NFC", cell.strip()) for cell in row]
        if not any(cells):
            continue
        if len(cells) != len(header) or not cells[at] or not cells[label_at]:
            raise DataError(
                f"line {line} of {path} has {len(cells)} columns, or an empty path or label; it needs all {len(header)}"
            )
        if "\0" in cells[at]:
            raise DataError(
                f"line {line} of {path} has the path {cells[at]!r}; a file's name cannot hold a zero byte: take it out"
            )
        split = SPLITS.get(cells[split_at].lower()) if split_at is not None else "train"
        if split is None:
            raise DataError(f"line {line} of {path} has the split {cells[split_at or 0]!r}; allowed: {', '.join(SPLITS)}")
        if (before := lines.setdefault(cells[at], line)) != line:
            raise DataError(f"lines {before} and {line} of {path} both name {cells[at]}; name each picture once")
        entries.append(Entry(split, cells[label_at], cells[at], path.parent / row[at].strip()))
    if training and not any(entry.split == "train" for entry in entries):
        raise DataError(f"{path} names no training picture; it needs {head}, and a line for each picture")
    return entries, []
