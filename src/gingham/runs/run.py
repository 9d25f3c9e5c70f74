"""The Run: a trained model with everything known about it, saved and loaded without pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gingham.errors import GinghamError, RunError, one_line
from gingham.io import locked, parse_json, read_json, read_tensors, require_plain, sha256, write_json, write_tensors, write_text
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS
from gingham.models.registry import NetworkFactory, build_classifier, factory_name
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, load_checkpoint, remove_checkpoints, resume_options
from gingham.runs.schema import validate_history_entry, validate_metadata
from gingham.text import is_plain_name

FORMAT = 2  # 1 was used before the first release
TRIALS_FILE = "trials.json"  # of a folder of runs that differ in their seed
WEIGHTS_FILE, METADATA_FILE, HISTORY_FILE = "model.safetensors", "model.json", "history.jsonl"


@dataclass
class Run:
    """A training run: the model and how it came about.

    `history` holds a dict a step (`step loss accuracy learning_rate`) and one an epoch (`epoch train_loss ...`);
    `metrics` what `gingham train --json` prints; `data` the dataset's name and fingerprint; `environment` the versions
    and hardware; `test_openings` a dict for every time predictions were computed on the test split; `folder` where the
    run is saved, if it is.
    """

    model: Classifier
    recipe: Recipe
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None

    @property
    def teacher_names(self) -> str:
        """Its teachers in words, such as "accurate with seed 0, accurate with seed 1"; nothing where it had none."""
        return ", ".join(f"{one.get('recipe')} with seed {one.get('seed')}" for one in self.data.get("teachers") or [])

    def metadata(self) -> dict[str, Any]:
        """Return everything but the tensors and the history, as JSON values."""
        return {
            "format": FORMAT,
            "network": self.recipe.network,
            "classes": list(self.model.classes),
            "input_shape": list(self.model.input_shape),
            "mean": self.model.mean.flatten().tolist(),
            "std": self.model.std.flatten().tolist(),
            "temperature": float(self.model.temperature),
            "threshold": float(self.model.threshold),
            "recipe": self.recipe.to_dict(),
            "seed": self.recipe.seed,
            "data": self.data,
            "metrics": self.metrics,
            "environment": self.environment,
            "test_openings": self.test_openings,
        }


def save(run: Run, folder: str | Path, *, halved: bool = False) -> Path:
    """Write a run folder and return it: `model.safetensors`, `history.jsonl`, and last `model.json`, which makes it
    finished. The checkpoint of its training is then removed.

    With `halved` filters and matrices are kept in 16 bits (IEEE half precision), in half the room; call `halve` first, so that
    what is kept is what was measured.

        gingham.save(run, "runs/fast")

    Raises
        GinghamError: the folder cannot be written.
        RunError: the folder holds another finished run.
    """
    folder = Path(folder).resolve()
    if (folder / METADATA_FILE).exists() and run.folder != folder:
        raise RunError(f"{folder} already holds a finished run; choose another folder")
    tensors = run.model.state_dict()
    if halved:
        tensors = {name: tensor.half() if _is_filter(tensor) else tensor for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS_FILE, tensors)
    write_text(folder / HISTORY_FILE, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in run.history))
    run.folder = folder
    write_json(folder / METADATA_FILE, {**run.metadata(), "weights_sha256": sha256(folder / WEIGHTS_FILE)})
    remove_checkpoints(folder)
    return folder


def halve(model: Classifier) -> None:
    """Round a model's filters and matrices to what 16 bits hold, in place, for `save` with `halved`."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if _is_filter(tensor):
                tensor.copy_(tensor.half().float())


