"""`gingham predict`."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import gingham
from gingham.cli.options import Device, Json, Model, RunFolder
from gingham.cli.output import print_message, print_result, try_draw
from gingham.cli.resolve import load_run_or_packaged, load_training_images
from gingham.errors import DataError, GinghamError, list_first

SHOWN = 3  # classes that are printed if the model is not sure; errors that are printed in full
GROUP_SIZE = 64  # images per call of the library: the steps of one take half a megabyte
PREPARE_HELP = (
    "auto prepares an image as the model's dataset was made, unless it has the model's own size and colours; "
    "photo always prepares it; none only resizes it."
)


def predict(
    images: Annotated[
        list[Path],
        Argument(metavar="IMAGE-OR-FOLDER...", help="PNG, JPEG, WEBP, BMP, GIF or TIFF files, or folders of them."),
    ],
    run: RunFolder = None,
    prepare: Annotated[str, Option(help=PREPARE_HELP)] = "auto",
    explain: Annotated[bool, Option("--explain", help="Draw the steps, the evidence and similar images.")] = False,
    out: Annotated[Path | None, Option(help="The folder for <image>-explained.png; default: this folder.")] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify your own images."""
    if out is not None and not explain:
        raise GinghamError("--out is for the figures of --explain; give both, or neither")
    # For a few images, the CPU is done before a GPU has started.
    trained = load_run_or_packaged(run, model, "cpu" if device == "auto" else device)
    train = load_training_images(trained, run) if explain else None
    images = [file for image in images for file in (_list_folder(image) if image.is_dir() else [image])]
    entries: list[dict[str, Any]] = []
    used: Counter[str] = Counter()
    for start in range(0, len(images), GROUP_SIZE):
        for prediction in gingham.predict(trained, images[start : start + GROUP_SIZE], prepare):
            entry = prediction.to_dict()
            if explain and prediction.error is None:
                from gingham.inference.explain import explain as draw_explanation

                file = _figure_file(out or Path(), prediction.image, used)
                entry["file"] = try_draw(draw_explanation, trained.model, prediction, train, file)
            entries.append(entry)
            if not as_json and prediction.error is None:
                _print(prediction, trained, entry.get("file"), notes=explain or len(images) <= SHOWN)
    if as_json:
        print_result(entries, "", as_json)
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        summary = f"no prediction for {len(errors)} of {len(entries)} images: " if len(entries) > 1 else ""
        raise DataError(summary + list_first(errors, SHOWN, "; "))


def _list_folder(folder: Path) -> list[Path]:
    """Return the image files in a folder in natural order; if there are none, the folder, which is then an error."""
    from gingham.data.decode import SUFFIXES
    from gingham.text import natural_key

    entries = [path for path in folder.iterdir() if path.name[0] != "."]
    # Figures of --explain are not photos.
    files = [path for path in entries if path.suffix.lower() in SUFFIXES and not path.stem.endswith("-explained")]
    if files and (skipped := len(entries) - len(files)):
        print_message(f"{skipped} of {len(entries)} files and folders in {folder} skipped: not photos by their names")
    return sorted(files, key=lambda path: natural_key(path.name)) or [folder]


def _print(prediction: "gingham.ImagePrediction", run: "gingham.Run", figure: str | None, *, notes: bool) -> None:
    if prediction.unsure:
        reason = f"below {run.model.threshold:.2f}" if run.model.threshold <= 1 else "this model is never sure"
        best = sorted((prediction.probabilities or {}).items(), key=lambda pair: -pair[1])[:SHOWN]
        print(f"{prediction.image}: not sure ({reason}); " + ", ".join(f"{name} {share:.0%}" for name, share in best))
    else:
        print(f"{prediction.image}: {prediction.label} ({prediction.confidence:.0%})")
    for note in prediction.prepared.notes if prediction.prepared and notes else ():
        print(f"  {note}")
    if figure:
        print(f"  figure: {figure}")


def _figure_file(folder: Path, image: str, used: Counter[str]) -> Path:
    """Return a file named after the image, with a number if several images have the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = Path(image).stem
    used[stem] += 1
    number = f"-{used[stem]}" if used[stem] > 1 else ""
    return folder / f"{stem}-explained{number}.png"
