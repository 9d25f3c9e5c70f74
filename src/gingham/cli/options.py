"""The options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA = "fashion-mnist"
DATA_HELP = (
    "A dataset's name (fashion-mnist, mnist, kmnist, qmnist, emnist-balanced, cifar-10, ...), a folder with a folder "
    "of pictures for each class, a .csv of paths and labels, a .npz file, or a folder of IDX files."
)
SkipUnreadable = Annotated[
    bool,
    typer.Option(
        "--skip-unreadable", help="Leave out image files that cannot be read, and say so, in place of an error."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout, and nothing else.")]
RunFolder = Annotated[Path | None, typer.Option(help="A run folder; the model that comes with Gingham unless told.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; auto takes the GPU where there is one.")]
Teacher = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="RUN", help="A run, trained on the same split, whose answers are learned too; may be repeated."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="package.module:Class", help="A network of your own, importable from here, in place of the recipe's."
    ),
]
SplitOption = Annotated[str, typer.Option(help="validation or test. Every look at test is written into the runs.")]
