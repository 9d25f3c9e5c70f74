"""`gingham report`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, Model
from gingham.cli.output import print_result
from gingham.cli.resolve import load_run_or_packaged


def report(
    run: Annotated[Path, Argument(help="A run folder; or packaged: Gingham's own model.")],
    out: Annotated[Path | None, Option(help="The HTML file; by default report.html in the run folder.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file that opens offline."""
    from gingham.evaluation.run_data import load_run_data

    trained = load_run_or_packaged(run, model)
    splits = load_run_data(trained, run)
    file = out or (run if trained.folder else Path()) / "report.html"
    gingham.write_report(trained, splits.train, splits.validation, splits.test, file)
    size = file.stat().st_size
    text = f"report: {file} ({size / 1e6:.2f} MB); open it in a browser"
    print_result({"file": str(file), "bytes": size}, text, as_json)
