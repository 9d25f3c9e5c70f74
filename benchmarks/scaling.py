"""Measure how the cost of training grows with the number of images, with their size, and with images that stay on disk.

    python benchmarks/scaling.py

Each measurement trains the network `small` in its own process for some steps of 256 images: Fashion-MNIST repeated to
6,000, 60,000 and 600,000 images; enlarged to 64x64 and 224x224; and a set read from its memory-mapped pack, in a
process with less memory than the set needs, beside the same set in memory. That limit is a memory cgroup, which needs
Linux and root. Writes benchmarks/results/scaling-<hardware>-<date>.md.
"""

import argparse
import contextlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import gingham
import records
from gingham.data.idx import IDX_FILES
from gingham.device import choose_device, describe_environment, retain_freed_memory

RECIPE = gingham.RECIPES["fast"].replace(name="scaling", hard_share=1.0, tta="none", shift_pixels=1)
NUMBER_KEYS = (6_000, 60_000, 600_000)
SIZES = (28, 64, 224)
LARGE = 4_000_000  # images of 28x28: 3.1 GB
LIMIT = 2 << 30  # bytes of memory for the mapped run, including file pages
ROUNDS = 3


def repeat(folder: Path, count: int, size: int) -> None:
    """Write Fashion-MNIST as IDX files, repeated to `count` images and enlarged to `size`."""
    data = gingham.load_data("fashion-mnist", validation=0)
    folder.mkdir(parents=True)
    for split, total, names in ((data.train, count, IDX_FILES[:2]), (data.test, 100, IDX_FILES[2:])):
        with (folder / names[0]).open("wb") as image_file, (folder / names[1]).open("wb") as label_file:
            image_file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, total, size, size))
            label_file.write(struct.pack(">BBBBI", 0, 0, 8, 1, total))
            for start in range(0, total, 2000):
                rows = torch.arange(start, min(start + 2000, total)) % len(split)
                images = split.images[rows]
                if size != images.shape[-1]:
                    images = F.interpolate(images.float(), size=size, mode="bilinear").round().to(torch.uint8)
                image_file.write(images.numpy().tobytes())
                label_file.write(split.labels[rows].numpy().astype(np.uint8).tobytes())


