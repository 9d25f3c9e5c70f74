"""`gingham report`."""

from pathlib import Path
from typing import Annotated

import typer

from gingham.cli.options import Json, Model
from gingham.cli.output import print_json
from gingham.cli.resolve import network_factory


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write; report.html in the run folder unless told.")
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a run's report: one HTML file that opens offline."""
    from gingham.evaluation.run_data import load_run_data
    from gingham.reports.html import write_report
    from gingham.runs.run import load

    trained = load(run, network_factory(model))
    splits = load_run_data(trained, run)
    file = write_report(trained, splits.train, splits.validation, splits.test, out or run / "report.html")
    if as_json:
        print_json({"file": str(file), "bytes": file.stat().st_size})
    else:
        print(f"report: {file} ({file.stat().st_size / 1e6:.2f} MB); open it in a browser")
