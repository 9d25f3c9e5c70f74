"""`gingham report`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, Model
from gingham.cli.output import print_result
from gingham.cli.resolve import network_factory


def report(
    run: Annotated[Path, Argument(help="A run folder.")],
    out: Annotated[Path | None, Option(help="The HTML file; by default report.html in the run folder.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file that opens offline."""
    from gingham.evaluation.run_data import load_run_data

    trained = gingham.load(run, network_factory(model))
    splits = load_run_data(trained, run)
    file = gingham.write_report(trained, splits.train, splits.validation, splits.test, out or run / "report.html")
    size = file.stat().st_size
    text = f"report: {file} ({size / 1e6:.2f} MB); open it in a browser"
    print_result({"file": str(file), "bytes": size}, text, as_json)
