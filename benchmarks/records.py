"""Shared by all benchmarks: the commit, the paths of the results and the table of records.

python benchmarks/records.py      # rewrites the table and the figure in records/README.md from the record.json files
"""

import argparse
import datetime as dt
import itertools
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gingham.errors import GinghamError
from gingham.io import atomic_write, write_json, write_text

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- table: written by benchmarks/records.py -->", "<!-- end of table -->"


def clean_commit() -> str:
    """Return the commit of a clean git tree; exit with a message if it has changes.

    GINGHAM_COMMIT gives the commit of a copy without git.
    """
    if commit := os.environ.get("GINGHAM_COMMIT"):
        return commit
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if status.returncode or status.stdout.strip():
        sys.exit("a measurement needs a clean git tree, so that its commit says what ran; commit your changes first")
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def run(main: Callable[[], None]) -> None:
    """Run a benchmark; for an error that its user can fix, such as a missing run, exit with its message.

    For a command that failed, the message is what it printed.
    """
    try:
        main()
    except (GinghamError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {shlex.join(map(str, error.cmd))} failed\n{error.stderr or ''}")


def positive(text: str) -> int:
    """Return an option's value as a number of at least 1; argparse says what is wrong with any other."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}; it takes a whole number of at least 1")
    return int(text)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_result(what: str, environment: dict[str, Any], text: str, folder: Path | None = None) -> Path:
    """Write <what>-<hardware>-<date>.md, by default into benchmarks/results, and return its path.

    The second of a day gets -2 at its end.
    """
    folder = folder or ROOT / "benchmarks" / "results"
    path = unused_path(folder, f"{what}-{slug(environment['hardware'])}-{dt.date.today()}", ".md")
    write_text(path, text)
    return path


def write_times(what: str, title: str, command: str, commit: str, seconds: dict[str, list[float]], unit: str) -> None:
    """Print and write a table of the seconds of each process: median, range, and median divided by that of `unit`."""
    import torch

    from gingham.device import describe_environment

    environment = describe_environment(torch.device("cpu"))
    divisor = statistics.median(seconds[unit])
    lines = [
        f"# {title}",
        "",
        f"Command: `{command}`.",
        f"Commit {commit[:12]}. Hardware: {environment['hardware']}; torch {environment['torch']}.",
        "",
        f"| process | median s | range | divided by {unit} |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(f"| {name} | {median:.2f} | {min(values):.2f} to {max(values):.2f} | {median / divisor:.2f} |")
    text = "\n".join([*lines, ""])
    print(text)
    print("written:", write_result(what, environment, text))


def unused_path(folder: Path, name: str, suffix: str = "") -> Path:
    """Return the path of this name in a folder; a number is appended if it exists."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for candidate in names if not (path := folder / f"{candidate}{suffix}").exists())


def write_record(
    name: str,
    *,
    target: float | None,
    accuracies: list[float],
    train_seconds: list[float],
    wall_seconds: list[float],
    environment: dict[str, Any],
    commit: str,
    command: str,
    recipe: dict[str, Any],
    extra: dict[str, Any],
    predictions: list["torch.Tensor"] | None = None,
) -> Path:
    """Write records/<date>-<name>/record.json, update the table and return the folder.

    `predictions` are those of each seed on the test images, int64 (N,); they are saved as predictions.npz: `predicted`,
    uint8 (seeds, N).
    """
    folder = unused_path(ROOT / "records", f"{dt.date.today()}-{name}")
    record = {
        "target": target,
        "accuracies": accuracies,
        "n": len(accuracies),
        "split": "test",
        "train_seconds": train_seconds,
        "wall_seconds": wall_seconds,
        "hardware": environment["hardware"],
        "torch": environment["torch"],
        "commit": commit,
        "command": command,
        "recipe": recipe,
        **extra,
    }
    if predictions is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "predictions.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file, predicted=np.stack([predicted.numpy().astype(np.uint8) for predicted in predictions])
            )
    write_json(folder / "record.json", record)
    write_table()
    return folder


def table() -> str:
    """Return the table of records in Markdown, from the record.json files."""
    columns = [
        "record",
        "asked or published",
        "test accuracy: mean ± std",
        "min to max",
        "seeds",
        "never left 10 %",
        "train_seconds, median",
    ]
    rows = [[*columns, "hardware", "torch"], ["---"] * (len(columns) + 2)]
    for file in sorted(ROOT.glob("records/*/record.json")):
        record = json.loads(file.read_text())
        accuracies = record["accuracies"]
        rows.append(
            [
                f"[{file.parent.name}]({file.parent.name}/record.json)",
                "-" if record["target"] is None else f"{record['target']:.2%}",
                f"{statistics.mean(accuracies):.2%}"
                + (f" ± {statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else ""),
                f"{min(accuracies):.2%} to {max(accuracies):.2%}",
                str(record["n"]),
                str(record.get("never_left_10_percent", "not counted")),
                f"{statistics.median(record['train_seconds']):.3g}",
                record["hardware"],
                record["torch"],
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_table() -> None:
    """Write the table between its two markers in records/README.md, and the figure."""
    path = ROOT / "records" / "README.md"
    before, _, rest = path.read_text().partition(START)
    after = rest.partition(END)[2]
    write_text(path, f"{before}{START}\n{table()}\n{END}{after}")
    draw_records(ROOT / "records" / "accuracy-against-seconds.png")


def draw_records(file: Path) -> None:
    """Draw the test accuracy of every seed of the latest records against its seconds of training, one dot a seed."""
    from gingham.figures import BLUE, INK, PAPER, RUST, Figure, write_figure

    latest = {}
    for path in sorted(ROOT.glob("records/*/record.json")):
        record = json.loads(path.read_text())
        latest[record["recipe"]["name"]] = record
    hardware = sorted({record["hardware"] for record in latest.values()})
    figure = Figure(figsize=(8, 4.6), facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot()
    for name, record in latest.items():
        seconds, accuracies = record["train_seconds"], [100 * value for value in record["accuracies"]]
        color = RUST if name == "article" else INK if record["hardware"].startswith("NVIDIA") else BLUE
        axes.plot(seconds, accuracies, "o", color=color, alpha=0.55, ms=5, mec="none")
        position = (statistics.median(seconds), min(accuracies) - 0.25)
        axes.annotate(name, position, ha="center", va="top", fontsize=10, color=INK)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50, 100], ["0.5", "1", "2", "5", "10", "20", "50", "100"])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="seconds of training", ylabel="test accuracy (%)", ylim=(82, 95.2), xlim=(0.4, 250))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    title = "Fashion-MNIST: the latest record of each recipe, one dot a seed"
    figure.suptitle(f"{title}\n{'; '.join(hardware)}", x=0.01, ha="left", fontsize=10, color=INK)
    write_figure(figure, file)


if __name__ == "__main__":
    argparse.ArgumentParser(description="Rewrite the table and the figure in records/README.md.").parse_args()
    write_table()
