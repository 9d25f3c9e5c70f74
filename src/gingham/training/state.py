"""Everything that changes while a network trains: saved in checkpoints and restored from them to the same bits."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gingham.data.sampler import Sampler
from gingham.data.splits import Split
from gingham.device import processor
from gingham.errors import RunError, listed, one_line
from gingham.models.classifier import Classifier
from gingham.recipe import Recipe
from gingham.runs.checkpoint import Checkpoint, options_of, save_checkpoint
from gingham.training.history import History


@dataclass
class State:
    """All that changes while a network is trained, and what it is trained on."""

    recipe: Recipe
    train: Split
    model: Classifier
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    history: History
    environment: dict[str, Any]  # what the bits of the weights depend on beside all that
    teachers: tuple[str, ...] = ()  # checksums of their weights
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # the weights of the best look, with patience
    average: dict[str, torch.Tensor] = field(default_factory=dict)  # the running mean of the weights, with averaging

    def keep_best(self, done: int) -> bool:
        """Keep the weights if the validation split was never answered better; return whether patience has run out."""
        looks = self.history.looks()
        if not looks or looks[-1]["step"] != done:
            return False
        since = self.history.looks_since_best()
        if since == 0:
            self.best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        if since >= self.recipe.patience:
            self.history.steps = done
        return since >= self.recipe.patience

    def note_weights(self, step: int) -> None:
        """Let the running mean of weights and statistics go on, with averaging, after a step counted from 0.

        The mean starts at the first step's weights and is short at first, so that it forgets them. torch's AveragedModel does the
        same but reads a counter back at each step, for which a GPU would be waited for.
        """
        if not self.recipe.averaging:
            return
        decay = min(self.recipe.averaging, (1 + step) / (10 + step))
        live = self.model.state_dict()
        if not self.average:
            self.average = {name: tensor.clone() for name, tensor in live.items() if tensor.is_floating_point()}
        torch._foreach_lerp_(list(self.average.values()), [live[name] for name in self.average], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the model have the running mean for as long as the block lasts, in the same memory."""
        places = self.model.state_dict()
        live = {name: places[name].clone() for name in self.average}
        self._fill(self.average)
        try:
            yield
        finally:
            self._fill(live)

    def _fill(self, tensors: dict[str, torch.Tensor]) -> None:
        places = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in tensors.items():
                places[name].copy_(tensor)

    def take_final(self) -> None:
        """Give the model the weights that are kept: those of the best look with patience, the running mean with averaging."""
        self._fill(self.best or self.average)

    def save(self, folder: Path, done: int, train_seconds: float) -> None:
        """Write a checkpoint: weights, optimizer, order of the pictures, history. All other draws follow from seed and step."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items() if torch.is_tensor(value)}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        tensors |= {"sampler.order": self.sampler.order, "sampler.losses": self.sampler.losses}
        tensors |= {"history.losses": self.history.losses[:done], "history.hits": self.history.hits[:done]}
        facts = {"step": done, "train_seconds": train_seconds, "epochs": self.history.epochs, "environment": self.environment}
        facts["dataset"] = self.train.dataset
        facts |= self.identity()
        save_checkpoint(folder, done, tensors, facts)

    def restore(self, checkpoint: Checkpoint, folder: Path) -> tuple[int, float]:
        """Restore what `save` wrote; return the step to go on from and the seconds spent. `folder` is what errors call the run.

        Raises
            RunError: the checkpoint was made with other settings, or holds other tensors than this training has.
        """
        tensors, facts = checkpoint.tensors, checkpoint.facts
        now = self.identity()
        before = {
            **Recipe().to_dict(),
            **(facts["recipe"] if isinstance(facts.get("recipe"), dict) else {}),
            **{key: facts.get(key) for key in ("fingerprint", "train_images")},
            "teachers": facts.get("teachers", []),
        }
        wanted = {**now.pop("recipe"), **now}
        del wanted["checkpoint_seconds"]  # it does not touch the weights
        if changed := [f"{key} {before.get(key)}, not {value}" for key, value in wanted.items() if before.get(key) != value]:
            raise RunError(
                f"the checkpoint in {folder} was made with {listed(changed)}; resume with the same settings ({options_of(facts)}), or give "
                "another --out"
            )
        try:
            self.model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
            places = self.model.state_dict()
            self.best, self.average = (
                {
                    name.removeprefix(kind): _laid_out(tensor, places[name.removeprefix(kind)])
                    for name, tensor in tensors.items()
                    if name.startswith(kind)
                }
                for kind in ("best.", "average.")
            )
            parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, index, key = name.split(".", 2)
                    state.setdefault(int(index), {})[key] = _laid_out(tensor, parameters[int(index)])
            self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
            done = facts["step"]
            self._require_sense(done, tensors, facts)
            device = self.sampler.losses.device
            self.sampler.order, self.sampler.losses = (tensors[f"sampler.{key}"].to(device) for key in ("order", "losses"))
            self.history.losses[:done], self.history.hits[:done] = tensors["history.losses"], tensors["history.hits"]
            self.history.epochs = facts["epochs"]
            if self.recipe.patience and self.history.looks_since_best() >= self.recipe.patience:
                self.history.steps = done  # it had just stopped early
            return done, float(facts["train_seconds"])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise RunError(
                f"the checkpoint in {folder} does not fit ({one_line(error)}); remove {folder / 'checkpoint'} to start over"
            ) from error

    def _require_sense(self, done: Any, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Raise a ValueError unless this training can be `done` steps along with such an order, history and epochs."""
        sampler = self.sampler
        if type(done) is not int or not 0 < done <= sampler.steps:
            raise ValueError(f"its step is {done!r}, of {sampler.steps}")
        images = sampler.pictures(sampler.position(done - 1)[0])
        sizes = {"sampler.order": images, "sampler.losses": sampler.images, "history.losses": done, "history.hits": done}
        for name, size in sizes.items():
            kind = torch.long if name == "sampler.order" else torch.float32
            if tensors[name].shape != (size,) or tensors[name].dtype != kind or bool(tensors[name].isnan().any()):
                raise ValueError(f"{name} is not {size} numbers")
        if not 0 <= int(tensors["sampler.order"].min()) <= int(tensors["sampler.order"].max()) < sampler.images:
            raise ValueError("sampler.order names pictures that there are not")
        last = 0
        for entry in facts["epochs"]:
            measured = [entry[key] for key in ("epoch", "train_loss", "train_accuracy")]
            looked = [entry[key] for key in ("validation_loss", "validation_accuracy") if entry[key] is not None]
            if not all(type(number) in (int, float) for number in (entry["step"], *measured, *looked)) or len(looked) == 1:
                raise ValueError("an epoch of it has other than numbers")
            if not last < entry["step"] <= done:
                raise ValueError(f"an epoch of it ends at step {entry['step']}, after {last} and with {done} done")
            last = entry["step"]

    def inexact(self, checkpoint: Checkpoint) -> list[str]:
        """Return a sentence where the weights may not come out to the bit as they would have without the interruption."""
        before, now = checkpoint.facts.get("environment"), self.environment
        before = before if isinstance(before, dict) else {}
        changed = [
            f"{name} {before.get(name)} before and {value} now" for name, value in now.items() if before.get(name) != value
        ]
        if changed:
            return [f"the weights will not be to the bit those of an uninterrupted run: {', '.join(changed)}"]
        if now["device"] != "cpu":
            return [
                f"the weights may differ in their last bits from those of an uninterrupted run, as {now['device']} adds in no fixed order"
            ]
        return []

    def identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        facts = {"fingerprint": self.train.fingerprint, "train_images": len(self.train), "teachers": list(self.teachers)}
        return {"recipe": self.recipe.to_dict(), **facts}


def environment_of(device: torch.device, precision: str, processes: int) -> dict[str, Any]:
    """Return what sums are taken in another order by, or to another precision."""
    return {
        "device": str(device),
        "precision": precision,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": processor(),
    }


def _laid_out(tensor: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor in the memory format of its `place`: another one may take another kernel, and end in other bits."""
    if tensor.shape != place.shape:
        raise ValueError(f"it has a tensor of {tuple(tensor.shape)} where {tuple(place.shape)} is needed")
    return torch.empty_like(place).copy_(tensor)
