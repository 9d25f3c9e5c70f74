"""The commands that use a model on one's own pictures: predict."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.errors import DataError, GinghamError
from gingham.terminal import Device, Json, Model, data_of, factory_of, print_json, say

if TYPE_CHECKING:
    from gingham.prediction import Answer
    from gingham.storage import Run

SHOWN = 3  # classes named where the model is not sure


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files: PNG, JPEG, WEBP, BMP, GIF or TIFF.")],
    run: Annotated[Path | None, typer.Option(help="A run folder; the model that comes in the package unless told.")] = None,
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
    if model is not None and run is None:
        raise GinghamError("--model is for a run of your own network; give --run too")
    from gingham.prediction import load_packaged
    from gingham.prediction import predict as answer
    from gingham.storage import load

    loaded = load_packaged() if run is None else load(run, factory_of(model))
    if device != "auto":  # some pictures are answered on the CPU before a GPU has woken up
        from gingham.training import choose_device

        loaded.model.to(choose_device(device))
    answers = answer(loaded, images, prepare)
    figures = _explained(answers, loaded, run, out or Path()) if explain else {}
    if as_json:
        print_json([one.to_dict() | ({"file": figures[k]} if k in figures else {}) for k, one in enumerate(answers)])
    else:
        for k, one in enumerate(answers):
            _print(one, figures.get(k), notes=explain or len(answers) <= SHOWN)
    errors = [one.error for one in answers if one.error is not None]
    if errors:
        of_them = f"{len(errors)} of {len(answers)} pictures were not answered: " if len(answers) > 1 else ""
        raise DataError(of_them + "; ".join(errors[:SHOWN]) + (f"; and {len(errors) - SHOWN} more" * (len(errors) > SHOWN)))


def _print(answer: "Answer", figure: str | None, *, notes: bool) -> None:
    if answer.probabilities is None or answer.prepared is None:
        return  # the errors come together at the end
    best = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
    if answer.unsure:
        print(f"{answer.image}: not sure; " + ", ".join(f"{name} {share:.0%}" for name, share in best[:SHOWN]))
    else:
        print(f"{answer.image}: {answer.label} ({answer.confidence:.0%})")
    if notes:
        for note in answer.prepared.notes:
            print(f"  {note}")
    if figure:
        print(f"  figure: {figure}")


def _explained(answers: "list[Answer]", loaded: "Run", run: Path | None, out: Path) -> dict[int, str]:
    from gingham.explanation import explain
    from gingham.published import NAMED, locate

    train = None
    name = loaded.data.get("name")
    if name not in NAMED or locate(name) is not None:  # nothing is downloaded for a drawing
        try:
            train = data_of(loaded, run or Path("the packaged model")).train
        except GinghamError as error:
            say(f"gingham: without the nearest training pictures: {error}")
    else:
        say(f"gingham: without the nearest training pictures: {name} is not on this machine (gingham show {name} gets it)")
    out.mkdir(parents=True, exist_ok=True)
    files: dict[int, str] = {}
    for k, one in enumerate(answers):
        if one.error is None:
            stem = Path(one.image).stem
            taken = set(files.values())
            file = out / f"{stem}-explained.png"
            number = 2
            while str(file) in taken:
                file, number = out / f"{stem}-explained-{number}.png", number + 1
            files[k] = str(explain(loaded.model, one, train, file))
    if sys.stderr.isatty() and len(files) > SHOWN:
        say(f"{len(files)} figures drawn")
    return files