def _is_filter(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() >= 2 and tensor.numel() > 100


def record_test_use(run: Run, opening: dict[str, Any]) -> None:
    """Add an opening of the test split to a run, and to its folder where it is saved, beside those others have added."""
    if run.folder is None:
        run.test_openings.append(opening)
        return
    with locked(run.folder, wait=True):
        metadata = read_json(run.folder / METADATA_FILE)
        run.test_openings = [*metadata.get("test_openings", []), opening]
        write_json(run.folder / METADATA_FILE, {**metadata, "test_openings": run.test_openings})


def load(folder: str | Path, network: NetworkFactory | None = None) -> Run:
    """Return the run in a folder. Its model predicts the same bits as the one saved. Nothing in it is executed.

    A run of a network of your own holds that network's name, and its code stays where it was: give the class again.

        model = gingham.load("runs/fast").model
        model = gingham.load("runs/mine", MyNetwork).model

    Raises
        RunError: missing or unfinished, of a newer format, a key missing or wrong, weights missing, damaged or of
            another shape; a network of your own that is not given, or another one.
    """
    folder = Path(folder)
    if not (folder / METADATA_FILE).exists():
        raise RunError(_why_not_there(folder))
    metadata = read_json(folder / METADATA_FILE)
    try:
        run = _from_metadata(metadata, network)
    except _OwnNetworkError as error:
        raise RunError(f"{folder} {error}") from None
    except KeyError as error:
        raise RunError(f"{folder / METADATA_FILE} lacks the key {error}; restore it from a copy or train again") from error
    except (GinghamError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(
            f"{folder / METADATA_FILE} does not describe a run ({one_line(error)}); restore it from a copy or train again"
        ) from error
    tensors, _ = read_tensors(folder / WEIGHTS_FILE)
    _fill(run.model, tensors, folder / WEIGHTS_FILE)
    _require_agreement(run, metadata, folder)
    run.history = _read_history(folder / HISTORY_FILE)
    run.folder = folder.resolve()
    return run


def _why_not_there(folder: Path) -> str:
    if has_checkpoint(folder):
        return (
            f"the run in {folder} is not finished; go on with the command that began it and --resume, such as gingham train "
            f"{resume_options(load_checkpoint(folder).metadata)} --resume --out {folder}"
        )
    inner = sorted(path.parent for path in folder.glob(f"*/{METADATA_FILE}"))
    if (folder / TRIALS_FILE).exists():
        of_them = f"one of its runs, such as {inner[0]}" if inner else "a run"
        return f"{folder} is a folder of trials; name {of_them}, or compare it with other trials (gingham compare)"
    if inner:
        return f"{folder} is no run but holds runs; name one, such as {inner[0]}"
    if folder.is_file():
        return f"{folder} is a file; name the folder of a run, such as {folder.parent}"
    if not folder.exists():
        return f"there is no folder {folder}; name a run folder, or train one with gingham train --out {folder}"
    return f"no run in {folder} ({METADATA_FILE} is missing); name a run folder, or train one with gingham train"


class _OwnNetworkError(Exception):
    """A run of the user's own network is loaded without it, or another run with one."""


def _require_factory(network: str, factory: NetworkFactory | None) -> None:
    own = ":" in network
    if factory is None and own:
        raise _OwnNetworkError(f"is a run of your own network {network}; give it again with --model {network}")
    if factory is not None and factory_name(factory) != network:
        given = factory_name(factory)
        way_out = f"give --model {network}" if own else "leave --model out"
        raise _OwnNetworkError(f"is a run of the network {network}, not of {given}; {way_out}")


def _from_metadata(metadata: Mapping[str, Any], factory: NetworkFactory | None = None) -> Run:
    version = metadata["format"]
    if not isinstance(version, int) or version < 1:
        raise ValueError(f"format is {version!r}, a whole number from 1 is needed")
    if version > FORMAT:
        raise ValueError(f"format {version} is newer than {FORMAT}, the newest this gingham reads: update gingham")
    if version < FORMAT:
        raise ValueError(f"format {version} is from before the release 0.1.0 and is not read any more: train again")
    recipe = Recipe.from_dict(metadata["recipe"])
    _require_factory(recipe.network, factory)
    if factory is None and recipe.network not in NETWORKS:
        raise ValueError(f"its network {recipe.network!r} is not one of gingham's: {', '.join(NETWORKS)}")
    classes, shape = metadata["classes"], metadata["input_shape"]
    if not (isinstance(classes, list) and 0 < len(classes) <= 10_000 and all(isinstance(name, str) for name in classes)):
        raise ValueError("classes is not a list of 1 to 10000 names")
    if len(set(classes)) < len(classes):
        raise ValueError("classes has a name twice")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and 0 < n <= 4096 for n in shape)):
        raise ValueError(f"input_shape is {shape!r}, three whole numbers from 1 to 4096 are needed")
    if shape[0] > 64:
        raise ValueError(f"input_shape is {shape!r}, with {shape[0]} channels; at most 64 are allowed")
    if odd := [name for name in classes if not is_plain_name(name)]:
        raise ValueError(f"classes has the name {odd[0]!r}, which is not in plain letters")
    for key, kind in (("data", dict), ("metrics", dict), ("environment", dict), ("test_openings", list)):
        if not isinstance(metadata[key], kind):
            raise ValueError(f"{key} is not a {kind.__name__}")
    validate_metadata(metadata)
    with torch.random.fork_rng(devices=[]):  # the initialisation is overwritten; the caller's stream stays where it was
        size = (shape[0], shape[1], shape[2])
        model = build_classifier(recipe.network, classes, size, recipe.mean, recipe.std, recipe.tta, factory)
    return Run(
        model=model,
        recipe=recipe,
        metrics=metadata["metrics"],
        data=metadata["data"],
        environment=metadata["environment"],
        test_openings=metadata["test_openings"],
    )


