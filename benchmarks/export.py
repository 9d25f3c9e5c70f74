"""Measure the time of exports, the size of the files and their prediction speed.

    python benchmarks/export.py                       # the packaged model
    python benchmarks/export.py packaged runs/fast-0

`gingham export` is timed as a command, from start to exit, with the libraries for the page already in the cache.
Predictions of one image and of 64 are timed in one process with one thread (several threads would compete), PyTorch,
ONNX and 8 bits taking turns. Writes benchmarks/results/export-<hardware>-<date>.md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

import gingham
import records
from gingham.deploy.browser_libraries import library_files
from gingham.device import describe_environment

KINDS = {"ONNX": ["model.onnx"], "8 bits": ["small.onnx", "--int8"], "page": ["page.html"]}


def measure(function: Callable[[], object], milliseconds: list[float]) -> None:
    started = time.perf_counter()
    function()
    milliseconds.append(1000 * (time.perf_counter() - started))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["packaged"])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    commit = records.clean_commit()
    library_files()
    validation = gingham.load_data("fashion-mnist").validation
    assert validation is not None
    files, speeds, environment = [], [], describe_environment(torch.device("cpu"))
    for name in arguments.runs:
        run_options = [] if name == "packaged" else ["--run", str(Path(name).resolve())]
        run = gingham.load_packaged() if name == "packaged" else gingham.load(name)
        with tempfile.TemporaryDirectory() as folder:
            for kind, command in KINDS.items():
                seconds, output = list[float](), {}
                for _ in range(arguments.repeats):
                    started = time.perf_counter()
                    process = subprocess.run(
                        [sys.executable, "-m", "gingham", "export", *command, *run_options, "--json"],
                        cwd=folder, capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    seconds.append(time.perf_counter() - started)
                    output = json.loads(process.stdout)
                loss = f"{100 * (output['accuracy'] - output['accuracy_int8']):.2f}" if "accuracy" in output else "-"
                files.append(
                    f"| {name} | {kind} | {output['bytes'] / 1e6:.2f} MB | {statistics.median(seconds):.1f} s "
                    f"({min(seconds):.1f} to {max(seconds):.1f}) | {output['agreement']:.1%} of {output['pictures']:,} "
                    f"| {output['max_difference']:.1g} | {loss} |"
                )
            torch.set_num_threads(1)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            sessions = [
                onnxruntime.InferenceSession(str(Path(folder, KINDS[kind][0])), options) for kind in ("ONNX", "8 bits")
            ]
            for count in (1, 64):
                images = validation.images[:count].numpy()
                predictors: list[Callable[[], object]] = [lambda run=run, images=images: run.model.predict(images)]  # type: ignore[misc]
                predictors += [lambda s=s, images=images: s.run(None, {"images": images}) for s in sessions]  # type: ignore[misc]
                times = [list[float]() for _ in predictors]
                for _ in range(60):
                    for function, milliseconds in zip(predictors, times, strict=True):
                        measure(function, milliseconds)
                medians = " | ".join(f"{statistics.median(milliseconds[10:]):.2f}" for milliseconds in times)
                speeds.append(f"| {name} | {count} | {medians} |")
    text = "\n".join(
        [
            "# Exporting",
            "",
            (
                f"Command: `python benchmarks/export.py {' '.join(arguments.runs)} --repeats {arguments.repeats}`, "
                f"commit {commit[:12]}."
            ),
            (
                f"Hardware: {environment['hardware']}; torch {environment['torch']}, onnxruntime "
                f"{onnxruntime.__version__}."
            ),
            f"Seconds from start to exit: the median of {arguments.repeats} and the range. One seed per run.",
            "",
            (
                "| run | file | size | `gingham export` | same top class as the model | largest difference of a probability | points of "
                "accuracy lost |"
            ),
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *files,
            "",
            "Milliseconds per prediction with one thread, measured in turn, the median of 50:",
            "",
            "| run | images | PyTorch | ONNX Runtime | 8 bits |",
            "| --- | ---: | ---: | ---: | ---: |",
            *speeds,
            "",
        ]
    )
    print(text)
    print("written:", records.write_result("export", environment, text))


if __name__ == "__main__":
    records.run(main)
