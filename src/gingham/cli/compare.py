"""`gingham compare`."""

from pathlib import Path
from typing import Annotated

import typer

from gingham.cli.options import Json, SplitOption
from gingham.cli.output import print_json
from gingham.cli.resolve import load_split, require_split


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder, or a folder of trials.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, of the same kind.")],
    split: SplitOption = "validation",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="package.module:Class", help="A network of your own that they are of; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether one of two is better, by a paired test."""
    require_split(split)
    from gingham.experiments.compare import compare as run_compare
    from gingham.models.registry import import_network

    networks = [import_network(name) for name in model or []]
    comparison = run_compare(
        a, b, lambda trained: load_split(trained, trained.folder or a, None, split), networks=networks
    )
    if as_json:
        print_json(comparison.to_dict())
    else:
        print(comparison)
