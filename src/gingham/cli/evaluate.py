"""`gingham evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.cli.options import Device, Json, Model
from gingham.cli.output import format_times, print_json, print_message, try_draw
from gingham.cli.resolve import load_named_run, load_split, require_split
from gingham.errors import GinghamError, sentence

if TYPE_CHECKING:
    from gingham.runs.run import Run


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="A run folder; or packaged: the model that comes with Gingham, on the photographs of --data.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Other data than the run's own: a folder of photographs, one folder a class, or what train takes."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="validation (unless told) or test. Every look at test is written into the run."),
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run: accuracy, table by class, confusion."""
    require_split(split or "validation")
    from gingham.device import choose_device
    from gingham.evaluation.evaluate import evaluate as measure

    place = choose_device(device)
    loaded = load_named_run(run, model)
    packaged = loaded.folder is None
    loaded.model.to(place)
    photographs = data is not None and _are_photographs(data, loaded)
    if packaged and data is not None and not photographs:
        raise GinghamError(f"{data} is no folder of photographs; give --data FOLDER, with a folder of them for each class")
    if packaged and not photographs:
        raise GinghamError(
            "the packaged model is measured on photographs: give --data FOLDER, with a folder of them for each class"
        )
    unreadable = {}
    if data is not None and photographs:
        from gingham.inference.evaluate_photos import evaluate_photographs

        report, bad = evaluate_photographs(loaded, data, split)
        unreadable = {"unreadable": [one.to_dict() for one in bad]}
        for one in bad:
            print_message(f"left out: {one.error}")
    else:
        report = measure(loaded, load_split(loaded, run, data, split or "validation"))

    from gingham.plots import draw_confusion

    beside = Path() if packaged else run
    title = f"{report.accuracy:.2%} of {report.total:,} {report.pictures} right; each row in percent"
    matrix, classes = report.confusion.matrix, report.confusion.classes
    figure = try_draw(draw_confusion, matrix, classes, title, beside / f"confusion-{report.split}.png")
    if as_json:
        print_json({**report.to_dict(), **unreadable, "file": figure})
        return
    print(report.confusion)
    print()
    print(report)
    if report.split == "test":
        print(f"the test split has been opened {format_times(len(report.test_openings))} by this run")
    seconds = loaded.metrics.get("train_seconds")
    if isinstance(seconds, (int, float)):
        print(
            sentence(f"trained in {seconds:.1f} s (train_seconds) on {loaded.environment.get('hardware', 'unknown hardware')}")
        )
    print(f"figure: {figure or 'not written'}")


def _are_photographs(data: str, run: "Run") -> bool:
    """Whether `data` is a place of picture files other than the run's own, to be prepared as `predict` does."""
    from gingham.data.load_data import is_image_collection
    from gingham.data.registry import REGISTRY

    place = Path(data).resolve()
    return data not in REGISTRY and place.exists() and is_image_collection(place) and str(place) != run.data.get("name")
