"""`gingham export`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, Model, RunFolder
from gingham.cli.output import print_result
from gingham.cli.resolve import load_run_or_packaged

FILE_HELP = "What to write: FILE.onnx, or FILE.html for a page that answers by itself."
DATA_HELP = "Other pictures to compare the answers on, where those of the run are not at hand."
INT8_HELP = "Weights and activations of 8 bits: smaller and faster, and what it costs is said."
NEIGHBOURS_HELP = (
    "With FILE.html: how many training images the page holds, to show those most like yours; by default 2000."
)


def export(
    file: Annotated[Path, Argument(metavar="FILE", help=FILE_HELP)],
    run: RunFolder = None,
    data: Annotated[str | None, Option(help=DATA_HELP)] = None,
    int8: Annotated[bool, Option("--int8", help=INT8_HELP)] = False,
    neighbours: Annotated[int | None, Option(min=0, help=NEIGHBOURS_HELP)] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file that answers the same without Gingham: ONNX, or a page for a browser."""
    from gingham.deploy.export import require_exportable
    from gingham.evaluation.run_data import load_run_data

    require_exportable(file, int8=int8, neighbours=neighbours)  # before the slow part
    trained = load_run_or_packaged(run, model)
    result = gingham.export(trained, file, load_run_data(trained, run, data), int8=int8, neighbours=neighbours)
    print_result(result.to_dict(), _format_result(result, trained), as_json)


def _format_result(result: "gingham.ExportResult", trained: "gingham.Run") -> str:
    written = f"{result.file}: {result.bytes / 1e6:.2f} MB"
    if result.neighbours is None:
        shape, outputs = ", ".join(map(str, trained.model.input_shape)), len(trained.model.classes)
        lines = [f"{written}, opset {result.opset}; uint8 pictures (N, {shape}) in, {outputs} probabilities out"]
    else:
        lines = [
            f"{written}; open it in a browser, on a phone too: it needs no network, and sends nothing anywhere",
            f"inside: the model, ONNX Runtime and OpenCV for browsers, {result.neighbours:,} training pictures",
        ]
    share = f"{round(result.agreement * result.pictures):,} of {result.pictures:,} {result.split} pictures"
    lines.append(f"answers {share} as the model does, probabilities within {result.max_difference:.1g}")
    if result.accuracy is not None and result.accuracy_int8 is not None and result.interval is not None:
        low, high = (100 * end for end in result.interval)
        cost = f"{100 * (result.accuracy - result.accuracy_int8):.2f} points of accuracy"
        accuracies = f"{result.accuracy_int8:.2%} in place of {result.accuracy:.2%}"
        measured = f"{result.measured:,} {result.split} pictures"
        lines.append(f"8 bits cost {cost} (95 % interval {low:.2f} to {high:.2f}): {accuracies} of {measured}")
    return "\n".join(lines)
