"""The Run class: a trained model with its recipe, history and metrics, saved and loaded without pickle."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from gingham.data.registry import REGISTRY
from gingham.device import forked_generators
from gingham.display import Displayable, html_text
from gingham.errors import GinghamError, ModelError, RunError, one_line, plural, require_types, suggest
from gingham.io import (
    is_run_folder,
    locked,
    read_json,
    read_tensors,
    require_regular_file,
    sha256,
    write_json,
    write_tensors,
    write_text,
)
from gingham.models.backbones import PREFIX, count_parameters
from gingham.models.classifier import Classifier
from gingham.models.novelty import Novelty
from gingham.models.registry import NetworkFactory, build_classifier, factory_name
from gingham.presets import RECIPES
from gingham.recipe import Recipe
from gingham.runs.checkpoint import has_checkpoint, load_checkpoint, remove_checkpoints, resume_options
from gingham.runs.schema import parse_history_entry, require_format, validate_metadata
from gingham.text import duration

SECTIONS = ("data", "metrics", "environment", "test_openings")  # of model.json, as in the Run
FORMAT = 3  # lower numbers were used before the first release
TRIALS_FILE = "trials.json"  # in a folder of runs that differ in their seeds
TINY = torch.finfo(torch.float32).tiny  # the smallest divisor that is allowed
POSITIVE = re.compile(r"std|temperature|novelty\.(term_std|layers\.\d+\.(scale|rest))")  # what others are divided by
WEIGHTS_FILE, METADATA_FILE, HISTORY_FILE = "model.safetensors", "model.json", "history.jsonl"
IMAGES_FILE = "images.safetensors"  # hashes, not images


@dataclass(repr=False)
class Run(Displayable):
    """A training run: the model and how it was trained.

    `history` has a dict for each step (`step loss accuracy learning_rate`) and each epoch (`epoch train_loss ...`);
    `metrics` what `gingham train --json` prints; `data` the dataset's name and fingerprint; `environment` the versions
    and hardware; `test_openings` a dict for every time predictions were computed on the test split; `folder` the folder
    the run is saved in, or None; `image_hashes` the `hash_images` of the "train" and "validation" images, including
    those of a run that it started from.
    """

    model: Classifier
    recipe: Recipe
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    test_openings: list[dict[str, Any]] = field(default_factory=list)
    folder: Path | None = None
    image_hashes: dict[str, torch.Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        metrics, measured = self.metrics, f"folder: {self.folder or 'not saved'}"
        if (accuracy := metrics.get("validation_accuracy")) is not None:
            measured = f"{accuracy:.2%} of the validation images right; {measured}"
        known: list[Any] = [metrics.get(key) for key in ("train_images", "epochs", "train_seconds")]
        if None not in known:
            count, epochs = plural(known[0], "image"), plural(known[1], "epoch", ".3g")
            trained = f"trained on {count} of {self.data.get('name')}, {epochs}, in {duration(known[2])}"
            measured = f"{trained}\n{measured}"
        network = f"network {self.recipe.network}, {len(self.model.classes)} classes"
        return f"run of {self.recipe.name} with seed {self.recipe.seed}: {network}\n{measured}"

    def plot(self) -> Any:
        """Return a figure of the loss and the accuracy over the epochs.

        Raises
            RunError: the run has no history, as the model that comes with Gingham.
        """
        from gingham.plots import draw_curves

        if not self._has_curves:
            raise RunError("the run has no history of its epochs to draw; load a run with its history.jsonl")
        title = f"{self.recipe.name}, seed {self.recipe.seed}"
        if (seconds := self.metrics.get("train_seconds")) is not None:
            title += f", {duration(seconds)}"
        hard_examples = self.recipe.hard_share < 1 and self.recipe.epochs > 1
        return draw_curves(self.history, title, hard_examples=hard_examples)

    @property
    def _has_curves(self) -> bool:
        return any("epoch" in entry for entry in self.history)

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self._has_curves else html_text(str(self))

    @property
    def teacher_names(self) -> str:
        """The recipes and seeds of the teachers, such as "accurate with seed 0", or an empty string."""
        teachers = self.data.get("teachers") or []
        return ", ".join(f"{teacher.get('recipe')} with seed {teacher.get('seed')}" for teacher in teachers)

    @property
    def origin_name(self) -> str:
        """What the weights were before training, such as "pretrained weights of timm/resnet18", or an empty string."""
        origin = self.data.get("origin") or {}
        if "pretrained" in origin:
            return f"pretrained weights of {origin['pretrained']}"
        return f"a run of {origin.get('run')} with seed {origin.get('seed')}" if origin else ""

    @property
    def is_of_garments(self) -> bool:
        """Whether the model classifies garments that are light on black, as in Fashion-MNIST."""
        garments = set(REGISTRY["fashion-mnist"].classes)
        is_fashion = self.data.get("name") == "fashion-mnist" or set(self.model.classes) == garments
        return self.model.input_shape[0] == 1 and is_fashion

    @property
    def grey_bits(self) -> int:
        """How many bits the values of 16-bit grey images use, by which photos are scaled too: 10, 12, 14 or 16."""
        return self.data.get("grey_bits") or 16

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
            "photo_threshold": float(self.model.photo_threshold),
            "novelty": self.model.novelty.metadata() if self.model.novelty else None,
            "recipe": self.recipe.to_dict(),
            "seed": self.recipe.seed,
            **{section: getattr(self, section) for section in SECTIONS},
        }


def save(run: Run, folder: str | Path, *, halved: bool = False) -> Path:
    """Write a run folder and return its path: `model.safetensors`, `history.jsonl`, `images.safetensors` (hashes of the
    training images), and last `model.json`, which marks the run as finished. Then remove the checkpoints.

    With `halved`, filters and matrices are stored in 16 bits (IEEE half precision), in half the space. Load the result
    of `halve` into the model before you evaluate it, so that the saved model is the one that was evaluated.

        gingham.save(run, "runs/fast")

    Raises
        GinghamError: the folder cannot be written.
        RunError: the folder contains another finished run, or trials.
    """
    require_types("save", run=(run, Run), folder=(folder, str | PathLike))
    folder = Path(folder).resolve()
    if run.folder != folder and ((folder / METADATA_FILE).exists() or is_run_folder(folder, TRIALS_FILE)):
        remedy = "give another folder, or load it with gingham.load"
        raise RunError(f"{folder} already contains a finished run or trials; {remedy}")
    tensors = run.model.state_dict()
    write_tensors(folder / WEIGHTS_FILE, halve(tensors) if halved else tensors)
    write_text(folder / HISTORY_FILE, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in run.history))
    if run.image_hashes:
        write_tensors(folder / IMAGES_FILE, run.image_hashes)
    run.folder = folder
    write_json(folder / METADATA_FILE, {**run.metadata(), "weights_sha256": sha256(folder / WEIGHTS_FILE)})
    remove_checkpoints(folder)
    return folder


def halve(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a model, with its filters and matrices as 16-bit floats."""
    return {name: tensor.half() if _is_filter(tensor) else tensor for name, tensor in tensors.items()}


