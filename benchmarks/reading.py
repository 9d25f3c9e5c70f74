"""Measure the time to read a folder of images by stage, and the least that its decoding could take.

    python benchmarks/reading.py                        # Fashion-MNIST as 70,000 PNG files, in a temporary folder
    python benchmarks/reading.py --images 10000
    python benchmarks/reading.py --folder my-images     # a folder of class folders
    PYTHONPATH=other/src python benchmarks/reading.py   # another version of Gingham

The stages take turns; the fastest of several rounds counts, in wall and CPU seconds. The CPU time of all threads shows
whether they waited for each other. Files are in the page cache after the first round. Gingham's own cache is emptied
before the stage `load_data`. The last rows read or decode the same files in a single thread, with nothing else done;
OpenCV and torchvision are not used by Gingham, because they do not read all formats of Pillow with the same values.
"""

import argparse
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_image

import gingham
import records
from gingham.data.decode import common_side, decode_images, read_size
from gingham.data.image_files import list_images
from gingham.errors import DataError


def write_images(folder: Path, count: int) -> None:
    """Write the first images of Fashion-MNIST as PNG files in class folders, in train and test folders."""
    data = gingham.load_data("fashion-mnist", validation=0)
    if data.test is None:
        raise DataError("this Fashion-MNIST has no test split")
    for split in (data.train, data.test):
        part = split.images[: count * len(split) // 70_000]
        for k, (image, label) in enumerate(zip(part, split.labels.tolist(), strict=False)):
            file = folder / split.name / f"class {label}" / f"{k:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(file)


def in_one_thread(files: list[Path], decode: Callable[[bytes], object]) -> None:
    for file in files:
        with open(file, "rb", buffering=0) as stream:  # noqa: PTH123  # faster than Path.read_bytes
            decode(stream.read())


def load_uncached(folder: Path, cache: Path) -> None:
    shutil.rmtree(cache)
    gingham.load_data(str(folder))


def stages(folder: Path, cache: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    files = [entry.path for entry in list_images(folder).entries]
    side = common_side(list(map(read_size, files[::100])))
    images = np.zeros((len(files), 3, side, side), np.uint8)
    yield "list the files", lambda: list_images(folder)
    yield f"decode to {side}x{side}", lambda: decode_images(files, images, "decoding")
    yield "load_data, nothing cached", lambda: load_uncached(folder, cache)
    yield "load_data, cached", lambda: gingham.load_data(str(folder))
    yield "floor: read the files", lambda: in_one_thread(files, len)
    yield "floor: Pillow", lambda: in_one_thread(files, lambda data: np.asarray(Image.open(io.BytesIO(data))))
    as_array = cv2.IMREAD_UNCHANGED
    yield "OpenCV", lambda: in_one_thread(files, lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), as_array))
    yield (
        "torchvision",
        lambda: in_one_thread(files, lambda data: decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8))),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=70_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=records.positive, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary, "images")
        if not options.folder:
            write_images(folder, options.images)
        cache = Path(temporary, "cache")
        os.environ["XDG_CACHE_HOME"] = str(cache)  # Linux only
        gingham.load_data(str(folder))
        times: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for name, run in stages(folder, cache):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                times.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
        print(f"| {folder.name} | wall seconds | CPU seconds |\n| --- | --- | --- |")
        for name, rounds in times.items():
            print(f"| {name} | {min(wall for wall, _ in rounds):.2f} | {min(cpu for _, cpu in rounds):.2f} |")


if __name__ == "__main__":
    records.run(main)
