"""The Run class: a trained model with its recipe, history and metrics, saved and loaded without pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gingham.errors import GinghamError, RunError, one_line
from gingham.io import (
    locked,
    parse_json,
    read_json,
    read_tensors,
    require_regular_file,
    sha256,
    write_json,
    write_tensors,
    write_text,
)
from gingham.models.classifier import Classifier
from gingham.models.networks import NETWORKS
from gingham.models.registry import NetworkFactory, build_classifier, factory_name
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, load_checkpoint, remove_checkpoints, resume_options
from gingham.runs.schema import validate_history_entry, validate_metadata
from gingham.text import is_plain_name

FORMAT = 2  # 1 was used before the first release
TRIALS_FILE = "trials.json"  # in a folder of runs that differ in their seeds
WEIGHTS_FILE, METADATA_FILE, HISTORY_FILE = "model.safetensors", "model.json", "history.jsonl"


@dataclass
class Run:
    """A training run: the model and how it was trained.

    `history` holds a dict for each step (`step loss accuracy learning_rate`) and each epoch (`epoch train_loss ...`);
    `metrics` what `gingham train --json` prints; `data` the dataset's name and fingerprint; `environment` the versions
    and hardware; `test_openings` a dict for every time predictions were computed on the test split; `folder` the folder
    the run is saved in, or None.
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
        """The recipes and seeds of the teachers, such as "accurate with seed 0, accurate with seed 1", or an empty string."""
        teachers = self.data.get("teachers") or []
        return ", ".join(f"{teacher.get('recipe')} with seed {teacher.get('seed')}" for teacher in teachers)

    def metadata(self) -> dict[str, Any]:
        """Return everything except the tensors and the history, as JSON values."""
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
    """Write a run folder and return its path: `model.safetensors`, `history.jsonl`, and last `model.json`, which marks
    the run as finished. Then remove the checkpoints of the training.

    With `halved`, filters and matrices are stored in 16 bits (IEEE half precision), in half the space. Call `halve`
    first, so that the saved model is the one that was measured.

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
    """Round a model's filters and matrices to 16-bit floats, in place, for `save` with `halved`."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if _is_filter(tensor):
                tensor.copy_(tensor.half().float())


