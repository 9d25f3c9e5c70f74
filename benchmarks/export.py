"""How long does exporting take, how large are the files, and how quickly do they answer?

    python benchmarks/export.py                       # the packaged model
    python benchmarks/export.py packaged runs/fast-0

`gingham export` is timed as a command, from start to exit; with the libraries for the page already in the cache. Answers are timed in one process with one thread, PyTorch, ONNX and
8 bits taking turns (with several the three would keep each other waiting), for one picture and for 64. Writes benchmarks/results/export-<hardware>-<date>.md.
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


def timed(act: Callable[[], object], times: list[float]) -> None:
    started = time.perf_counter()
    act()
    times.append(1000 * (time.perf_counter() - started))


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
        named = [] if name == "packaged" else ["--run", str(Path(name).resolve())]
        run = gingham.load_packaged() if name == "packaged" else gingham.load(name)
        with tempfile.TemporaryDirectory() as folder:
            for kind, command in KINDS.items():
                seconds, said = list[float](), {}
                for _ in range(arguments.repeats):
                    started = time.perf_counter()
                    done = subprocess.run(
                        [sys.executable, "-m", "gingham", "export", *command, *named, "--json"],
                        cwd=folder, capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    seconds.append(time.perf_counter() - started)
                    said = json.loads(done.stdout)
                loss = f"{100 * (said['accuracy'] - said['accuracy_int8']):.2f}" if "accuracy" in said else "-"
                files.append(
                    f"| {name} | {kind} | {said['bytes'] / 1e6:.2f} MB | {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}) | "
                    f"{said['agreement']:.1%} of {said['pictures']:,} | {said['max_difference']:.1g} | {loss} |"
                )
            torch.set_num_threads(1)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            sessions = [onnxruntime.InferenceSession(str(Path(folder, KINDS[kind][0])), options) for kind in ("ONNX", "8 bits")]
            for count in (1, 64):
                pictures = validation.images[:count].numpy()
                ways: list[Callable[[], object]] = [lambda run=run, pictures=pictures: run.model.predict(pictures)]  # type: ignore[misc]
                ways += [lambda one=one, pictures=pictures: one.run(None, {"images": pictures}) for one in sessions]  # type: ignore[misc]
                times = [list[float]() for _ in ways]
                for _ in range(60):
                    for act, taken in zip(ways, times, strict=True):
                        timed(act, taken)
                middles = " | ".join(f"{statistics.median(taken[10:]):.2f}" for taken in times)
                speeds.append(f"| {name} | {count} | {middles} |")
    text = "\n".join(
        [
            "# Exporting",
            "",
            f"Command: `python benchmarks/export.py {' '.join(arguments.runs)} --repeats {arguments.repeats}`, commit {commit[:12]}.",
            f"Hardware: {environment['hardware']}; torch {environment['torch']}, onnxruntime {onnxruntime.__version__}.",
            f"Seconds from start to exit: the median of {arguments.repeats}, and their range. One seed a run.",
            "",
            "| run | file | size | `gingham export` | same class as the model | probabilities within | points of accuracy lost |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
            *files,
            "",
            "Milliseconds for the answers with one thread, the median of 50, taking turns:",
            "",
            "| run | pictures | PyTorch | ONNX Runtime | 8 bits |",
            "| --- | ---: | ---: | ---: | ---: |",
            *speeds,
            "",
        ]
    )
    print(text)
    print("written:", records.write_result("export", environment, text))


if __name__ == "__main__":
    main()
