"""`gingham evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.cli.options import Device, Json, Model
from gingham.cli.output import format_times, print_json, print_message, try_draw
from gingham.cli.resolve import load_named_run, load_split, require_split
from gingham.errors import GinghamError, format_message

if TYPE_CHECKING:
    from gingham.runs.run import Run


def evaluate(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run folder; or packaged: the model that comes with Gingham, on the photographs of --data."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data than the run's own: a folder of photographs, one folder a class, or what train takes."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="validation (unless told) or test. Every look at test is written into the run.")
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run: accuracy, table by class, confusion."""
    require_split(split or "validation")
    from gingham.device import choose_device
    from gingham.evaluation.evaluate import evaluate as evaluate_run

    torch_device = choose_device(device)
    trained = load_named_run(run, model)
    packaged = trained.folder is None
    trained.model.to(torch_device)
    is_photos = data is not None and _is_photo_collection(data, trained)
    if packaged and data is not None and not is_photos:
        raise GinghamError(
            f"{data} is no folder of photographs; give --data FOLDER, with a folder of them for each class"
        )
    if packaged and not is_photos:
        raise GinghamError(
            "the packaged model is measured on photographs: give --data FOLDER, with a folder of them for each class"
        )
    unreadable_json = {}
    if data is not None and is_photos:
        from gingham.inference.evaluate_photos import evaluate_photographs

        result, unreadable = evaluate_photographs(trained, data, split)
        unreadable_json = {"unreadable": [prediction.to_dict() for prediction in unreadable]}
        for prediction in unreadable:
            print_message(f"left out: {prediction.error}")
    else:
        result = evaluate_run(trained, load_split(trained, run, data, split or "validation"))

    from gingham.plots import draw_confusion

    folder = Path() if packaged else run
    title = f"{result.accuracy:.2%} of {result.total:,} {result.image_noun} right; each row in percent"
    matrix, classes = result.confusion.matrix, result.confusion.classes
    figure = try_draw(draw_confusion, matrix, classes, title, folder / f"confusion-{result.split}.png")
    if as_json:
        print_json({**result.to_dict(), **unreadable_json, "file": figure})
        return
    print(result.confusion)
    print()
    print(result)
    if result.split == "test":
        print(f"the test split has been opened {format_times(len(result.test_openings))} by this run")
    seconds = trained.metrics.get("train_seconds")
    if isinstance(seconds, (int, float)):
        print(
            format_message(
                f"trained in {seconds:.1f} s (train_seconds) on "
                f"{trained.environment.get('hardware', 'unknown hardware')}"
            )
        )
    print(f"figure: {figure or 'not written'}")


def _is_photo_collection(data: str, trained: "Run") -> bool:
    """Return whether `data` is a folder or table of image files other than the run's own, to be prepared as `predict` does."""
    from gingham.data.load_data import is_image_collection
    from gingham.data.registry import REGISTRY

    path = Path(data).resolve()
    return (
        data not in REGISTRY and path.exists() and is_image_collection(path) and str(path) != trained.data.get("name")
    )
