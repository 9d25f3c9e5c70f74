"""Read tables with a label and the pixels of an image in each line."""

import math
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gingham.data.image_folder import is_image_name
from gingham.data.memory import require_memory
from gingham.data.npz import raw_from_numbers, to_labels
from gingham.data.raw import RawDataset
from gingham.data.table import DELIMITERS, find_column
from gingham.errors import DataError, one_line

FEWEST_COLUMNS = 17  # a label and 4x4 pixels
LINES_AT_ONCE = 2048
MOST_LABELS = 100  # different numbers in the first column, if it has the label


def is_pixel_table(path: Path) -> bool:
    """Return whether a table has so many numbers in a line that they may be the pixels of an image."""
    _, cells = _first_lines(path)
    texts = [cell for cell in cells if not _is_number(cell)]
    return len(cells) >= FEWEST_COLUMNS and len(texts) < 2 and not any(map(is_image_name, texts))


def read_pixel_tables(tables: Mapping[str, Path]) -> RawDataset:
    """Return the images and labels of tables of pixels, given by the split of their images.

    A line has a label, a whole number, and the N*N pixels of a grey image or the 3*N*N of a colour image. The label is
    in a column with one of its usual names; otherwise in the first, or in the last if the first is constant, as a
    corner of images often is, or has more than MOST_LABELS values. The channels of colour images are apart, or together
    for each pixel: the order that gives smoother images is used.

    Raises
        DataError: a table is larger than half of the free memory, or has other columns or values.
    """
    path, note = tables["train"], ""
    names, cells = _first_lines(path)
    num_pixels = len(cells) - 1
    channels = 1 if math.isqrt(num_pixels) ** 2 == num_pixels else 3
    side = math.isqrt(num_pixels // channels)
    if channels * side**2 != num_pixels:
        raise DataError(
            f"{path} has {num_pixels} columns beside the label; allowed: the N*N pixels of grey images or the 3*N*N of "
            "colour images, such as 784 or 3072; remove other columns"
        )
    rows = {split: _read_numbers(table, len(cells)) for split, table in tables.items()}
    label = find_column(names, "label")
    if label is None:
        label = 0 if 1 < len(np.unique(rows["train"][:, 0])) <= MOST_LABELS else num_pixels
        note = f"the label is in column {label + 1} of the {len(cells)} columns of {path}"
    labels = {split: to_labels(array[:, label], str(tables[split])) for split, array in rows.items()}
    pixels = {split: np.delete(array, label, axis=1) for split, array in rows.items()}
    apart = {split: array.reshape(-1, channels, side, side) for split, array in pixels.items()}
    together = {k: array.reshape(-1, side, side, channels).transpose(0, 3, 1, 2) for k, array in pixels.items()}
    smoothest = min(apart, together, key=lambda images: np.abs(np.diff(images["train"][:500].astype(float))).sum())
    return raw_from_numbers(smoothest, labels, path, note)


def _first_lines(path: Path) -> tuple[list[str], list[str]]:
    """Return the cells of the line with names, if there is one, and of the first line with numbers."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            lines = [file.readline(1 << 20) for _ in range(2)]
    except OSError:  # an error when the table is read
        return [], []
    delimiter = max(DELIMITERS, key=lines[0].count)
    first, second = ([cell.strip('" \n') for cell in line.split(delimiter)] for line in lines)
    has_names = sum(map(_is_number, first)) < sum(map(_is_number, second))
    return (first, second) if has_names else ([], first)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+.\deE]+|nan|inf", cell) is not None


def _read_numbers(path: Path, columns: int) -> npt.NDArray[Any]:
    """Return the numbers in the lines of a table, (N, columns): int16, or float32 if any has a decimal point."""
    require_memory(path.stat().st_size, str(path), "save it as four IDX files")
    arrays: list[npt.NDArray[Any]] = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            rows = filter(str.strip, islice(file, bool(_first_lines(path)[0]), None))
            while lines := list(islice(rows, LINES_AT_ONCE)):
                dtype = np.dtype(np.float32 if any("." in line for line in lines) else np.int16)  # five times as fast
                delimiter = max(DELIMITERS, key=lines[0].count)
                arrays.append(np.loadtxt(lines, dtype, delimiter=delimiter, ndmin=2, quotechar='"'))
                if arrays[-1].shape[1] != columns:
                    raise ValueError(f"it has {arrays[-1].shape[1]} columns, not {columns}")
        return np.concatenate(arrays)
    except (OSError, ValueError) as error:
        reason = f"{one_line(error).partition(';')[0]}, after {sum(map(len, arrays)):,} images"
        needed = "a whole number as the label and the same number of pixels in each line"
        raise DataError(f"cannot read {path} ({reason}); it needs {needed}") from error
