"""Atomic file writes, JSON and safetensors files, locks and checksums."""

import contextlib
import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gingham.errors import GinghamError, RunError, one_line

if TYPE_CHECKING:
    import torch


def cache_folder() -> Path:
    """Return the folder of the user's cache that datasets and packs are kept in (`~/.cache/gingham` on Linux)."""
    import platformdirs  # here, since whoever names their data's folder needs no cache

    return platformdirs.user_cache_path("gingham")


def require_plain(path: Path) -> None:
    """Raise an OSError unless `path` is a plain file or a folder: a pipe is waited for without end, and a device may have none."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what opens a folder says so itself
        raise OSError(None, "it is no plain file", str(path))


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


def parse_json(text: str) -> Any:
    """Return a JSON value, refusing the numbers that `write_json` refuses: NaN, infinity, and what is beyond a float.

    Raises
        ValueError: such a number, half a letter, or no JSON.
    """
    value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    if "\\ud" in text.lower():  # halves of a letter, maybe without the other one: no file could hold them again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _finite(digits: str) -> float:
    if math.isfinite(number := float(digits)):
        return number
    raise ValueError(f"{digits} is no number of JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises
        RunError: the file is missing, unreadable, over 64 MiB, not JSON, or not an object.
    """
    try:
        require_plain(path)
        if path.stat().st_size > 64 << 20:
            raise RunError(f"{path} is over 64 MiB; a run's JSON is far smaller, so take the file from its source again")
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}); give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is not whole JSON ({one_line(error)}); restore it from a copy or train again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds a JSON {type(value).__name__}, not an object; restore it from a copy or train again")
    return value


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Replace the file at `path` by named tensors, as safetensors, in one step."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with replacing(path) as side:
        try:
            save_file(_plain(tensors), side, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:  # it wraps the system's error when the disk is full
            raise GinghamError(f"cannot write {path} ({one_line(error)}); free some room and go on with --resume") from error


def tensors_sha256(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return the SHA-256 of the file that `write_tensors` makes of named tensors, in hexadecimal."""
    from safetensors.torch import save

    return hashlib.sha256(save(_plain(tensors))).hexdigest()


def _plain(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def read_tensors(path: Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Return the tensors of a safetensors file and its metadata.

    Raises
        RunError: the file is missing, unreadable, truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_plain(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise RunError(f"cannot read {path} ({one_line(error)}); restore it from a copy or train again") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
