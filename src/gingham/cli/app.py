"""The command line: all commands, and how the process ends."""

import contextlib
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from gingham._version import __version__
from gingham.cli import compare, diagnose, embed, evaluate, export, predict, report, serve, show, summary, train, trials
from gingham.cli.usage import describe_usage_error
from gingham.errors import GinghamError, Terminated, is_exhausted, one_line

app = typer.Typer(
    help="Train image classifiers on small images in seconds on a laptop, and measure how accurate they really are.",
    epilog="Start with: gingham train",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context, version: Version = False) -> None:
    under_torchrun = "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if context.invoked_subcommand is None:
        print(context.get_help())
    elif under_torchrun and context.invoked_subcommand != "train":
        raise GinghamError(f"torchrun is for gingham train; run gingham {context.invoked_subcommand} without it")


# Each module defines the command of the same name. --help lists them in this order.
for module in (train, evaluate, predict, show, summary, trials, compare, report, diagnose, embed, export, serve):
    app.command()(getattr(module, module.__name__.rpartition(".")[2]))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, with 2 for errors that the user can fix, or with 130 when interrupted."""
    usage_error: Any = typer.BadParameter.__mro__[2]  # the base class of all argument errors
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # older terminals show question marks for some symbols
    try:
        code: Any = app(arguments, prog_name="gingham", standalone_mode=False)
        sys.stdout.flush()
    except GinghamError as error:
        _fail(str(error))
    except Terminated:
        raise
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except (BrokenPipeError, SystemExit) as stop:
        # Typer turns the error of a pipe that its reader, such as head, has closed into a SystemExit.
        if not isinstance(stop, BrokenPipeError) and not isinstance(stop.__context__, BrokenPipeError):
            last = traceback.extract_tb(stop.__traceback__)[-1].filename
            if Path(last).is_relative_to(Path(typer.__file__).parent):
                raise  # typer has printed what the shell asked for to complete a command
            _fail(f"a module of your own ended the program (sys.exit({stop.code!r})); raise an error instead")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except usage_error as error:
        _fail(describe_usage_error(error, sys.argv[1:] if arguments is None else arguments))
    except OSError as error:
        what, reason = error.filename or "a file or the output", error.strerror or one_line(error)
        _fail(f"cannot use {what} ({reason}); check the free space, the path and its permissions")
    except Exception as error:
        if not is_exhausted(error):
            raise
        _fail(f"out of memory or threads ({one_line(error)}); try a smaller --set batch_size, or end other programs")
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> None:
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    process = f" (process {rank} of {size})" if size != "1" and rank != "0" and rank.isdecimal() else ""
    with contextlib.suppress(OSError):
        print(f"gingham{process}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _open_closed_streams() -> None:
    """Open /dev/null for closed standard streams. Otherwise output would go to the next file that is opened."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    sys.stdout = sys.stdout or io.TextIOWrapper(io.FileIO(1, "w", closefd=False))
    sys.stderr = sys.stderr or io.TextIOWrapper(io.FileIO(2, "w", closefd=False))


def run() -> NoReturn:
    """Run the command line in its own process, and exit without torch's cleanup, which takes 0.4 s."""
    code: Any = 1
    _open_closed_streams()
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001  # a bug in Gingham: print the traceback as Python does
        traceback.print_exc()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)
