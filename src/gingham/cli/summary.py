"""`gingham summary`."""

from typing import Annotated

import typer

from gingham.cli.options import Json
from gingham.cli.output import print_json
from gingham.cli.resolve import network_factory
from gingham.errors import GinghamError


def summary(
    model: Annotated[
        str, typer.Argument(help="A network's name, a run folder, torchvision:NAME or package.module:Class.")
    ],
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="CxHxW", help="1x28x28, or what the model is for.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option(metavar="LAYER", help="Work one layer's numbers through; all for every one.")
    ] = None,
    model_class: Annotated[
        str | None,
        typer.Option("--model", metavar="package.module:Class", help="The class of a run of your own network."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers and receptive fields."""
    shape = None if input_shape is None else _parse_shape(input_shape)
    from gingham.cli.resolve import find_network
    from gingham.models.summary import summarize

    network, default = find_network(model, shape, network_factory(model_class))
    result = summarize(network, shape or default, model)
    explained = None if explain is None else result.explain(explain)
    if as_json:
        print_json({**result.to_dict(), **({} if explained is None else {"explanation": explained})})
    else:
        print(result if explained is None else explained)


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        channels = height = width = 0
    if not (1 <= channels <= 1024 and 1 <= height <= 8192 and 1 <= width <= 8192):
        raise GinghamError(f"--input got {text!r}; write CHANNELSxHEIGHTxWIDTH, such as 1x28x28 or 3x224x224")
    return channels, height, width
