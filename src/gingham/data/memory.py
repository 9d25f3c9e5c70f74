"""How much memory is free, and large arrays that stay on disk."""

import contextlib
import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gingham.errors import DataError, GinghamError, one_line
from gingham.io import atomic_write

LARGEST_BYTES = 1 << 40


def free_memory() -> int:
    """Return how many bytes this process can still allocate, within the limits of the system and its container."""
    free = [LARGEST_BYTES]
    with contextlib.suppress(OSError):  # not Linux
        free += [1024 * int(size) for size in re.findall(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())]
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controller, group = line.split(":", 2)
            if controller in ("", "memory"):  # of cgroup v2 and v1
                root = Path("/sys/fs/cgroup", controller)
                name = "memory.limit_in_bytes" if controller else "memory.max"
                for folder in (root, root / group.lstrip("/")):  # inside a container, its own group is the root
                    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                        free.append(int((folder / name).read_text()))
    return min(free)


def memory_map_rows(images: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp], path: Path) -> npt.NDArray[np.uint8]:
    """Copy some rows of a large array to a file and return that file mapped into memory.

    `images` is uint8 (N, C, H, W), `rows` ascending indices (M,). An existing file of the right size is reused.

    Raises
        DataError: the file cannot be written, for example because the disk is full.
    """
    shape = (len(rows), *images.shape[1:])
    size = math.prod(shape)
    try:
        if not (path.exists() and path.stat().st_size == size):
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                for chunk in np.array_split(rows, -(-size // (1 << 26))):
                    file.write(images[chunk].tobytes())
        return np.memmap(path, np.uint8, "c", 0, shape)
    except (OSError, GinghamError) as error:
        raise DataError(
            f"cannot write {path} ({one_line(error)}), which a dataset larger than half of the free memory needs; "
            f"free {size} bytes there, or hold no pictures out (--set validation_images=0)"
        ) from error
