"""Everything that changes while a network trains: saved in checkpoints and restored from them to the same bits."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.device import processor
from gingham.errors import RunError, list_differences, one_line
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.runs.checkpoint import Checkpoint, resume_options, save_checkpoint
from gingham.training.ema import EMA, copy_weights
from gingham.training.history import History


@dataclass
class TrainingState:
    """Everything that changes while a network trains, and what it is trained on."""

    recipe: Recipe
    train: Split
    model: Classifier
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    history: History
    environment: dict[str, Any]  # from `numeric_environment`
    teachers: tuple[str, ...] = ()  # checksums of their weights
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # the weights of the best evaluation, with patience
    ema: EMA = field(default_factory=dict)  # where the recipe has an `ema_decay`

    def keep_best(self, done: int) -> bool:
        """Keep the weights if the last evaluation is the best so far; return whether patience has run out."""
        evaluations = self.history.evaluations()
        if not evaluations or evaluations[-1]["step"] != done:
            return False
        since = self.history.evaluations_since_best()
        if since == 0:
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if since >= self.recipe.patience:
            self.history.steps = done
        return since >= self.recipe.patience

    def load_final_weights(self) -> None:
        """Load the weights that the run keeps: those of the best evaluation with patience, the EMA where the recipe has one."""
        copy_weights(self.model, self.best or self.ema)

    def save(self, folder: Path, done: int, train_seconds: float) -> None:
        """Write a checkpoint: weights, optimizer, sampler and history. Every other random draw follows from the seed and the step."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        tensors |= {"sampler.order": self.sampler.order, "sampler.losses": self.sampler.losses}
        tensors |= {"history.losses": self.history.losses[:done], "history.correct": self.history.correct[:done]}
        metadata = {
            "step": done,
            "train_seconds": train_seconds,
            "epochs": self.history.epochs,
            "environment": self.environment,
        }
        metadata["dataset"] = self.train.dataset
        metadata |= self.identity()
        save_checkpoint(folder, done, tensors, metadata)

    def restore(self, checkpoint: Checkpoint, folder: Path) -> tuple[int, float]:
        """Restore what `save` wrote; return the step to continue from and the seconds spent. Error messages name `folder`.

        Raises
            RunError: the checkpoint was made with other settings, or its tensors do not fit this training.
        """
        tensors, metadata = checkpoint.tensors, checkpoint.metadata
        now = self.identity()
        before = {
            **Recipe().to_dict(),
            **(metadata["recipe"] if isinstance(metadata.get("recipe"), dict) else {}),
            **{key: metadata.get(key) for key in ("fingerprint", "train_images")},
            "teachers": metadata.get("teachers", []),
        }
        wanted = {**now.pop("recipe"), **now}
        del wanted["checkpoint_seconds"]  # has no influence on the weights
        if changed := [
            f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value
        ]:
            raise RunError(
                f"the checkpoint in {folder} was made with {list_differences(changed)}; resume with the same settings "
                f"({resume_options(metadata)}), or give another --out"
            )
        try:
            self.model.load_state_dict(
                {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
            )
            weights = self.model.state_dict()
            self.best, self.ema = (
                {
                    name.removeprefix(kind): _with_layout_of(weights[name.removeprefix(kind)], tensor)
                    for name, tensor in tensors.items()
                    if name.startswith(kind)
                }
                for kind in ("best.", "ema.")
            )
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".", 2)
                    state.setdefault(int(index), {})[key] = _with_layout_of(parameters[int(index)], tensor)
            self.optimizer.load_state_dict(
                {"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]}
            )
            done = metadata["step"]
            self._validate(done, tensors, metadata)
            device = self.sampler.losses.device
            self.sampler.order, self.sampler.losses = (
                tensors[f"sampler.{key}"].to(device) for key in ("order", "losses")
            )
            self.history.losses[:done], self.history.correct[:done] = (
                tensors["history.losses"],
                tensors["history.correct"],
            )
            self.history.epochs = metadata["epochs"]
            if self.recipe.patience and self.history.evaluations_since_best() >= self.recipe.patience:
                self.history.steps = done  # training had just stopped early
            return done, float(metadata["train_seconds"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the checkpoint in {folder} does not fit ({one_line(error)}); remove {folder / 'checkpoint'} to start "
                "over"
            ) from error

    def _validate(self, done: Any, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        """Raise a ValueError unless the order, history and epochs are possible for this training after `done` steps."""
        sampler = self.sampler
        if type(done) is not int or not 0 < done <= sampler.steps:
            raise ValueError(f"its step is {done!r}, of {sampler.steps}")
        images = sampler.epoch_size(sampler.position(done - 1)[0])
        sizes = {
            "sampler.order": images,
            "sampler.losses": sampler.num_images,
            "history.losses": done,
            "history.correct": done,
        }
        for name, size in sizes.items():
            kind = torch.long if name == "sampler.order" else torch.float32
            if tensors[name].shape != (size,) or tensors[name].dtype != kind or bool(tensors[name].isnan().any()):
                raise ValueError(f"{name} is not {size} numbers")
        if not 0 <= int(tensors["sampler.order"].min()) <= int(tensors["sampler.order"].max()) < sampler.num_images:
            raise ValueError("sampler.order names pictures that there are not")
        last = 0
        for entry in metadata["epochs"]:
            measured = [entry[key] for key in ("epoch", "train_loss", "train_accuracy")]
            evaluated = [entry[key] for key in ("validation_loss", "validation_accuracy") if entry[key] is not None]
            if (
                not all(type(number) in (int, float) for number in (entry["step"], *measured, *evaluated))
                or len(evaluated) == 1
            ):
                raise ValueError("an epoch of it has other than numbers")
            if not last < entry["step"] <= done:
                raise ValueError(f"an epoch of it ends at step {entry['step']}, after {last} and with {done} done")
            last = entry["step"]

    def resume_warnings(self, checkpoint: Checkpoint) -> list[str]:
        """Return a sentence if the weights may differ in their last bits from those of a training without interruption."""
        before, now = checkpoint.metadata.get("environment"), self.environment
        before = before if isinstance(before, dict) else {}
        changed = [
            f"{name} {before.get(name)} before and {value} now"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changed:
            return [f"the weights will not be to the bit those of an uninterrupted run: {', '.join(changed)}"]
        if now["device"] != "cpu":
            return [
                (
                    f"the weights may differ in their last bits from those of an uninterrupted run, as {now['device']} "
                    "adds in no fixed order"
                )
            ]
        return []

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a training to be resumed."""
        data = {"fingerprint": self.train.fingerprint, "train_images": len(self.train), "teachers": list(self.teachers)}
        return {"recipe": self.recipe.to_dict(), **data}


def numeric_environment(device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """Return the settings that affect floating-point rounding."""
    return {
        "device": str(device),
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }


def _with_layout_of(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy of a tensor in the memory format of another: a different one may use another kernel, which rounds differently."""
    if tensor.shape != like.shape:
        raise ValueError(f"it has a tensor of {tuple(tensor.shape)} where {tuple(like.shape)} is needed")
    return torch.empty_like(like).copy_(tensor)
