"""Checkpoints of a training: the last two are kept, each with a manifest whose checksum detects a damaged file.

A run's folder `checkpoint/` contains `step-00000120.safetensors`, with the whole state, and its manifest
`step-00000120.json`, which is written last: a state without a manifest is ignored. The previous checkpoint is kept as
well, in case the newest one is lost in a crash of the machine.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from gingham.errors import RecipeError, RunError, one_line
from gingham.io import read_json, require_regular_file, sha256, write_json, write_tensors
from gingham.presets import train_options
from gingham.recipe import Recipe
from gingham.runs.schema import FormatError, require_format

FOLDER = "checkpoint"
FORMAT = 2  # 1 was used before the first release
NUM_KEPT = 2
METADATA_KEY = "metadata"  # a tensor with the metadata as JSON bytes, so that one checksum covers everything


class Checkpoint(NamedTuple):
    """The state that a training resumes from: tensors by name, and metadata as JSON values."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Save the state of a training after `step` steps, keep the checkpoint before it, and remove older ones.

    If the process is killed at any moment, the previous checkpoint remains intact.

    Raises
        GinghamError: the folder cannot be written, or the disk is full. Previous checkpoints remain.
    """
    state = folder / FOLDER / f"step-{step:08d}.safetensors"
    manifest = state.with_suffix(".json")
    manifest.unlink(missing_ok=True)  # of a damaged checkpoint of the same step
    text = json.dumps(metadata, allow_nan=False).encode()
    write_tensors(state, {**tensors, METADATA_KEY: torch.from_numpy(np.frombuffer(text, np.uint8).copy())})
    write_json(manifest, {"format": FORMAT, "step": step, "bytes": state.stat().st_size, "sha256": sha256(state)})
    # Later checkpoints are damaged, or this training would have resumed from them.
    names = [path.stem for path in _manifests(folder) if path.stem <= state.stem]
    _remove_except(folder, set(names[:NUM_KEPT]))


def has_checkpoint(folder: Path) -> bool:
    """Return whether the folder of a run contains a checkpoint with a manifest."""
    return bool(_manifests(folder))


def has_unverified_checkpoint(folder: Path) -> bool:
    """Return whether the folder of a run contains saved states, but none with a manifest."""
    return not has_checkpoint(folder) and any((folder / FOLDER).glob("step-*.safetensors"))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Return the last intact checkpoint.

    Raises
        RunError: no checkpoint is intact, or one is of another format.
    """
    data, _ = read_checkpoint(folder)
    return parse_checkpoint(data, folder)


def read_checkpoint(folder: Path) -> tuple[bytes, list[str]]:
    """Return the bytes of the last intact checkpoint, and a message for each later one that is damaged.

    Raises
        RunError: no checkpoint is intact, or one is of another format.
    """
    damaged: list[str] = []
    for manifest in _manifests(folder):
        try:
            return _read_verified(manifest), damaged
        except FormatError:  # not damaged, so the previous one must not replace it
            raise
        except (OSError, RunError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or one_line(error).partition("; ")[0]
            damaged.append(f"the checkpoint {manifest.with_suffix('').name} is damaged ({reason})")
    path = folder / FOLDER
    if damaged:
        raise RunError(f"no checkpoint in {path} is intact: {'; '.join(damaged)}; remove {path} to start over")
    raise RunError(f"there is no checkpoint in {path}; train without resuming")


def _read_verified(path: Path) -> bytes:
    """Return the bytes of the state that the manifest at `path` describes, after checking their size and checksum."""
    manifest = read_json(path)
    require_format(path, manifest.get("format"), FORMAT, f"remove {path.parent} to start over")
    state = path.with_suffix(".safetensors")
    require_regular_file(state)
    size = state.stat().st_size
    if size != manifest.get("bytes"):  # checked before reading, because a wrong file may have any size
        raise RunError(f"{state.name} has {size} bytes, not {manifest.get('bytes')!r} as in its manifest")
    data = state.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
        raise RunError(f"the SHA-256 of {state.name} is not the one in its manifest")
    return data


def parse_checkpoint(data: bytes, folder: Path) -> Checkpoint:
    """Return the checkpoint stored in `data`. Error messages name the run's `folder`.

    Raises
        RunError: the bytes are not a checkpoint.
    """
    try:
        tensors = load(data)
        metadata = json.loads(tensors.pop(METADATA_KEY).numpy().tobytes())
        return Checkpoint(tensors, dict(metadata))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise RunError(
            f"{folder / FOLDER} contains no checkpoint of gingham ({one_line(error)}); remove it to start over"
        ) from error


def resume_options(metadata: Mapping[str, Any]) -> str:
    """Return the options of `gingham train` that resume a training with this metadata; `...` if it is invalid.

    >>> recipe = {"name": "article", "network": "article"}
    >>> resume_options({"recipe": recipe, "dataset": "my images", "teachers": ["1f0a"]})
    "--recipe article --seed 0 --set precision=auto --set validation_images=5000 --data 'my images' --teacher RUN"
    """
    try:
        options = [train_options(Recipe.from_dict(metadata.get("recipe", {})))]
    except RecipeError:
        return "..."
    dataset, teachers = metadata.get("dataset"), metadata.get("teachers")
    if isinstance(dataset, str) and dataset != "fashion-mnist":
        options.append(f"--data {shlex.quote(dataset)}")
    if isinstance(teachers, list):  # of checksums: the folders of the teachers are not known
        options += ["--teacher RUN"] * len(teachers)
    if metadata.get("start") is not None:
        options.append("--from RUN")
    return " ".join(options)


def remove_checkpoints(folder: Path) -> None:
    """Remove the files that `save_checkpoint` wrote, and the checkpoint folder if it is then empty."""
    _remove_except(folder, set())
    path = folder / FOLDER
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _manifests(folder: Path) -> list[Path]:
    """Return the paths of the manifests, latest step first."""
    return sorted((folder / FOLDER).glob("step-*.json"), reverse=True)


def _remove_except(folder: Path, names: set[str]) -> None:
    # Manifests first, so that no manifest lacks its state, and last the files of a process killed while writing.
    for pattern in ("step-*.json", "step-*.safetensors", ".step-*"):
        for path in (folder / FOLDER).glob(pattern):
            if path.stem not in names:
                path.unlink(missing_ok=True)
