"""`gingham serve`."""

import signal
from typing import Annotated, NoReturn

from typer import Exit, Option

from gingham.cli.options import Device, Model, RunFolder
from gingham.cli.output import print_message
from gingham.cli.resolve import load_run_or_packaged, load_training_images
from gingham.errors import GinghamError


def serve(
    run: RunFolder = None,
    host: Annotated[str, Option(help="The address to listen on; 0.0.0.0 lets other machines connect.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="The port to listen on; 0 uses any free port.")] = 8000,
    model: Model = None,
    device: Device = "auto",
) -> None:
    """Serve a model over HTTP, with a web page, until Ctrl-C."""
    # Set before the slow part: the first process of a container ignores signals that have no handler.
    signal.signal(signal.SIGTERM, _exit)
    try:
        from gingham.deploy import server
    except ImportError as error:
        if (error.name or "").startswith("gingham"):
            raise
        raise GinghamError(f"serving needs the package {error.name}; run pip install 'gingham[serve]'") from error

    # For a few images at a time the CPU is as fast as a GPU.
    trained = load_run_or_packaged(run, model, "cpu" if device == "auto" else device)
    listener = server.listen(host, port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print_message(f"page: http://{shown}:{port}/   API: http://{shown}:{port}/docs   (Ctrl-C stops the server)")
    server.serve(trained, listener, lambda: load_training_images(trained, run))


def _exit(*_: object) -> NoReturn:
    raise Exit
