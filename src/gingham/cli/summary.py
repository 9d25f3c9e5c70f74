"""`gingham summary`."""

from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, Model
from gingham.cli.output import print_result
from gingham.cli.resolve import find_network
from gingham.errors import GinghamError


def summary(
    model: Annotated[str, Argument(help="A network, a run, packaged, timm/NAME, torchvision:NAME or module:Class.")],
    input_shape: Annotated[str | None, Option("--input", metavar="CxHxW", help="By default the model's own.")] = None,
    explain: Annotated[str | None, Option(metavar="LAYER", help="The arithmetic of this layer, or of 'all'.")] = None,
    model_class: Model = None,
    as_json: Json = False,
) -> None:
    """Print a network's layers and receptive fields."""
    shape = None if input_shape is None else _parse_shape(input_shape)
    network, default_shape = find_network(model, shape, model_class)
    result = gingham.summarize(network, shape or default_shape, model)
    if explain is None:
        print_result(result.to_dict(), result, as_json)
    else:
        explanation = result.explain(explain)
        print_result({**result.to_dict(), "explanation": explanation}, explanation, as_json)


def _parse_shape(text: str) -> tuple[int, int, int]:
    try:
        channels, height, width = (int(part) for part in text.lower().split("x"))
        if 1 <= channels <= 1024 and 1 <= height <= 8192 and 1 <= width <= 8192:
            return channels, height, width
    except ValueError:
        pass
    raise GinghamError(f"--input got {text!r}; write CHANNELSxHEIGHTxWIDTH, such as 1x28x28 or 3x224x224")
