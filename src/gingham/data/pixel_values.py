"""Convert the pixel values of arrays to uint8."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gingham.data.raw import Pixels
from gingham.errors import DataError

PART_SIZE = 1024  # images converted at once


def to_uint8(arrays: Mapping[str, npt.NDArray[Any]], origin: str) -> tuple[dict[str, Pixels], str]:
    """Return images of numbers as uint8, all scaled by one rule, and a note on how; it is empty if nothing changed.

    Whole numbers from 0 to 255 stay. Numbers from 0 to 1 are multiplied by 255, also whole ones; numbers from -1 (below
    -0.5) to 1 are mapped to the same range.

    Raises
        DataError: other numbers, or NaN.
    """
    low, high = (float(limit([limit(array) for array in arrays.values()])) for limit in (np.min, np.max))
    kinds = ", ".join(sorted({str(array.dtype) for array in arrays.values()}))
    # A part at a time, because float64 takes eight times the memory.
    parts = [(name, slice(k, k + PART_SIZE)) for name in arrays for k in range(0, len(arrays[name]), PART_SIZE)]
    factor, offset = 1.0, 0.0
    if 0 <= low <= high <= 1:
        factor = 255.0
    elif -1 <= low < -0.5 and high <= 1:
        factor = offset = 127.5
    elif not (0 <= low <= high <= 255 and all((arrays[k][rows] % 1 == 0).all() for k, rows in parts)):
        raise DataError(
            f"{origin} has pixels from {low:g} to {high:g} ({kinds}); allowed: whole numbers from 0 to 255, or numbers "
            "from 0 to 1 or from -1 to 1; scale them, and replace missing values"
        )
    converted = {name: np.empty(array.shape, np.uint8) for name, array in arrays.items()}
    for name, rows in parts:
        converted[name][rows] = np.rint(arrays[name][rows] * factor + offset)
    note = f"the pixels of {origin}, from {low:g} to {high:g} ({kinds}), became 0 to 255 (uint8)"
    return converted, note if factor > 1 or "float" in kinds else ""