def _is_filter(tensor: torch.Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.dim() >= 2 and tensor.numel() > 100


def record_test_use(run: Run, opening: dict[str, Any]) -> None:
    """Record a use of the test split in a run, and in its folder if it is saved. Uses by other processes are kept."""
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
        missing, damaged or of another shape; a network of your own is not passed, or is another one.
    """
    require_types("load", folder=(folder, str | PathLike))
    folder = Path(folder)
    path = folder / METADATA_FILE
    if not path.exists() or path.is_dir():
        raise RunError(_explain_missing_run(folder))
    metadata = read_json(path)
    require_format(path, metadata.get("format"), FORMAT, "train again")
    try:
        validate_metadata(metadata)
        recipe = Recipe.from_dict(metadata["recipe"])
        _require_network(folder, recipe.network, network)
        classes, shape = metadata["classes"], tuple(metadata["input_shape"])
        with forked_generators():  # keep the caller's random state: the initial weights are overwritten
            model = build_classifier(recipe.network, classes, shape, recipe.mean, recipe.std, recipe.tta, network)
    except RunError:
        raise
    except (GinghamError, TypeError, ValueError, OverflowError) as error:
        raise RunError(
            f"{path} does not describe a run ({one_line(error)}); restore it from a copy or train again"
        ) from error
    _load_weights(model, folder / WEIGHTS_FILE, metadata["novelty"])
    model.eval()  # as after training; threads that switched the mode would disturb each other
    sections = {section: metadata[section] for section in SECTIONS}
    hashes = _read_hashes(folder / IMAGES_FILE)
    history = _read_history(folder / HISTORY_FILE)
    run = Run(model, recipe, history, **sections, folder=folder.resolve(), image_hashes=hashes)
    # model.json repeats some values for readers. Editing them there would have no effect, so it is an error.
    actual = {**run.metadata(), "weights_sha256": sha256(folder / WEIGHTS_FILE)}
    for key in (
        "network",
        "seed",
        "mean",
        "std",
        "temperature",
        "threshold",
        "photo_threshold",
        "novelty",
        "weights_sha256",
    ):
        if metadata.get(key) != actual[key]:
            raise RunError(
                f"{path} has {key} {metadata.get(key)!r}, but the recipe and weights give {actual[key]!r}; "
                "restore the run from a copy"
            )
    return run


def _explain_missing_run(folder: Path) -> str:
    if has_checkpoint(folder):
        options = f"{resume_options(load_checkpoint(folder).metadata)} --resume --out {shlex.quote(str(folder))}"
        return (
            f"the run in {folder} is not finished; continue with resume=True in fit, or with the original command, "
            f"such as gingham train {options}"
        )
    beside = (folder if folder.exists() else Path("runs")).glob("*")
    runs = sorted(path for path in beside if is_run_folder(path, METADATA_FILE))
    if is_run_folder(folder, TRIALS_FILE):
        choice = f"one of its runs, such as {runs[0]}" if runs else "a run"
        return f"{folder} is a folder of trials; give {choice}, or compare it with other trials (gingham compare)"
    if runs and folder.exists():
        return f"{folder} is not a run but contains runs; give one, such as {runs[0]}"
    if folder.is_file():
        return f"{folder} is a file; give the folder of a run, such as {folder.parent}"
    if not folder.exists():
        advice = suggest(str(folder), map(str, runs)) if runs else "; give a run folder"
        option = f"--recipe {folder}" if str(folder) in RECIPES else f"--out {folder}"
        return f"there is no folder {folder}{advice}, or train one with gingham train {option}"
    return f"no run in {folder} ({METADATA_FILE} is missing); give a run folder, or train one with gingham train"


def _require_network(folder: Path, name: str, factory: NetworkFactory | None) -> None:
    if name.startswith(PREFIX):
        try:
            count = count_parameters(name.removeprefix(PREFIX))
        except ModelError as error:
            raise RunError(f"{folder}: {error}") from error
        weights = folder / WEIGHTS_FILE
        if weights.exists() and count > weights.stat().st_size:  # before they are allocated: the files are untrusted
            raise RunError(
                f"{folder} names the network {name} with {count:,} parameters, but {WEIGHTS_FILE} has fewer; restore "
                "the run from a copy or train again"
            )
    given = None if factory is None else factory_name(factory)
    needed = name if ":" in name else None
    if given != needed:
        remedy = f"give its class as network (--model {name})" if needed else "leave network out (--model)"
        raise RunError(f"{folder} is a run with the network {name}, not with {given or 'a built-in one'}; {remedy}")


def _load_weights(model: Classifier, path: Path, novelty: dict[str, Any] | None) -> None:
    tensors, _ = read_tensors(path)
    remedy = "restore the file from a copy or train again"
    try:
        if novelty is not None:
            model.set_novelty(Novelty.with_shapes_of(tensors, novelty["stages"]))
        model.load_state_dict(tensors)  # converts 16-bit tensors to the model's 32 bits
    except (RuntimeError, IndexError, KeyError, AttributeError, ValueError) as error:
        raise RunError(f"{path} does not fit the network ({one_line(error)}); {remedy}") from error
    for name, tensor in model.state_dict().items():
        least = TINY if POSITIVE.fullmatch(name) else 0 if name.endswith("running_var") else -math.inf
        if not bool(((tensor >= least) & tensor.isfinite()).all()):
            raise RunError(f"{path} has values in {name} that training cannot give; {remedy}")


def _read_hashes(path: Path) -> dict[str, torch.Tensor]:
    """Return the hashes of the images that a run was trained and evaluated on; empty if the file does not exist."""
    if not path.exists():
        return {}
    hashes = read_tensors(path)[0]
    if "train" not in hashes or any(tensor.dtype != torch.int64 or tensor.ndim != 1 for tensor in hashes.values()):
        raise RunError(f"{path} does not contain hashes of training images; restore it from a copy, or remove it")
    return {name: tensor.clone() for name, tensor in hashes.items()}  # Windows cannot replace a file that is mapped


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        require_regular_file(path)
        lines = path.read_text(encoding="utf-8").splitlines()
        return [parse_history_entry(line, number) for number, line in enumerate(lines, 1)]
    except FileNotFoundError:
        return []  # a model can be used without its training history
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"cannot read {path} ({one_line(error)}); restore it from a copy, or remove it to load the run without it"
        ) from error