def memory(field: str) -> int:
    """Return this process's memory (VmRSS) or its peak (VmHWM) in bytes; getrusage would include its parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def train(folder: Path, steps: int) -> dict[str, Any]:
    """Train on a folder and return speed and memory, without a warm-up."""
    before = memory("VmRSS")
    data = gingham.load_data(str(folder), validation=0)
    epochs = steps * RECIPE.batch_size / len(data.train)
    retain_freed_memory()  # as gingham train does
    run = gingham.fit(RECIPE.replace(epochs=epochs), data.train, progress=False)
    seconds, images = run.metrics["train_seconds"], run.metrics["images_seen"]
    return {
        "microseconds_a_picture": 1e6 * seconds / images,
        "images_per_second": images / seconds,
        "data_bytes": data.train.images.nbytes,
        "memory_bytes": memory("VmHWM") - before,
        "mapped": data.train.block > 1,
    }


def measure(folder: Path, steps: int, cgroup: Path | None = None) -> dict[str, Any]:
    argv = [sys.executable, __file__, "--folder", str(folder), "--steps", str(steps)]
    if cgroup is not None:
        # The shell enters the cgroup before Python starts, so that all of its memory counts.
        script = f'echo $$ > {cgroup}/tasks 2>/dev/null || echo $$ > {cgroup}/cgroup.procs; exec "$@"'
        argv = ["sh", "-c", script, "sh", *argv]
    process = subprocess.run(argv, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(process.stdout)
    return result


@contextlib.contextmanager
def memory_limit(limit: int) -> Iterator[Path]:
    """Create a cgroup whose processes may use `limit` bytes."""
    version_1 = Path("/sys/fs/cgroup/memory")
    cgroup = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"gingham-{os.getpid()}"
    try:
        cgroup.mkdir()
        (cgroup / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")).write_text(str(limit))
    except OSError as error:
        sys.exit(f"cannot create a memory cgroup ({error}); this measurement needs Linux and root")
    try:
        yield cgroup
    finally:
        cgroup.rmdir()


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(train(options.folder, options.steps)))
        return
    commit = records.clean_commit()
    environment = describe_environment(choose_device("auto"))
    lines: list[str] = []

    def table(title: str, cases: list[tuple[str, Path, int, Path | None]]) -> dict[str, list[dict[str, Any]]]:
        results: dict[str, list[dict[str, Any]]] = {name: [] for name, *_ in cases}
        for turn in range(ROUNDS):
            for name, folder, steps, cgroup in cases:
                print(f"{title}: {name}, round {turn + 1} of {ROUNDS}", file=sys.stderr)
                results[name].append(measure(folder, steps, cgroup))
        lines.extend(["", f"## {title}", ""])
        header = (
            "images",
            "µs per image, median",
            "range",
            "images/s",
            "data",
            "memory above imports",
            "without the data",
        )
        lines.extend([row(*header), row("---", *["---:"] * (len(header) - 1))])
        for name, rounds in results.items():
            times = [r["microseconds_a_picture"] for r in rounds]
            memory, size = max(r["memory_bytes"] for r in rounds), rounds[0]["data_bytes"]
            mib = [f"{x / 2**20:,.0f} MiB" for x in (size, memory, memory - size)]
            median = statistics.median(times)
            cells = (name, f"{median:.0f}", f"{min(times):.0f} to {max(times):.0f}", f"{1e6 / median:,.0f}", *mib)
            lines.append(row(*cells))
        return results

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as temporary, memory_limit(LIMIT) as cgroup:
        root = Path(temporary)
        cases: list[tuple[str, Path, int, Path | None]] = []
        for count in NUMBER_KEYS:
            repeat(root / f"{count}", count, 28)
            cases.append((f"{count:,} images of 28x28", root / f"{count}", 300, None))
        table("Number of images", cases)
        cases = []
        for size, count, steps in zip(SIZES, (20_000, 20_000, 4_000), (200, 60, 8), strict=True):
            repeat(root / f"side{size}", count, size)
            cases.append((f"{size}x{size}, {count:,} images", root / f"side{size}", steps, None))
        table("Size of images", cases)
        repeat(root / "large", LARGE, 28)
        mapped = f"mapped, within {LIMIT >> 20:,} MiB"
        cases = [("resident", root / "large", 600, None), (mapped, root / "large", 600, cgroup)]
        results = table("Larger than memory", cases)
        pairs = zip(results["resident"], results[mapped], strict=True)
        ratios = [a["microseconds_a_picture"] / b["microseconds_a_picture"] for a, b in pairs]
        assert all(r["mapped"] for r in results[mapped])
        assert not any(r["mapped"] for r in results["resident"])
        spread = f"median {statistics.median(ratios):.0%}, from {min(ratios):.0%} to {max(ratios):.0%}"
        lines.extend(["", f"Speed of mapped images as a share of the speed of resident images: {spread}."])

    text = f"""# How the cost of training scales

Command: `python benchmarks/scaling.py`, commit {commit[:12]}.
Hardware: {environment["hardware"]}; torch {environment["torch"]}; float32 unless the hardware has bfloat16.
The network `small`, batches of {RECIPE.batch_size}, flips and shifts, one seed, {ROUNDS} rounds, the rows of a table in turn, each in its own process.
Memory is the peak of the process minus what it used after its imports. Of memory-mapped images it includes the pages that were in memory.
{chr(10).join(lines)}
"""
    print(records.write_result("scaling", environment, text))
    print(text)


if __name__ == "__main__":
    records.run(main)
