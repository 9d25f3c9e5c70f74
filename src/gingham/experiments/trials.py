"""Trials: one recipe trained with many seeds, with mean and interval."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gingham.data.splits import DataSplits, Split
from gingham.errors import GinghamError, RunError, TrainingError, list_differences
from gingham.evaluation.evaluate import correct_predictions, evaluate
from gingham.evaluation.metrics import mean_interval, proportion_interval
from gingham.io import locked, read_json, require_writable, write_json
from gingham.models.registry import NetworkFactory, factory_name
from gingham.recipe import Recipe
from gingham.runs.run import METADATA_FILE, TRIALS_FILE, Run, load, save
from gingham.text import duration
from gingham.training.distillation import validate_teachers
from gingham.training.fit import fit


@dataclass(frozen=True)
class Trials:
    """What a recipe came to over seeds.

    `accuracies` are fractions, one a seed in the order of `seeds`; `dead` are the seeds whose network is no better than
    always naming the commonest class, and `failed` those whose training stopped with an error, by seed, which have no
    accuracy. `print(trials)` shows a table.
    """

    recipe: Recipe
    split: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    train_seconds: tuple[float, ...]
    dead: tuple[int, ...]
    failed: dict[int, str] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float | None:
        """The standard deviation over seeds, of a sample; None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean over all seeds lies, at 95 % (Student's t), on these same pictures; None for one seed."""
        return mean_interval(self.accuracies) if len(self.accuracies) > 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        best, worst = (choose(range(len(self.seeds)), key=self.accuracies.__getitem__) for choose in (max, min))
        return {
            "recipe": self.recipe.name,
            "split": self.split,
            "seeds": list(self.seeds),
            "accuracies": list(self.accuracies),
            "mean": self.mean,
            "std": self.std,
            "interval": None if self.interval is None else list(self.interval),
            "best": {"seed": self.seeds[best], "accuracy": self.accuracies[best]},
            "worst": {"seed": self.seeds[worst], "accuracy": self.accuracies[worst]},
            "dead": list(self.dead),
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "train_seconds": statistics.median(self.train_seconds),
            "folder": None if self.folder is None else str(self.folder),
        }

    def __str__(self) -> str:
        values = self.to_dict()
        spread = "" if self.std is None else f" ± {self.std:.2%}"
        what = "one seed alone says nothing of the spread:" if self.std is None else "mean and standard deviation over"
        lines = [f"{self.mean:.2%}{spread} on the {self.split} pictures, {what} {_seeds(self.seeds)}"]
        if self.interval is not None:
            lines.append(f"interval  {self.interval[0]:.2%} to {self.interval[1]:.2%} (95 %, of the mean over seeds)")
        lines += [f"{name:<9} {values[name]['accuracy']:.2%}, seed {values[name]['seed']}" for name in ("best", "worst")]
        if self.dead:
            lines.append(f"dead      {_seeds(self.dead)}: no better than always naming the commonest class")
        for seed, reason in self.failed.items():
            lines.append(f"failed    seed {seed}, not in the mean: {reason}")
        lines.append(f"time      {duration(values['train_seconds'])} of training a seed (median)")
        return "\n".join(lines)


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"1 seed ({seeds[0]})"
    whole = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{len(seeds)} seeds ({f'{seeds[0]} to {seeds[-1]}' if whole else ', '.join(map(str, seeds))})"


def trials(
    recipe: Recipe,
    data: DataSplits,
    seeds: Sequence[int],
    folder: str | Path,
    *,
    split: str = "validation",
    device: str = "auto",
    network: NetworkFactory | None = None,
    teachers: Sequence[Run] = (),
    progress: bool = True,
    on_seed: Callable[[int, Run | None, bool], None] | None = None,
) -> Trials:
    """Train a recipe with each of some seeds, one after the other, and return what they came to.

    Each is a run of its own in `folder`/seed-N, with its predictions; what is there already is kept, so an interrupted
    call goes on where it was, a seed that was under way from its last checkpoint. The test split, if that is asked
    for, is opened once by each run, after the last has been trained. `network` and `teachers` are those of `fit`.
    `on_seed(seed, run, kept)` is called after each, with None for one whose training failed; `kept` is true for one that was there already.

        found = gingham.trials(gingham.RECIPES["fast"], data, seeds=range(10), folder="runs/fast-trials")
        found.mean, found.std, found.interval

    Raises
        GinghamError: no seeds, an unknown split, a folder with trials of another recipe, data or teachers, every seed failed.
        DataError: a teacher that was trained on other pictures.
    """
    folder = Path(folder)
    wanted = list(dict.fromkeys(seeds))
    if not wanted:
        raise GinghamError("trials got no seeds; give at least one, better ten")
    chosen = _split(data, split, recipe)
    if network is not None:
        recipe = recipe.replace(network=factory_name(network))
    taught_by = validate_teachers(teachers, recipe, data.train, data.validation)
    require_writable(folder)
    with locked(folder, wait=False):
        _claim(folder, recipe, data, taught_by)
        failed: dict[int, str] = {}
        trained = []
        for seed in wanted:
            kept = (folder / f"seed-{seed}" / METADATA_FILE).exists()
            try:
                run = _one(recipe.replace(seed=seed), data, folder / f"seed-{seed}", device, network, teachers, progress)
                trained.append(seed)
            except TrainingError as error:
                run, failed[seed] = None, str(error)
            if on_seed is not None:
                on_seed(seed, run, kept)
        if not trained:
            raise GinghamError(f"not one of {len(wanted)} seeds could be trained ({failed[wanted[0]]})")
        return _gather(recipe, folder, trained, failed, chosen, network)


def _split(data: DataSplits, name: str, recipe: Recipe) -> Split:
    if name not in ("validation", "test"):
        raise GinghamError(f"--split got {name!r}; allowed: validation, test")
    chosen = data.test if name == "test" else data.validation
    if chosen is None:
        raise GinghamError(
            f"the recipe {recipe.name} holds no pictures out (validation_images=0), so only the test split is left to measure "
            "on; say --split test, or hold some out with --set validation_images=5000"
        )
    return chosen


def _claim(folder: Path, recipe: Recipe, data: DataSplits, teachers: Sequence[str]) -> None:
    """Write down what the trials in a folder are of, or see that it is the same."""
    held_out = len(data.validation) if data.validation else 0
    known = recipe.replace(validation_images=held_out, size=data.train.size).to_dict()
    settings = {**known, "seed": None, "checkpoint_seconds": None}
    now = {"recipe": settings, "data": data.name, "fingerprint": data.fingerprint, "teachers": list(teachers)}
    if not (folder / TRIALS_FILE).exists():
        if any(folder.glob("*/" + METADATA_FILE)) or (folder / METADATA_FILE).exists():
            raise GinghamError(f"{folder} holds runs, but no trials; give another --out")
        write_json(folder / TRIALS_FILE, now)
        return
    before = read_json(folder / TRIALS_FILE)
    theirs = before.get("recipe") if isinstance(before.get("recipe"), dict) else {}
    assert isinstance(theirs, dict)
    theirs = {**Recipe().to_dict(), **theirs}  # a field they do not have yet
    changed = [f"{key} {theirs.get(key)}, not {value}" for key, value in settings.items() if theirs.get(key) != value]
    changed += [f"data {before.get('data')}, not {data.name}"] * (before.get("fingerprint") != data.fingerprint)
    changed += ["other teachers"] * (before.get("teachers", []) != list(teachers))
    if changed:
        raise GinghamError(f"{folder} holds trials with {list_differences(changed)}; give another --out")


def _one(
    recipe: Recipe,
    data: DataSplits,
    folder: Path,
    device: str,
    network: NetworkFactory | None,
    teachers: Sequence[Run],
    progress: bool,
) -> Run:
    require_writable(folder)
    with locked(folder, wait=False):  # train may be told to write there
        if (folder / METADATA_FILE).exists():
            return load(folder, network)
        run = fit(
            recipe,
            data.train,
            data.validation,
            folder=folder,
            resume=True,
            device=device,
            network=network,
            teachers=teachers,
            progress=progress,
        )
        save(run, folder)
    if data.validation is not None:
        evaluate(run, data.validation)  # keeps the predictions
    return run


def _gather(
    recipe: Recipe, folder: Path, seeds: Sequence[int], failed: dict[int, str], split: Split, network: NetworkFactory | None
) -> Trials:
    accuracies, seconds, dead = [], [], []
    commonest = max(split.counts().values()) / len(split)
    for seed in seeds:
        run = load(folder / f"seed-{seed}", network)
        right = correct_predictions(run, split)
        accuracies.append(float(right.double().mean()))
        if (took := run.metrics.get("train_seconds")) is None:
            raise RunError(f"{run.folder} does not say how long it trained (train_seconds); remove it to train that seed again")
        seconds.append(float(took))
        if proportion_interval(int(right.sum()), len(right))[0] <= commonest:
            dead.append(seed)
    return Trials(recipe, split.name, tuple(seeds), tuple(accuracies), tuple(seconds), tuple(dead), failed, folder)
