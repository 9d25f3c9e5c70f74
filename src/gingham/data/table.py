"""List the images of a `.csv` table of paths and labels."""

import csv
import io
import unicodedata
from pathlib import Path

from gingham.data.image_folder import SPLIT_NAMES, Entry
from gingham.errors import DataError, one_line

TABLE_LAYOUT = (
    "a first line with the columns path (or file, image), label (or class) and optionally split, and a line for each "
    "image"
)
COLUMN_NAMES = (("path", "file", "image"), ("label", "class"), ("split",))


def list_table(path: Path) -> list[Entry]:
    """Return the entries of a `.csv` table of paths and labels."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it contains a zero byte")
        first_line = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first_line.count), strict=True)
        rows = [(reader.line_num, [unicodedata.normalize("NFC", cell.strip()) for cell in row], row) for row in reader]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8 ({one_line(error)}); it needs {TABLE_LAYOUT}") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); check its permissions") from error
    header = [name.lower() for name in rows[0][1]] if rows else []
    path_column, label_column, split_column = (
        next((header.index(name) for name in names if name in header), None) for names in COLUMN_NAMES
    )
    if path_column is None or label_column is None:
        raise DataError(f"{path} starts with {', '.join(header[:6]) or 'nothing'}; it needs {TABLE_LAYOUT}")
    entries: list[Entry] = []
    first_lines: dict[str, int] = {}
    for line, cells, row in rows[1:]:
        if not any(cells):
            continue
        if len(cells) != len(header) or not cells[path_column] or not cells[label_column]:
            raise DataError(
                f"line {line} of {path} has {len(cells)} columns, or an empty path or label; give it all {len(header)}"
            )
        name, label = cells[path_column], cells[label_column]
        split = "train" if split_column is None else cells[split_column].lower()
        if split not in SPLIT_NAMES:
            raise DataError(f"line {line} of {path} has the split {split!r}; allowed: {', '.join(SPLIT_NAMES)}")
        if (previous := first_lines.setdefault(name, line)) != line:
            raise DataError(f"lines {previous} and {line} of {path} both list {name}; list each image once")
        entries.append(Entry(SPLIT_NAMES[split], label, name, path.parent / row[path_column].strip()))
    return entries
