"""Write predictions to files: a table, and copies of the images sorted into a folder for each class."""

import contextlib
import csv
import filecmp
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gingham.errors import GinghamError
from gingham.inference.predict import ImagePrediction
from gingham.io import atomic_write, is_run_folder

UNSURE, NOVEL, UNREADABLE = "unsure", "novel", "unreadable"  # folders beside those of the classes
# Names that Windows does not allow, so that the folders can be copied to any system.
UNSAFE_CHARACTERS = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
RESERVED_NAMES = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)")


@contextlib.contextmanager
def prediction_table(file: Path, classes: Sequence[str]) -> Iterator[Callable[[ImagePrediction], None]]:
    """Yield a function that adds a prediction to a `.csv` file; the file is there when the block succeeds.

    The columns are `image`, `label`, `confidence`, `unsure` and `novel` (true or false), `probability_<class>` for each
    class, and `error`, the reason why an image cannot be read. The columns that do not apply to a row are empty.

    Raises
        GinghamError: the file exists or cannot be written.
    """
    if os.path.lexists(file):
        raise GinghamError(f"{file} already exists; give another file, or remove it first")
    # File names may be invalid UTF-8, which is written as escapes.
    with atomic_write(file) as temporary, temporary.open("w", -1, "utf-8", "backslashreplace", "") as stream:
        write = csv.writer(stream, lineterminator="\n").writerow
        write(
            ["image", "label", "confidence", "unsure", "novel", *(f"probability_{name}" for name in classes), "error"]
        )

        def add(prediction: ImagePrediction) -> None:
            if prediction.probabilities is None:
                write([prediction.image, *[""] * (4 + len(classes)), prediction.error])
            else:
                shares = [f"{share:.6g}" for share in (prediction.confidence, *prediction.probabilities.values())]
                flags = [str(flag).lower() for flag in (prediction.unsure, prediction.novel)]
                write([prediction.image, prediction.label, shares[0], *flags, *shares[1:], ""])

        yield add


class ImageSorter:
    """Copies each image into the folder of its class in `folder`; novel, unsure and unreadable ones are kept apart.

    A file that is there already with the same content is not copied again, and no file is overwritten: names that
    collide get a number. The copies keep the modification time.

    Raises
        GinghamError: `folder` is one of the `inputs` or inside one, is a run folder, or cannot be written to.
    """

    def __init__(self, folder: Path, classes: Sequence[str], inputs: Sequence[Path]) -> None:
        if is_run_folder(folder) or any(p.is_dir() and folder.resolve().is_relative_to(p.resolve()) for p in inputs):
            raise GinghamError(
                f"--sort-into {folder} is a run folder or in a folder of the images; give another folder"
            )
        self.folder, self.names = folder, dict(zip(classes, folder_names(classes), strict=True))
        self.sources: dict[Path, str] = {}  # the image behind each file that is there
        self.counts = {"copied": 0, "already there": 0, "not copied": 0}

    def add(self, prediction: ImagePrediction) -> None:
        """Copy the image of a prediction, unless its file is missing or cannot be opened."""
        source = Path(prediction.image)
        flags = {UNREADABLE: prediction.error is not None, NOVEL: prediction.novel, UNSURE: prediction.unsure}
        folder = self.folder / next(
            (name for name, flag in flags.items() if flag), self.names.get(prediction.label, "")
        )
        if not (os.path.isfile(source) and os.access(source, os.R_OK)):  # noqa: PTH113  # no error for a long name
            self.counts["not copied"] += 1
            return
        for number in _numbers():
            target = folder / f"{source.stem}{number}{source.suffix}"
            if self.sources.get(target, prediction.image) != prediction.image:
                continue  # an image of this run; its copy is kept even if both are the same
            is_present = os.path.lexists(target)
            if is_present and not (target.is_file() and filecmp.cmp(source, target, shallow=False)):
                continue
            self.sources[target] = prediction.image
            self.counts["already there" if is_present else "copied"] += 1
            if not is_present:
                with atomic_write(target) as temporary:
                    shutil.copy2(source, temporary)
            return

    def __str__(self) -> str:
        counts = [f"{number:,} {outcome}" for outcome, number in self.counts.items() if number]
        return f"sorted into {self.folder}: {', '.join(counts)}"


def folder_names(classes: Sequence[str]) -> list[str]:
    """Return a folder name for each class: valid on any system, and different also without regard to case.

    >>> folder_names(["T-shirt/top", "t-shirt:top", "unsure", "con"])
    ['T-shirt-top', 't-shirt-top-2', 'unsure-2', 'con-']
    """
    used, names = {UNSURE, NOVEL, UNREADABLE}, []
    for name in classes:
        short = UNSAFE_CHARACTERS.sub("-", name).encode()[:200].decode(errors="ignore")
        safe = RESERVED_NAMES.sub(r"\1-", short.strip(" .") or "class")
        names.append(next(safe + number for number in _numbers() if (safe + number).casefold() not in used))
        used.add(names[-1].casefold())
    return names


def _numbers() -> Iterator[str]:
    """Return the endings of names that collide: none, -2, -3, ..."""
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
