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


SHOWN = 3  # classes named where the model is not sure; errors told in full
TOGETHER = 64  # pictures answered at a time: their steps take half a megabyte each


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files: PNG, JPEG, WEBP, BMP, GIF or TIFF.")],
    run: RunFolder = None,
    prepare: Annotated[
        str,
        typer.Option(
            help="auto prepares a picture as the model's dataset was made unless it has the model's own size and colours; photo "
            "always does; none only shrinks it."
        ),
    ] = "auto",
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Draw every step, what moved the decision, and the training pictures most like it: <image>-explained.png here.",
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
    from gingham.inference.predict import predict as answer

    loaded = load_run_or_packaged(run, model)
    if device != "auto":  # some pictures are answered on the CPU before a GPU has woken up
        from gingham.device import choose_device

        loaded.model.to(choose_device(device))
    train = load_training_images(loaded, run) if explain else None
    entries: list[dict[str, Any]] = []
    taken: set[Path] = set()
    for start in range(0, len(images), TOGETHER):
        for one in answer(loaded, images[start : start + TOGETHER], prepare):
            entry = one.to_dict()
            if explain and one.error is None:
                entry["file"] = _explained(one, loaded, train, out or Path(), taken)
            entries.append(entry)
            if not as_json and one.error is None:
                _print(one, entry.get("file"), notes=explain or len(images) <= SHOWN)
    if as_json:
        print_json(entries)
    errors = [entry["error"] for entry in entries if "error" in entry]
    if errors:
        of_them = f"{len(errors)} of {len(entries)} pictures were not answered: " if len(entries) > 1 else ""
        raise DataError(of_them + "; ".join(errors[:SHOWN]) + f"; and {len(errors) - SHOWN} more" * (len(errors) > SHOWN))


def _print(answer: "ImagePrediction", figure: str | None, *, notes: bool) -> None:
    assert answer.probabilities is not None
    assert answer.prepared is not None
    if answer.unsure:
        best = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])[:SHOWN]
        print(f"{answer.image}: not sure; " + ", ".join(f"{name} {share:.0%}" for name, share in best))
    else:
        print(f"{answer.image}: {answer.label} ({answer.confidence:.0%})")
    for note in answer.prepared.notes if notes else ():
        print(f"  {note}")
    if figure:
        print(f"  figure: {figure}")


def _explained(answer: "ImagePrediction", loaded: "Run", train: "Split | None", folder: Path, taken: set[Path]) -> str | None:
    """Draw why into a file named after the picture, or one beside it where two pictures have one name."""
    from gingham.inference.explain import explain

    folder.mkdir(parents=True, exist_ok=True)
    stem, number = Path(answer.image).stem, 1
    while (file := folder / f"{stem}-explained{f'-{number}' * (number > 1)}.png") in taken:
        number += 1
    taken.add(file)
    return try_draw(explain, loaded.model, answer, train, file)
