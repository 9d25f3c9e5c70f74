"""`gingham evaluate`."""

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

import gingham
from gingham.cli.options import Device, Json, Model, SplitName
from gingham.cli.output import print_message, print_result, try_draw
from gingham.cli.resolve import load_run_or_packaged, load_split
from gingham.errors import DataError, GinghamError, format_message


def evaluate(
    run: Annotated[Path, Argument(help="A run folder; or packaged: Gingham's own model, on photos (--data).")],
    data: Annotated[str | None, Option(help="Other data: a folder of photos by class, or data as for train.")] = None,
    split: Annotated[SplitName | None, Option(help="By default validation. Each use of test is recorded.")] = None,
    novel: Annotated[
        Path | None, Option(metavar="FOLDER", help="Images of other things: how many are noticed?")
    ] = None,
    model: Model = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run: accuracy, table by class, confusion matrix."""
    if novel is not None and (data is not None or split is not None):
        option = "--split" if data is None else "--data"
        raise GinghamError(f"--novel compares with the run's own images; leave {option} out")
    trained = load_run_or_packaged(run, model, device)
    if novel is not None:
        _evaluate_novel(trained, run, novel, as_json)
        return
    is_packaged = trained.folder is None
    unreadable_json: dict[str, Any] = {}
    if data and _is_photo_collection(data, trained):
        result, unreadable = gingham.evaluate_photographs(trained, data, split)
        unreadable_json["unreadable"] = [prediction.to_dict() for prediction in unreadable]
        for prediction in unreadable:
            print_message(f"left out: {prediction.error}")
    elif is_packaged:
        reason = f"{data} is not a folder of photos" if data else "the packaged model is evaluated on photos"
        raise GinghamError(f"{reason}; give --data FOLDER, with a folder of photos for each class")
    else:
        result = gingham.evaluate(trained, load_split(trained, run, data, split or "validation"))
    file = (Path() if is_packaged else run) / f"confusion-{result.split}.png"
    figure = try_draw(result.plot, file)
    values = {**result.to_dict(), **unreadable_json, "file": figure}
    print_result(values, _format_result(result, trained, figure), as_json)


def _evaluate_novel(trained: "gingham.Run", run: Path, folder: Path, as_json: bool) -> None:
    from gingham.cli.predict import list_files
    from gingham.evaluation.run_data import load_run_data
    from gingham.inference.evaluate_photos import evaluate_novel

    if not os.path.exists(folder):  # noqa: PTH110  # no error for a name that is too long
        raise DataError(f"there is no folder {folder}; give one with images of other things")
    data = load_run_data(trained)
    result, unreadable = evaluate_novel(trained, list_files([folder]), data.validation or data.train)
    for prediction in unreadable:
        print_message(f"left out: {prediction.error}")
    print_result(asdict(result), str(result), as_json)


def _is_photo_collection(data: str, trained: "gingham.Run") -> bool:
    """Return whether `data` is a folder or table of photos, which are prepared as by `predict`, and not the run's data.

    A copy of the run's data counts as the run's data, so that a use of its test split is recorded.
    """
    from gingham.data.load_data import is_image_collection
    from gingham.data.registry import REGISTRY
    from gingham.evaluation.run_data import load_run_data

    path, name = Path(data).resolve(), trained.data.get("name")
    if data in REGISTRY or str(path) == name or not is_image_collection(path):
        return False
    with contextlib.suppress(GinghamError):  # too few photos for a dataset are not an error
        return name in REGISTRY or load_run_data(trained, name=str(path)).fingerprint != trained.data.get("fingerprint")
    return True


def _format_result(result: "gingham.EvaluationResult", trained: "gingham.Run", figure: str | None) -> str:
    lines = [f"{result.confusion}\n\n{result}"]
    if result.split == "test":
        count = len(result.test_openings)
        lines.append(f"the test split has been used {'once' if count == 1 else f'{count} times'} by this run")
    seconds = trained.metrics.get("train_seconds")
    if seconds is not None:
        hardware = trained.environment.get("hardware", "unknown hardware")
        lines.append(format_message(f"trained in {seconds:.1f} s (train_seconds) on {hardware}"))
    lines.append(f"figure: {figure or 'not written'}")
    return "\n".join(lines)
