"""Checkpoints of a training in progress: the last two, each with a manifest whose checksum a torn one does not match.

In a run's `checkpoint/` stand `step-00000120.safetensors`, which holds everything, and then `step-00000120.json`, its manifest:
only with that it counts. The one before is kept until the next is whole on disk, and once more after that, in case the disk
itself loses the newest.
"""

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from gingham.errors import RecipeError, RunError, one_line
from gingham.io import read_json, require_plain, sha256, write_json, write_tensors
from gingham.presets import train_options
from gingham.recipe import Recipe

FOLDER = "checkpoint"
FORMAT = 2  # 1 was used before the first release
KEPT = 2
METADATA_KEY = "metadata"  # the tensor with the bytes of the metadata as JSON, so that one checksum covers everything


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on: tensors by name, and facts, which are JSON values."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def save_checkpoint(folder: Path, step: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Keep the state of a training after `step` steps beside the one kept before it, and remove older ones.

    Killed at any moment, even within, it leaves the checkpoint before whole.

    Raises
        GinghamError: the folder cannot be written, or the disk is full; what was kept before still is.
    """
    place = folder / FOLDER
    state = place / f"step-{step:08d}.safetensors"
    manifest = state.with_suffix(".json")
    manifest.unlink(missing_ok=True)  # of a torn one from this step
    text = json.dumps(metadata, allow_nan=False).encode()
    write_tensors(state, {**tensors, METADATA_KEY: torch.from_numpy(np.frombuffer(text, np.uint8).copy())})
    write_json(manifest, {"format": FORMAT, "step": step, "bytes": state.stat().st_size, "sha256": sha256(state)})
    # Later ones are torn, or this training would have gone on from them.
    kept = [path.stem for path in _manifests(folder) if path.stem <= state.stem][:KEPT]
    _remove(folder, set(kept))


def has_checkpoint(folder: Path) -> bool:
    """Return whether a training in that folder has kept a state to go on from."""
    return bool(_manifests(folder))


def has_unverified_checkpoint(folder: Path) -> bool:
    """Return whether states were left there that no manifest tells to be whole."""
    return not has_checkpoint(folder) and any((folder / FOLDER).glob("step-*.safetensors"))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Return the last checkpoint that is whole.

    Raises
        RunError: none is, or it is of a newer format.
    """
    data, _ = read_checkpoint(folder)
    return parse_checkpoint(data, folder)


def read_checkpoint(folder: Path) -> tuple[bytes, list[str]]:
    """Return the bytes of the last checkpoint that is whole, and a sentence on each later one that is torn.

    Raises
        RunError: none is whole, or one is of a newer format.
    """
    torn: list[str] = []
    for manifest in _manifests(folder):
        try:
            return _verified(manifest), torn
        except _FormatError:
            raise
        except (OSError, RunError) as error:
            why = error.strerror or one_line(error) if isinstance(error, OSError) else one_line(error).partition("; ")[0]
            torn.append(f"the checkpoint {manifest.with_suffix('').name} is torn ({why})")
    place = folder / FOLDER
    if torn:
        raise RunError(f"no checkpoint in {place} is whole: {'; '.join(torn)}; remove {place} to start over")
    raise RunError(f"there is no checkpoint in {place}; train without --resume")


def _verified(manifest: Path) -> bytes:
    said = read_json(manifest)
    version = said.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise _FormatError(
            f"{manifest} is of format {version}, newer than {FORMAT}, the newest this gingham reads; update gingham"
        )
    if isinstance(version, int) and version < FORMAT:
        raise _FormatError(
            f"{manifest} is of format {version}, from before the release 0.1.0, and is not read any more; remove {manifest.parent} to "
            "start over"
        )
    state = manifest.with_suffix(".safetensors")
    require_plain(state)
    size = state.stat().st_size
    if size != said.get("bytes"):  # before it is read: a wrong file may be of any size
        raise RunError(f"{state.name} has {size} bytes, its manifest says {said.get('bytes')!r}")
    data = state.read_bytes()
    if hashlib.sha256(data).hexdigest() != said.get("sha256"):
        raise RunError(f"the SHA-256 of {state.name} is not the one in its manifest")
    return data


class _FormatError(RunError):
    """A checkpoint of another format. It is not damaged, so the one before it is no replacement."""


def parse_checkpoint(data: bytes, folder: Path) -> Checkpoint:
    """Return the checkpoint that some bytes hold; `folder` is what errors call its run.

    Raises
        RunError: they hold none.
    """
    try:
        tensors = load(data)
        metadata = json.loads(tensors.pop(METADATA_KEY).numpy().tobytes())
        if not isinstance(metadata, dict):
            raise ValueError(f"its facts are a {type(metadata).__name__}, not an object")
        return Checkpoint(tensors, metadata)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        place = folder / FOLDER
        raise RunError(f"{place} holds no checkpoint of gingham ({one_line(error)}); remove it to start over") from error


def resume_options(metadata: Mapping[str, Any]) -> str:
    """Return what `gingham train` is told to go on with a training whose checkpoint has such facts; `...` where they make no sense.

    >>> resume_options({"recipe": {"name": "article", "network": "article"}, "dataset": "my pictures", "teachers": ["1f0a"]})
    "--recipe article --seed 0 --set precision=auto --set validation_images=5000 --data 'my pictures' --teacher RUN"
    """
    try:
        words = [train_options(Recipe.from_dict(metadata.get("recipe", {})))]
    except RecipeError:
        return "..."
    dataset, teachers = metadata.get("dataset"), metadata.get("teachers")
    if isinstance(dataset, str) and dataset != "fashion-mnist":
        words.append(f"--data {shlex.quote(dataset)}")
    if isinstance(teachers, list):  # by their checksums: where they are is not known
        words += ["--teacher RUN"] * len(teachers)
    return " ".join(words)


def remove_checkpoints(folder: Path) -> None:
    """Remove what `save_checkpoint` wrote, and nothing else."""
    _remove(folder, set())
    place = folder / FOLDER
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def _manifests(folder: Path) -> list[Path]:
    """The manifests there are, the latest step's first."""
    return sorted((folder / FOLDER).glob("step-*.json"), reverse=True)


def _remove(folder: Path, kept: set[str]) -> None:
    place = folder / FOLDER
    for suffix in ("json", "safetensors"):  # first what makes it count
        for path in place.glob(f"step-*.{suffix}"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)
    for side in place.glob(".step-*"):  # of a process killed while writing
        side.unlink(missing_ok=True)