def _is_filter(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() >= 2 and tensor.numel() > 100


def record_test_use(run: Run, opening: dict[str, Any]) -> None:
    """Record a use of the test split in a run, and in its folder if it is saved, after those that other processes recorded."""
    if run.folder is None:
        run.test_openings.append(opening)
        return
    with locked(run.folder, wait=True):
        metadata = read_json(run.folder / METADATA_FILE)
        run.test_openings = [*metadata.get("test_openings", []), opening]
        write_json(run.folder / METADATA_FILE, {**metadata, "test_openings": run.test_openings})


def load(folder: str | Path, network: NetworkFactory | None = None) -> Run:
    """Return the run in a folder. Its model predicts the same bits as the saved one. No code in the folder is executed.

    A run with a network of your own stores the network's name, not its code: pass the class again.

        model = gingham.load("runs/fast").model
        model = gingham.load("runs/mine", MyNetwork).model

    Raises
        RunError: the run is missing, unfinished or of another format; a key is missing or wrong; the weights are
        missing,
            damaged or of another shape; a network of your own is not passed, or is another one.
    """
    folder = Path(folder)
    if not (folder / METADATA_FILE).exists():
        raise RunError(_explain_missing_run(folder))
    metadata = read_json(folder / METADATA_FILE)
    try:
        run = _from_metadata(metadata, network)
    except _OwnNetworkError as error:
        raise RunError(f"{folder} {error}") from None
    except KeyError as error:
        raise RunError(
            f"{folder / METADATA_FILE} lacks the key {error}; restore it from a copy or train again"
        ) from error
    except (GinghamError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunError(
            f"{folder / METADATA_FILE} does not describe a run ({one_line(error)}); restore it from a copy or train "
            "again"
        ) from error
    tensors, _ = read_tensors(folder / WEIGHTS_FILE)
    _load_weights(run.model, tensors, folder / WEIGHTS_FILE)
    _require_consistent(run, metadata, folder)
    run.history = _read_history(folder / HISTORY_FILE)
    run.folder = folder.resolve()
    return run


def _explain_missing_run(folder: Path) -> str:
    if has_checkpoint(folder):
        return (
            f"the run in {folder} is not finished; go on with the command that began it and --resume, such as gingham "
            f"train {resume_options(load_checkpoint(folder).metadata)} --resume --out {folder}"
        )
    runs = sorted(path.parent for path in folder.glob(f"*/{METADATA_FILE}"))
    if (folder / TRIALS_FILE).exists():
        choice = f"one of its runs, such as {runs[0]}" if runs else "a run"
        return f"{folder} is a folder of trials; name {choice}, or compare it with other trials (gingham compare)"
    if runs:
        return f"{folder} is no run but holds runs; name one, such as {runs[0]}"
    if folder.is_file():
        return f"{folder} is a file; name the folder of a run, such as {folder.parent}"
    if not folder.exists():
        return f"there is no folder {folder}; name a run folder, or train one with gingham train --out {folder}"
    return f"no run in {folder} ({METADATA_FILE} is missing); name a run folder, or train one with gingham train"


class _OwnNetworkError(Exception):
    """A run with a network of the user's own is loaded without that network, or a run is loaded with the wrong one."""


def _require_factory(network: str, factory: NetworkFactory | None) -> None:
    is_own = ":" in network
    if factory is None and is_own:
        raise _OwnNetworkError(f"is a run of your own network {network}; give it again with --model {network}")
    if factory is not None and factory_name(factory) != network:
        remedy = f"give --model {network}" if is_own else "leave --model out"
        raise _OwnNetworkError(f"is a run of the network {network}, not of {factory_name(factory)}; {remedy}")


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
    if not (
        isinstance(classes, list) and 0 < len(classes) <= 10_000 and all(isinstance(name, str) for name in classes)
    ):
        raise ValueError("classes is not a list of 1 to 10000 names")
    if len(set(classes)) < len(classes):
        raise ValueError("classes has a name twice")
    if not (isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and 0 < n <= 4096 for n in shape)):
        raise ValueError(f"input_shape is {shape!r}, three whole numbers from 1 to 4096 are needed")
    if shape[0] > 64:
        raise ValueError(f"input_shape is {shape!r}, with {shape[0]} channels; at most 64 are allowed")
    if invalid := [name for name in classes if not is_plain_name(name)]:
        raise ValueError(f"classes has the name {invalid[0]!r}, which is not in plain letters")
    for key, kind in (("data", dict), ("metrics", dict), ("environment", dict), ("test_openings", list)):
        if not isinstance(metadata[key], kind):
            raise ValueError(f"{key} is not a {kind.__name__}")
    validate_metadata(metadata)
    with torch.random.fork_rng(devices=[]):  # keep the caller's random state: the initial weights are overwritten
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


def _require_consistent(run: Run, metadata: Mapping[str, Any], folder: Path) -> None:
    """Check the values that model.json repeats for its readers: editing them there would have no effect."""
    expected = run.metadata()
    for key in ("network", "seed", "mean", "std", "temperature", "threshold"):
        if key not in metadata:
            raise RunError(f"{folder / METADATA_FILE} lacks the key {key!r}; restore it from a copy or train again")
        if metadata[key] != expected[key]:
            raise RunError(
                f"{folder / METADATA_FILE} says {key} {metadata[key]!r} where the recipe and weights beside it say "
                f"{expected[key]!r}; restore it from a copy"
            )
    if metadata.get("weights_sha256") != sha256(folder / WEIGHTS_FILE):
        raise RunError(
            f"{folder / WEIGHTS_FILE} is not the file that was saved (its SHA-256 differs); restore it from a copy"
        )


def _load_weights(model: Classifier, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    remedy = "restore the file from a copy or train again"
    expected = model.state_dict()
    tensors = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}
    for name, tensor in expected.items():
        if name not in tensors:
            raise RunError(f"{path} lacks the tensor {name}; {remedy}")
        if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
            raise RunError(
                f"{path} holds {name} as {tensors[name].dtype} {tuple(tensors[name].shape)}, the network needs "
                f"{tensor.dtype} {tuple(tensor.shape)}; {remedy}"
            )
        if tensors[name].is_floating_point() and not bool(tensors[name].isfinite().all()):
            raise RunError(f"{path} holds values in {name} that are not finite; {remedy}")
        is_divisor, is_variance = name in ("std", "temperature"), name.endswith("running_var")
        if (is_divisor and bool((tensors[name] <= 0).any())) or (is_variance and bool((tensors[name] < 0).any())):
            raise RunError(
                f"{path} holds values in {name} that no training gives, down to {tensors[name].min():g}; {remedy}"
            )
    if extra := sorted(set(tensors) - set(expected)):
        raise RunError(f"{path} holds a tensor {extra[0]} that the network does not have; {remedy}")
    model.load_state_dict(dict(tensors))


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        require_regular_file(path)
        entries = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if invalid := [number for number, entry in enumerate(entries, 1) if not isinstance(entry, dict)]:
            raise ValueError(f"line {invalid[0]} is not a JSON object")
        for number, entry in enumerate(entries, 1):
            validate_history_entry(entry, number)
        return entries
    except FileNotFoundError:
        return []  # a model can be used without its training history
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"cannot read {path} ({one_line(error)}); restore it from a copy, or remove it to go without"
        ) from error