def _require_agreement(run: Run, metadata: Mapping[str, Any], folder: Path) -> None:
    """What model.json repeats for its readers must be so, or someone edited a number that has no effect."""
    now = run.metadata()
    for key in ("network", "seed", "mean", "std", "temperature", "threshold"):
        if key not in metadata:
            raise RunError(f"{folder / METADATA_FILE} lacks the key {key!r}; restore it from a copy or train again")
        if metadata[key] != now[key]:
            raise RunError(
                f"{folder / METADATA_FILE} says {key} {metadata[key]!r} where the recipe and weights beside it say {now[key]!r}; restore it from a copy"
            )
    if metadata.get("weights_sha256") != sha256(folder / WEIGHTS_FILE):
        raise RunError(f"{folder / WEIGHTS_FILE} is not the file that was saved (its SHA-256 differs); restore it from a copy")


def _fill(model: Classifier, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    way_out = "restore the file from a copy or train again"
    wanted = model.state_dict()
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    for name, tensor in wanted.items():
        if name not in tensors:
            raise RunError(f"{path} lacks the tensor {name}; {way_out}")
        if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise RunError(
                f"{path} holds {name} as {tensors[name].dtype} {tuple(tensors[name].shape)}, the network needs "
                f"{tensor.dtype} {tuple(tensor.shape)}; {way_out}"
            )
        if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise RunError(f"{path} holds values in {name} that are not finite; {way_out}")
        divides, varies = name in ("std", "temperature"), name.endswith("running_var")
        if (divides and bool((tensors[name] <= 0).any())) or (varies and bool((tensors[name] < 0).any())):
            raise RunError(f"{path} holds values in {name} that no training gives, down to {tensors[name].min():g}; {way_out}")
    if extra := sorted(set(tensors) - set(wanted)):
        raise RunError(f"{path} holds a tensor {extra[0]} that the network does not have; {way_out}")
    model.load_state_dict(dict(tensors))


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        require_plain(path)
        entries = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if odd := [number for number, entry in enumerate(entries, 1) if not isinstance(entry, dict)]:
            raise ValueError(f"line {odd[0]} is not a JSON object")
        for number, entry in enumerate(entries, 1):
            validate_history_entry(entry, number)
        return entries
    except FileNotFoundError:
        return []  # a model can be used without the story of its training
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path} ({one_line(error)}); restore it from a copy, or remove it to go without") from error
