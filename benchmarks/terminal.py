"""Record commands in a terminal, and write the recording as an animated SVG.

    python benchmarks/terminal.py      # docs/images/terminal.svg: a training and a prediction, at their real speed

Needs Linux or macOS, and a machine that does nothing else. The photo is made from a validation image.
"""

import argparse
import itertools
import os
import pty
import re
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

import photographs
import records
from gingham.io import write_text

FILE = records.ROOT / "docs/images/terminal.svg"
COMMANDS = ("gingham train --recipe fast-90", "gingham predict coat.jpg")
COLUMNS, CHARACTER, LINE, MARGIN = 116, 8.43, 19, 16  # the size of a character and a line in pixels
TYPING = 0.035  # seconds for a character of a command
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"  # SVG collapses other spaces
PAUSE = 1.2  # seconds after a command


@dataclass
class Text:
    """A line of the terminal: its text, its row, and when it appears and disappears, in seconds."""

    text: str
    row: int
    start: float
    end: float | None = None


def record(command: str, folder: Path, row: int, start: float) -> tuple[list[Text], int, float]:
    """Run a command in a terminal of its own, and return its lines, the next row and the time at its end."""
    shown = [Text(f"$ {command[:count]}", row, start + TYPING * count) for count in range(len(command) + 1)]
    for before, after in itertools.pairwise(shown):
        before.end = after.start
    begin, row = shown[-1].start + 0.3, row + 1
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm"}
        words = shlex.split(command)
        os.execv(sys.executable, [sys.executable, "-m", *words])  # noqa: S606  # the command is one of COMMANDS
    started, current = time.perf_counter(), ""
    pending: Text | None = None  # a line that the progress bar may replace
    while True:
        try:
            output = os.read(terminal, 1 << 16).decode(errors="replace")
        except OSError:  # the terminal is closed
            break
        if not output:
            break
        now = begin + time.perf_counter() - started
        for part in re.split(r"(\r\n|\n|\r)", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)):
            if part in ("\r\n", "\n"):
                row += 1
                current, pending = "", None
            elif part == "\r":
                current = ""
            elif part:
                current += part
                if pending:
                    pending.end = now
                pending = Text(current[:COLUMNS], row, now)
                shown.append(pending)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{command} failed: {shown[-1].text}")
    return shown, row, begin + time.perf_counter() - started + PAUSE


def render(texts: list[Text], rows: int) -> str:
    """Return the SVG; each line is visible from its start to its end."""
    width, height = round(COLUMNS * CHARACTER + 2 * MARGIN), rows * LINE + 2 * MARGIN + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>A terminal: {escape(', then '.join(COMMANDS))}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d2b33"/>',
        '<g font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="14" fill="#e6edf0">',
    ]
    for text in texts:
        if not text.text.strip() or (text.end is not None and text.end - text.start < 0.02):
            continue
        end = "" if text.end is None else f' end="{text.end:.2f}s"'
        color = ' fill="#9cc3d5"' if text.text.startswith("$ ") else ""
        lines.append(
            f'<text x="{MARGIN}" y="{MARGIN + LINE * (text.row + 0.8):.0f}" visibility="hidden"{color}>'
            f'{escape(text.text).replace(" ", NO_BREAK_SPACE)}<set attributeName="visibility" to="visible" begin="{text.start:.2f}s"{end}/></text>'
        )
    return "\n".join([*lines, "</g>", "</svg>", ""])


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None).parse_args()
    images, labels = photographs.make("product", 3)
    coat = next(image for image, label in zip(images, labels.tolist(), strict=True) if label == 4)
    texts, row, now = list[Text](), 0, 0.5
    with tempfile.TemporaryDirectory() as folder:
        coat.save(Path(folder) / "coat.jpg")
        for command in COMMANDS:
            shown, row, now = record(command, Path(folder), row, now)
            texts += shown
            row += 1
    write_text(FILE, render(texts, row))
    print(f"written: {FILE}, {now:.1f} s")


if __name__ == "__main__":
    records.run(main)
