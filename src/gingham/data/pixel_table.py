"""Read tables with a label and the pixels of an image in each line."""

import math
import re
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gingham.data.memory import free_memory
from gingham.data.npz import encode_labels, to_labels
from gingham.data.pixel_values import to_uint8
from gingham.data.raw import Part, RawDataset, join_splits
from gingham.data.table import DELIMITERS, find_column, is_image_name
from gingham.errors import DataError, one_line

FEWEST_COLUMNS = 17  # a label and 4x4 pixels
LINES_AT_ONCE = 2048
MOST_LABELS = 100  # different numbers in the first column, if it has the label


def is_pixel_table(path: Path) -> bool:
    """Return whether a table has so many numbers in a line that they may be the pixels of an image."""
    _, cells = _first_lines(path)
    texts = _texts(cells)
    return len(cells) >= FEWEST_COLUMNS and len(texts) < 2 and not any(is_image_name(cells[k]) for k in texts)


def read_pixel_tables(tables: Mapping[str, Path]) -> RawDataset:
    """Return the images and labels of tables of pixels, given by the split of their images.

    A line has a label and the N*N pixels of a grey image or the 3*N*N of a colour image. The label is in a column with
    one of its usual names, or with text; otherwise in the first, or in the last if the first is constant, as a corner
    of images often is, or has more than MOST_LABELS values. The channels of colour images are apart, or together for
    each pixel: the order that gives smoother images is used.

    Raises
        DataError: a table is larger than half of the free memory, or has other columns or values.
    """
    path, notes = tables["train"], list[str]()
    header, cells = _first_lines(path)
    num_pixels = len(cells) - 1
    channels = 1 if math.isqrt(num_pixels) ** 2 == num_pixels else 3
    side = math.isqrt(num_pixels // channels)
    if channels * side**2 != num_pixels:
        raise DataError(
            f"{path} has {num_pixels} columns beside the label; allowed: the N*N pixels of grey images or the 3*N*N of "
            "colour images, such as 784 or 3072; remove other columns"
        )
    names: dict[str, int] = {}
    texts: dict[int | str, Callable[[str], int]] = {
        k: lambda text: names.setdefault(text.strip(), len(names)) for k in _texts(cells)
    }
    numbers = {split: _read_numbers(table, len(cells), texts) for split, table in tables.items()}
    label = find_column(header, "label") if header else next(iter(_texts(cells)), None)
    if label is None:
        label = 0 if 1 < len(np.unique(numbers["train"][:, 0])) <= MOST_LABELS else len(cells) - 1
        notes.append(f"the label is in column {label + 1} of the {len(cells)} columns of {path}")
    columns = {split: array[:, label] for split, array in numbers.items()}
    if label in texts:
        columns = {split: np.array(list(names))[column.astype(int)] for split, column in columns.items()}
    columns = {split: to_labels(column, f"column {label + 1} of {tables[split]}") for split, column in columns.items()}
    labels, classes = encode_labels(columns, None, path)
    pixels, note = to_uint8({split: np.delete(array, label, axis=1) for split, array in numbers.items()}, str(path))
    shapes = [((channels, side, side), (0, 1, 2, 3)), ((side, side, channels), (0, 3, 1, 2))]
    images = [{k: array.reshape(-1, *shape).transpose(axes) for k, array in pixels.items()} for shape, axes in shapes]
    smoothest = min(images, key=lambda arrays: np.abs(np.diff(arrays["train"][:500].astype(int), axis=3)).sum())
    parts = {split: Part(np.ascontiguousarray(array), labels[split]) for split, array in smoothest.items()}
    return join_splits(parts, classes, path)._replace(notes=(*notes, *filter(None, [note])))


def _first_lines(path: Path) -> tuple[list[str], list[str]]:
    """Return the cells of the line with names, if there is one, and of the first line with numbers."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = [file.readline(1 << 20) for _ in range(2)]
    except OSError:  # an error when the table is read
        return [], []
    delimiter = max(DELIMITERS, key=lines[0].count)
    first, second = ([cell.strip('" \n') for cell in line.split(delimiter)] for line in lines)
    # With labels of text, the only other name may be that of the column of labels.
    named = (label := find_column(first, "label")) is not None and len(first[label]) > 1
    return (first, second) if named or {*_texts(first)} > {*_texts(second)} else ([], first)


def _texts(cells: list[str]) -> list[int]:
    """Return the indices of the cells that are not numbers."""
    return [k for k, cell in enumerate(cells) if not re.fullmatch(r"[-+.\deE]+|nan|inf", cell)]


def _read_numbers(path: Path, columns: int, converters: Mapping[int | str, Callable[[str], int]]) -> npt.NDArray[Any]:
    """Return the numbers in the lines of a table, (N, columns): int16, or float32 if any has a decimal point.

    The column of text, if there is one, is converted by `converters`.
    """
    if (size := path.stat().st_size) > free_memory() // 2:
        raise DataError(f"{path} has {size} bytes, more than half of the free memory; save it as four IDX files")
    arrays: list[npt.NDArray[Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            rows = filter(str.strip, islice(file, bool(_first_lines(path)[0]), None))
            while lines := list(islice(rows, LINES_AT_ONCE)):
                dtype = np.dtype(np.float32 if any("." in line for line in lines) else np.int16)  # five times as fast
                delimiter = max(DELIMITERS, key=lines[0].count)
                arrays.append(np.loadtxt(lines, dtype, None, delimiter, converters, ndmin=2, quotechar='"'))
                if arrays[-1].shape[1] != columns:
                    raise ValueError(f"it has {arrays[-1].shape[1]} columns, not {columns}")
        return np.concatenate(arrays)
    except (OSError, ValueError) as error:
        reason = one_line(error).partition(";")[0]
        raise DataError(
            f"cannot read {path} ({reason}, after {sum(map(len, arrays)):,} images); it needs a label and the same "
            "number of pixels in each line"
        ) from error
