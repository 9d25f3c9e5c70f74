"""`gingham export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gingham.cli.options import Json, Model, RunFolder
from gingham.cli.output import print_json
from gingham.cli.resolve import load_run_or_packaged

if TYPE_CHECKING:
    from gingham.deploy.export import ExportResult
    from gingham.runs.run import Run


def export(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="What to write: FILE.onnx, or FILE.html for a page that answers by itself."
        ),
    ],
    run: RunFolder = None,
    data: Annotated[
        str | None,
        typer.Option(help="Other pictures to compare the answers on, where those of the run are not at hand."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Weights and activations of 8 bits: smaller and faster, and what it costs is said."
        ),
    ] = False,
    neighbours: Annotated[
        int,
        typer.Option(
            min=0, help="With FILE.html: how many training pictures the page holds, to show those most like yours."
        ),
    ] = 2000,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Write a model as one file that answers the same without Gingham: ONNX, or a page for a browser."""
    from gingham.deploy.export import export as export_run
    from gingham.deploy.export import require_exportable
    from gingham.evaluation.run_data import load_run_data

    require_exportable(file, int8=int8)  # before the slow part
    trained = load_run_or_packaged(run, model)
    result = export_run(trained, file, load_run_data(trained, run, data), int8=int8, neighbours=neighbours)
    if as_json:
        print_json(result.to_dict())
    else:
        _print(trained, result)


def _print(trained: "Run", result: "ExportResult") -> None:
    shape = ", ".join(map(str, trained.model.input_shape))
    size = f"{result.bytes / 1e6:.2f} MB"
    if result.neighbours is not None:
        usage = "open it in a browser, on a phone too: it needs no network, and sends nothing anywhere"
        print(f"{result.file}: {size}; {usage}")
        print(f"inside: the model, ONNX Runtime and OpenCV for browsers, {result.neighbours:,} training pictures")
    else:
        outputs = f"{len(trained.model.classes)} probabilities out"
        print(f"{result.file}: {size}, opset {result.opset}; uint8 pictures (N, {shape}) in, {outputs}")
    share = f"{round(result.agreement * result.pictures):,} of {result.pictures:,} {result.split} pictures"
    print(f"answers {share} as the model does, probabilities within {result.max_difference:.1g}")
    if result.accuracy is not None and result.accuracy_int8 is not None and result.interval is not None:
        low, high = (f"{100 * end:.2f}" for end in result.interval)
        cost = f"{100 * (result.accuracy - result.accuracy_int8):.2f} points of accuracy"
        accuracies = f"{result.accuracy_int8:.2%} in place of {result.accuracy:.2%}"
        measured = f"{result.measured:,} {result.split} pictures"
        print(f"8 bits cost {cost} (95 % interval {low} to {high}): {accuracies} of {measured}")
