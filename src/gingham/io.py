"""Atomic file writes, JSON and safetensors files, locks and checksums."""

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from gingham.errors import DataError, GinghamError, RunError, one_line

if TYPE_CHECKING:
    import torch

# The manifests of a run, of trials and of an unfinished run, each with a key that it always has.
MANIFESTS = {"model.json": "recipe", "trials.json": "recipe", "checkpoint/step-*.json": "sha256"}
LOCK_FILE = ".lock"


def cache_folder() -> Path:
    """Return the cache folder for datasets and packs (`~/.cache/gingham` on Linux)."""
    import platformdirs  # not at the top, because a dataset given by its folder needs no cache

    return platformdirs.user_cache_path("gingham")


def require_regular_file(path: Path) -> None:
    """Raise an OSError unless `path` is a regular file, because reading a pipe or device may never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        reason = "it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file"
        raise OSError(None, reason, str(path))


@contextmanager
def explain_read_errors(path: Path, advice: str) -> Iterator[None]:
    """Raise an error of the block, which reads the data file at `path`, as a DataError that ends with `advice`.

    All errors are caught, because for damaged files gzip, zipfile, tarfile, csv and numpy raise errors of many types.

        with explain_read_errors(path, "save it again with np.savez"):
            array = np.load(path)
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"cannot read {path} ({reason}); {advice}") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds, the file there replaces `path` atomically.

    If the block raises an error or the process dies, `path` is unchanged.

    >>> with atomic_write(Path("notes.txt")) as temporary:
    ...     _ = temporary.write_text("all or nothing")

    Raises
        GinghamError: the folder cannot be created or written to, or the disk is full.
    """
    # Only the beginning of the name, because most file systems allow no name of more than 255 bytes.
    temporary = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(8)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)  # not with mkstemp, whose files only their owner can read
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file with one that only its owner can read
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # if removing fails too, keep the error of the write
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock a folder against other gingham processes with the file `.lock`. The lock is released if the process dies.

    A thread may lock a folder again that it has already locked. If this creates the folder and nothing is written to
    it, the folder is removed again.

    Raises
        GinghamError: another process has the lock and `wait` is False, or the folder cannot be written to.
    """
    try:
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        lock = FileLock(folder / LOCK_FILE, is_singleton=True).acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise GinghamError(f"another gingham is writing to {folder}; wait for it, or choose another folder") from None
    except OSError as error:
        raise _cannot_write(folder / LOCK_FILE, error) from error
    with lock:
        try:
            yield
        finally:
            # The lock file is removed in no other case, because two processes could then each have a lock.
            with contextlib.suppress(OSError):  # Windows cannot remove an open file
                if created and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                    (folder / LOCK_FILE).unlink()
                    for path in created:
                        path.rmdir()


def _cannot_write(path: Path, error: OSError) -> GinghamError:
    reason = error.strerror or one_line(error)
    return GinghamError(f"cannot write {path} ({reason}); choose a writable folder on a disk with free space")


def _sync(path: Path) -> None:
    # A rename survives a power failure only if both the file and its folder are on disk. Windows opens no folders, and
    # flushes only files that are open for writing.
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    except PermissionError:
        if is_folder:
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` to `path` as indented JSON, atomically.

    Raises
        ValueError: it contains NaN or infinity, which are not JSON.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str) -> Any:
    """Return the JSON value of a text. Like `write_json`, it rejects NaN, infinity and numbers too large for a float.

    Raises
        ValueError: the text is not JSON, or contains such a number or a lone surrogate.
    """
    value = json.loads(text, parse_constant=_parse_finite, parse_float=_parse_finite)
    if "\\ud" in text.lower():  # a surrogate; encoding raises a UnicodeEncodeError unless it is one of a pair
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _parse_finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError(f"{text} is not a JSON number")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises
        RunError: the file is missing, unreadable, over 64 MiB, not JSON, or not an object.
    """
    try:
        require_regular_file(path)
        if path.stat().st_size > 64 << 20:
            raise ValueError("it is over 64 MiB, and the JSON files of runs are far smaller")
        value = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it contains a JSON {type(value).__name__}, not an object")
        return value
    except OSError as error:
        raise RunError(f"cannot read {path} ({error.strerror}); give the folder of a finished run") from error
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
        raise RunError(f"{path} is not valid JSON ({reason}); restore it from a copy or train again") from error


def is_run_folder(folder: Path, *manifests: str) -> bool:
    """Return whether a folder contains one of the MANIFESTS, by default any: a run, trials or an unfinished run.

    The names of files are not enough: a class may be called `checkpoint`, and other programs write a `model.json` too.
    """
    for path, key in [(path, MANIFESTS[name]) for name in manifests or MANIFESTS for path in folder.glob(name)]:
        with contextlib.suppress(RunError):  # a folder, or not JSON
            if key in read_json(path):
                return True
    return False


def write_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors to `path` as safetensors, atomically."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(path) as temporary:
        try:
            save_file(_contiguous(tensors), temporary, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:  # raised instead of an OSError when the disk is full
            # `path` may be a checkpoint, or the weights of a run that has one.
            has_checkpoint = any(is_run_folder(folder, "checkpoint/step-*.json") for folder in path.parents[:2])
            advice = f"free some disk space{', then resume the run' * has_checkpoint}"
            raise GinghamError(f"cannot write {path} ({one_line(error)}); {advice}") from error


def tensors_sha256(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Return the hexadecimal SHA-256 of the file that `write_tensors` writes for these tensors without metadata."""
    from safetensors.torch import save

    return hashlib.sha256(save(_contiguous(tensors))).hexdigest()


def _contiguous(tensors: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    # Each with memory of its own, as safetensors does not store tied weights.
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def read_tensors(path: Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Return the tensors and the metadata of a safetensors file.

    Raises
        RunError: the file is missing, unreadable, truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        require_regular_file(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise RunError(f"cannot read {path} ({reason}); restore it from a copy or train again") from error


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
