"""How much memory is free."""

import contextlib
import re
from pathlib import Path

from gingham.errors import DataError

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


def require_memory(num_bytes: int, name: str, advice: str) -> None:
    """Raise a DataError that ends with `advice` if something that takes `num_bytes` is larger than half of the memory.

    `name` says what it is.
    """
    if num_bytes > free_memory() // 2:
        raise DataError(f"{name} takes {num_bytes} bytes, more than half of the free memory; {advice}")
