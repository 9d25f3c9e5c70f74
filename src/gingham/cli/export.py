"""`gingham export`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

import gingham
from gingham.cli.options import Json, Model, RunFolder
from gingham.cli.output import print_result
from gingham.cli.resolve import load_run_or_packaged

FILE_HELP = "The file to write: FILE.onnx, or FILE.html for a page that works offline."
DATA_HELP = "Other data to compare predictions on, if the run's own is not available."
INT8_HELP = "Weights and activations in 8 bits: smaller and faster. The loss of accuracy is printed."
NEIGHBOURS_HELP = (
    "With FILE.html: how many training images the page contains, to show the most similar ones; by default 2000."
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
    """Export a model to use without Gingham: ONNX or a web page."""
    from gingham.deploy.export import require_exportable, require_page_network
    from gingham.evaluation.run_data import load_run_data

    require_exportable(file, int8=int8, neighbours=neighbours)  # before the slow part
    trained = load_run_or_packaged(run, model)
    require_page_network(trained, file)
    result = gingham.export(trained, file, load_run_data(trained, run, data), int8=int8, neighbours=neighbours)
    print_result(result.to_dict(), _format_result(result, trained), as_json)


def _format_result(result: "gingham.ExportResult", trained: "gingham.Run") -> str:
    written = f"{result.file}: {result.bytes / 1e6:.2f} MB"
    if result.neighbours is None:
        shape, outputs = ", ".join(map(str, trained.model.input_shape)), len(trained.model.classes)
        graph = f"uint8 images (N, {shape}) in, {outputs} probabilities and a novelty score out"
        lines = [f"{written}, opset {result.opset}; {graph}"]
    else:
        lines = [
            f"{written}; open it in a browser, also on a phone: it needs no network and sends no data",
            f"contents: the model, ONNX Runtime and OpenCV for browsers, {result.neighbours:,} training images",
        ]
    share, same = (f"{round(a * result.pictures):,}" for a in (result.agreement, result.novelty_agreement))
    images = f"of {result.pictures:,} {result.split} images"
    lines.append(f"classifies {share} {images} as the model does, probabilities within {result.max_difference:.1g}")
    lines.append(f"finds {same} {images} novel or not as the model does, scores within {result.novelty_difference:.1g}")
    if result.accuracy is not None and result.accuracy_int8 is not None and result.interval is not None:
        low, high = (100 * end for end in result.interval)
        cost = f"{100 * (result.accuracy - result.accuracy_int8):.2f} points of accuracy"
        accuracies = f"{result.accuracy_int8:.2%} instead of {result.accuracy:.2%}"
        measured = f"{result.measured:,} {result.split} images"
        lines.append(f"8 bits cost {cost} (95 % interval {low:.2f} to {high:.2f}): {accuracies} of {measured}")
    return "\n".join(lines)
