"""`gingham predict`."""

import contextlib
import functools
import itertools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from typer import Option

import gingham
from gingham.cli.options import Device, Images, Json, Model, RunFolder
from gingham.cli.output import format_json, print_message, try_draw
from gingham.cli.resolve import load_run_or_packaged, load_training_images
from gingham.errors import DataError, GinghamError, format_message, list_first
from gingham.io import is_run_folder

SHOWN = 3  # classes that are printed if the model is not sure; errors that are printed in full
GROUP_SIZE = 64  # images per call of the library: the steps of one take half a megabyte
PREPARE_HELP = (
    "auto prepares an image as the model's dataset was made, unless it has the model's own size and colours; "
    "photo always prepares it; none only resizes it."
)
CSV_HELP = "Also write a new table: image, label, confidence, unsure, novel, the probability of each class, error."
SORT_HELP = (
    "Copy the images into FOLDER/<label>, FOLDER/unsure, FOLDER/novel and FOLDER/unreadable. "
    "Nothing is moved or overwritten."
)


def predict(
    images: Images,
    run: RunFolder = None,
    prepare: Annotated[str, Option(help=PREPARE_HELP)] = "auto",
    explain: Annotated[bool, Option("--explain", help="Draw the steps, the evidence and similar images.")] = False,
    out: Annotated[Path | None, Option(help="The folder for <image>-explained.png; default: this folder.")] = None,
    table: Annotated[Path | None, Option("--csv", metavar="FILE", help=CSV_HELP)] = None,
    sort_into: Annotated[Path | None, Option(metavar="FOLDER", help=SORT_HELP)] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify your own images."""
    if out is not None and not explain:
        raise GinghamError("--out is for the figures of --explain; give both, or neither")
    from gingham.inference.prediction_files import ImageSorter, prediction_table

    # For a few images, the CPU is done before a GPU has started.
    trained = load_run_or_packaged(run, model, "cpu" if device == "auto" else device)
    train = load_training_images(trained, run) if explain else None
    files = list_files(images)
    errors: list[str] = []
    used: Counter[str] = Counter()
    sorter = ImageSorter(sort_into, trained.model.classes, images) if sort_into else None
    with prediction_table(table, trained.model.classes) if table else contextlib.nullcontext() as add_row:
        groups = (files[start : start + GROUP_SIZE] for start in range(0, len(files), GROUP_SIZE))
        predictions = itertools.chain.from_iterable(gingham.predict(trained, group, prepare) for group in groups)
        disable = None if len(files) > GROUP_SIZE else True  # None shows a progress bar on a terminal only
        bar = tqdm(predictions, total=len(files), unit=" images", disable=disable, leave=False)
        for number, prediction in enumerate(bar):
            entry = prediction.to_dict()
            if prediction.error is not None:
                errors.append(prediction.error)
            elif explain:
                from gingham.inference.explain import explain as draw_explanation

                file = _figure_file(out or Path(), prediction.image, used)
                entry["file"] = try_draw(functools.partial(draw_explanation, trained.model, prediction, train), file)
            if add_row:
                add_row(prediction)
            if sorter:
                sorter.add(prediction)
            if as_json:  # one list, entry by entry, because thousands of them take much memory
                print("[" if number == 0 else ", ", format_json(entry), sep="", end="")
            elif prediction.error is None:
                _print(prediction, entry.get("file"), notes=explain or len(files) <= SHOWN)
        if as_json:
            print("]")
    for note in filter(None, (sorter, table and f"table: {table}")):
        print_message(format_message(str(note)))
    if errors:
        summary = f"no prediction for {len(errors)} of {len(files)} images: " if len(files) > 1 else ""
        raise DataError(summary + list_first(errors, SHOWN, "; "))


def list_files(images: Iterable[Path]) -> list[Path]:
    """Return image files, with each folder replaced by the image files in it."""
    return [file for image in images for file in (_list_folder(image) if image.is_dir() else [image])]


def _list_folder(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, in natural order, without those of runs.

    If there are none, return the folder, which is then an error.
    """
    from gingham.data.image_folder import is_image_name, walk_files
    from gingham.text import natural_key

    if is_run_folder(folder):
        raise DataError(f"{folder} is a run folder, not a folder of images; to predict with it, give --run {folder}")
    found = list(walk_files(folder, skip=is_run_folder))
    # Figures of --explain are not photos.
    files = [path for path in found if is_image_name(path) and not path.stem.endswith("-explained")]
    if files and (skipped := len(found) - len(files)):
        print_message(f"{skipped} of {len(found)} files in {folder} skipped: not photos by their names")
    return sorted(files, key=lambda path: [natural_key(part) for part in path.parts]) or [folder]


def _print(prediction: "gingham.ImagePrediction", figure: str | None, *, notes: bool) -> None:
    write = tqdm.write  # beside the progress bar
    write(str(prediction))
    for note in prediction.prepared.notes if prediction.prepared and notes else ():
        write(f"  {note}")
    if figure:
        write(f"  figure: {figure}")


def _figure_file(folder: Path, image: str, used: Counter[str]) -> Path:
    """Return a file named after the image, with a number if several images have the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(image).stem
    used[stem] += 1
    number = f"-{used[stem]}" if used[stem] > 1 else ""
    return folder / f"{stem}-explained{number}.png"
