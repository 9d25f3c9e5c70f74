"""`gingham compare`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import MODEL_FORM, Json, Split
from gingham.cli.output import print_result
from gingham.cli.resolve import load_split

MODEL_HELP = "The class of a network of your own; may be repeated."


def compare(
    a: Annotated[Path, Argument(metavar="A", help="A run folder, or a folder of trials.")],
    b: Annotated[Path, Argument(metavar="B", help="Another one of the same kind.")],
    split: Split = "validation",
    model: Annotated[list[str] | None, Option(metavar=MODEL_FORM, help=MODEL_HELP)] = None,
    as_json: Json = False,
) -> None:
    """Compare two runs or sets of trials with a paired test."""
    from gingham.models.registry import import_network

    networks = [import_network(name) for name in model or []]
    result = gingham.compare(a, b, lambda run: load_split(run, run.folder or a, None, split), networks=networks)
    print_result(result.to_dict(), result, as_json)
