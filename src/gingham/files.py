"""Files that are whole or not there: written to the side, synced to disk, renamed."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from gingham.errors import GinghamError, RunError, one_line


def cache_folder() -> Path:
    """Return the folder of the user's cache that datasets and packs are kept in (`~/.cache/gingham` on Linux)."""
    return platformdirs.user_cache_path("gingham")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; when the block ends well it takes the place of `path` in one step.

    If the block raises or the process dies, what stood at `path` before still stands there.

    >>> with replacing(Path("notes.txt")) as side:
    ...     _ = side.write_text("whole or not at all")

    Raises
        GinghamError: the folder cannot be made or written to, or the disk is full.
    """
    side: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(descriptor)
        side = Path(name)
        yield side
        umask = os.umask(0)
        os.umask(umask)
        side.chmod(0o666 & ~umask)  # mkstemp makes files only their owner can read
        _sync(side)
        side.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if side is not None:
            with contextlib.suppress(OSError):  # where nothing may be written any more, that is what is said
                side.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold a folder against other processes of gingham that ask for it too; a dead process lets go by itself.

    Raises
        GinghamError: another process holds it, and `wait` is False.
    """
    import fcntl  # not on Windows, where gingham does not run yet

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise GinghamError(f"another gingham is writing into {folder}; wait for it, or give another --out") from None
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Make the folder and see that a file can be written there, before hours of work are to be kept in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(path: Path, error: OSError) -> GinghamError:
    reason = error.strerror or one_line(error)
    return GinghamError(f"cannot write {path} ({reason}); choose a folder that exists, can be written to and has room")


def _sync(path: Path) -> None:
    # A rename survives a power cut only if the file and the folder that names it are both on disk.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by one that holds `text` (UTF-8), in one step."""
    with replacing(path) as side:
        side.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Replace the file at `path` by `value` as indented JSON; NaN and infinity are refused, as JSON has neither."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises
        RunError: the file is missing, unreadable, over 64 MiB, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > 64 << 20:
            raise RunError(f"{path} is over 64 MiB; a run's JSON is far smaller, so take the file from its source again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}); give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not whole JSON ({one_line(error)}); restore it from a copy or train again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a JSON {type(value).__name__}, not an object; restore it from a copy or train again")
    return value
