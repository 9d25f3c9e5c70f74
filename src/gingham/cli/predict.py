"""`gingham predict`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gingham.cli.options import Device, Json, Model, RunFolder
from gingham.cli.output import print_json, try_draw
from gingham.cli.resolve import load_run_or_packaged, load_training_images
from gingham.errors import DataError, GinghamError

if TYPE_CHECKING:
    from gingham.data.splits import Split
    from gingham.inference.predict import ImagePrediction
    from gingham.runs.run import Run


SHOWN = 3  # classes that are printed if the model is not sure; errors that are printed in full
GROUP_SIZE = 64  # images per call of the library: the steps of one take half a megabyte


def predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Picture files: PNG, JPEG, WEBP, BMP, GIF or TIFF.")
    ],
    run: RunFolder = None,
    prepare: Annotated[
        str,
        typer.Option(
            help="auto prepares a picture as the model's dataset was made unless it has the model's own size and "
            "colours; photo always does; none only shrinks it."
        ),
    ] = "auto",
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Draw every step, what moved the decision, and the training pictures most like it: "
            "<image>-explained.png here.",
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --explain: the folder to draw into.")] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name what is in your own pictures."""
    if out is not None and not explain:
        raise GinghamError("--out is for the figures of --explain; give both, or neither")
    from gingham.inference.predict import predict as predict_images

    trained = load_run_or_packaged(run, model)
    if device != "auto":  # the CPU predicts a few images before a GPU has started
        from gingham.device import choose_device

        trained.model.to(choose_device(device))
    train = load_training_images(trained, run) if explain else None
    entries: list[dict[str, Any]] = []
    used: set[Path] = set()
    for start in range(0, len(images), GROUP_SIZE):
        for prediction in predict_images(trained, images[start : start + GROUP_SIZE], prepare):
            entry = prediction.to_dict()
            if explain and prediction.error is None:
                entry["file"] = _explain(prediction, trained, train, out or Path(), used)
            entries.append(entry)
            if not as_json and prediction.error is None:
                _print(prediction, entry.get("file"), notes=explain or len(images) <= SHOWN)
    if as_json:
        print_json(entries)
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        summary = f"{len(errors)} of {len(entries)} pictures were not answered: " if len(entries) > 1 else ""
        raise DataError(
            summary + "; ".join(errors[:SHOWN]) + f"; and {len(errors) - SHOWN} more" * (len(errors) > SHOWN)
        )


def _print(prediction: "ImagePrediction", figure: str | None, *, notes: bool) -> None:
    assert prediction.probabilities is not None
    assert prediction.prepared is not None
    if prediction.unsure:
        best = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])[:SHOWN]
        print(f"{prediction.image}: not sure; " + ", ".join(f"{name} {share:.0%}" for name, share in best))
    else:
        print(f"{prediction.image}: {prediction.label} ({prediction.confidence:.0%})")
    for note in prediction.prepared.notes if notes else ():
        print(f"  {note}")
    if figure:
        print(f"  figure: {figure}")


def _explain(
    prediction: "ImagePrediction", trained: "Run", train: "Split | None", folder: Path, used: set[Path]
) -> str | None:
    """Draw an explanation into a file named after the image, with a number if several images have the same name."""
    from gingham.inference.explain import explain

    folder.mkdir(parents=True, exist_ok=True)
    stem, number = Path(prediction.image).stem, 1
    while (file := folder / f"{stem}-explained{f'-{number}' * (number > 1)}.png") in used:
        number += 1
    used.add(file)
    return try_draw(explain, trained.model, prediction, train, file)
