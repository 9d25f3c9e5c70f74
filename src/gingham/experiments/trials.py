"""Train one recipe with several seeds, and summarize the accuracies."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gingham.data.splits import DataSplits, Split
from gingham.display import Displayable
from gingham.errors import GinghamError, ModelError, RunError, TrainingError, plural, require_types
from gingham.evaluation.evaluate import correct_predictions, evaluate
from gingham.evaluation.metrics import mean_interval, proportion_interval
from gingham.io import locked, read_json, write_json
from gingham.models.registry import factory_name
from gingham.recipe import Recipe, describe_changes
from gingham.runs.checkpoint import has_checkpoint
from gingham.runs.run import FORMAT, METADATA_FILE, TRIALS_FILE, Run, load, save
from gingham.runs.schema import require_format
from gingham.text import duration
from gingham.training.distillation import teacher_checksums, validate_teachers
from gingham.training.fit import fit
from gingham.training.options import FitOptions
from gingham.training.validate import resolve_recipe


@dataclass(frozen=True, repr=False)
class Trials(Displayable):
    """The results of a recipe over several seeds. `print(trials)` shows a table.

    `accuracies` are fractions, one for each of `seeds`. `dead` are the seeds whose network is no better than always
    predicting the most common class. `failed` maps the seeds whose training failed, which have no accuracy, to their
    error messages.
    """

    recipe: Recipe
    split: str
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    train_seconds: tuple[float, ...]
    dead: tuple[int, ...]
    failed: dict[int, str]
    folder: Path

    @property
    def mean(self) -> float:
        return statistics.mean(self.accuracies)

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds, or None for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (Student's t) of the mean over all seeds on the same images.

        It is None for one seed and for equal accuracies, which show no spread.
        """
        return mean_interval(self.accuracies) if self.std else None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the statistics as JSON values."""
        best, worst = (choose(range(len(self.seeds)), key=self.accuracies.__getitem__) for choose in (max, min))
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()},
            "recipe": self.recipe.name,
            "mean": self.mean,
            "std": self.std,
            "interval": None if self.interval is None else list(self.interval),
            "best": {"seed": self.seeds[best], "accuracy": self.accuracies[best]},
            "worst": {"seed": self.seeds[worst], "accuracy": self.accuracies[worst]},
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "train_seconds": statistics.median(self.train_seconds),
            "folder": str(self.folder),
        }

    def plot(self) -> Any:
        """Return a figure of the accuracy of each seed and their mean."""
        from gingham.plots import draw_seeds

        title = f"{self.recipe.name}: {self.split} images"
        return draw_seeds(self.seeds, self.accuracies, self.interval, title)

    def __str__(self) -> str:
        values, seeds = self.to_dict(), _format_seeds(self.seeds)
        if self.std is None:
            lines = [f"{self.mean:.2%} on the {self.split} images (the spread is unknown with one seed): {seeds}"]
        else:
            mean = f"{self.mean:.2%} ± {self.std:.2%} on the {self.split} images"
            interval = "unknown, as all seeds have the same accuracy; train more, and check that none is a copy"
            if self.interval is not None:
                interval = "{:.2%} to {:.2%} (95 %, of the mean over seeds)".format(*self.interval)
            lines = [f"{mean}, mean and standard deviation over {seeds}", f"interval  {interval}"]
        lines += [f"{key:<9} {values[key]['accuracy']:.2%}, seed {values[key]['seed']}" for key in ("best", "worst")]
        if self.dead:
            lines.append(f"dead      {_format_seeds(self.dead)}: no better than always predicting the commonest class")
        lines += [f"failed    seed {seed}, not in the mean: {reason}" for seed, reason in self.failed.items()]
        lines.append(f"time      {duration(values['train_seconds'])} of training per seed (median)")
        return "\n".join(lines)


def _format_seeds(seeds: Sequence[int]) -> str:
    consecutive = len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{plural(len(seeds), 'seed')} ({f'{seeds[0]} to {seeds[-1]}' if consecutive else str(seeds)[1:-1]})"


@dataclass(frozen=True)
class TrialOptions(FitOptions):
    """Options of `fit` for every seed, and `on_seed(seed, run, was_finished)`, which is called after each seed.

    `run` is None if the training failed; `was_finished` is true for a run that existed before.
    """

    on_seed: Callable[[int, Run | None, bool], None] | None = None


def trials(
    recipe: Recipe,
    data: DataSplits,
    seeds: Sequence[int],
    folder: str | Path,
    *,
    split: str = "validation",
    progress: bool = True,
    options: FitOptions = TrialOptions(),
) -> Trials:
    """Train a recipe with each seed, one after the other, and return the results.

    Each seed becomes a run in `folder`/seed-N, with its predictions. Finished runs are loaded instead of trained, and
    an interrupted run resumes from its last checkpoint. If `split` is "test", each run is evaluated on it once, after
    the last training. `progress` and `options` are those of `fit`; `TrialOptions` can also call a function after each
    seed.

        result = gingham.trials(gingham.RECIPES["fast"], data, seeds=range(10), folder="runs/fast-trials")
        result.mean, result.std, result.interval

    Raises
        GinghamError: there are no seeds, the split is unknown, every training failed, or the folder contains trials of
            another recipe, other data, other teachers or another format, or a run with another seed or recipe.
        DataError: a teacher was trained on other images.
    """
    require_types("trials", recipe=(recipe, Recipe), data=(data, DataSplits))
    folder, seeds = Path(folder), list(dict.fromkeys(seeds))
    if not seeds:
        raise GinghamError("trials got no seeds; give at least one, preferably ten")
    chosen = _choose_split(data, split)
    if options.network is not None:
        recipe = recipe.replace(network=factory_name(options.network))
    validate_teachers(options.teachers, recipe, data.train, data.validation)
    with locked(folder, wait=False):
        _write_or_check_manifest(folder, recipe, data, teacher_checksums(options.teachers))
        failed: dict[int, str] = {}
        for seed in seeds:
            seed_folder = folder / f"seed-{seed}"
            was_finished = (seed_folder / METADATA_FILE).exists()
            run = None
            try:
                run = _run_seed(recipe.replace(seed=seed), data, seed_folder, progress, options)
            except (ModelError, TrainingError) as error:
                failed[seed] = str(error)
            if isinstance(options, TrialOptions) and options.on_seed is not None:
                options.on_seed(seed, run, was_finished)
        trained = [seed for seed in seeds if seed not in failed]
        if not trained:
            raise GinghamError(f"all trainings failed ({plural(len(seeds), 'seed')}: {failed[seeds[0]]})")
        return _summarize(recipe, folder, trained, failed, chosen, options)


def _choose_split(data: DataSplits, name: str) -> Split:
    if name not in ("validation", "test"):
        raise GinghamError(f"split got {name!r}; allowed: validation, test")
    chosen = data.test if name == "test" else data.validation
    if chosen is None:
        raise GinghamError("no images are held out for validation; set validation_images=5000, or use the test split")
    return chosen


def _write_or_check_manifest(folder: Path, recipe: Recipe, data: DataSplits, teachers: list[str]) -> None:
    """Write the recipe, data and teachers of the trials in a folder, or check that they are the same as before."""
    held_out = len(data.validation) if data.validation else 0
    fields = recipe.replace(validation_images=held_out, size=data.train.size).to_dict()
    fields |= {"seed": None, "checkpoint_seconds": None}
    settings = {"recipe": fields, "fingerprint": data.fingerprint, "teachers": teachers}
    manifest = folder / TRIALS_FILE
    if manifest.exists():
        stored = read_json(manifest)
        recipe_fields = stored.get("recipe")
        # Format 1 had other fields and no format number; the first manifests of format 2 had no number either.
        is_old = isinstance(recipe_fields, dict) and not recipe_fields.keys() <= fields.keys()
        require_format(manifest, stored.get("format", 1 if is_old else FORMAT), FORMAT, "give another folder (--out)")
        if changes := describe_changes(stored, settings):
            raise GinghamError(f"{folder} contains trials with {changes}; give another folder (--out)")
    elif any(folder.glob("*/" + METADATA_FILE)) or (folder / METADATA_FILE).exists() or has_checkpoint(folder):
        raise GinghamError(f"{folder} contains runs but no trials; give another folder (--out)")
    else:
        write_json(manifest, {"format": FORMAT, **settings, "data": data.name})


def _run_seed(recipe: Recipe, data: DataSplits, folder: Path, progress: bool, options: FitOptions) -> Run:
    with locked(folder, wait=False):  # gingham train may write to the same folder
        if (folder / METADATA_FILE).exists():
            run = load(folder, options.network)
            expected = resolve_recipe(recipe, data.train, data.validation, options)
            settings = {"recipe": expected.to_dict(), "fingerprint": data.fingerprint}
            if changes := describe_changes({**run.data, "recipe": run.recipe.to_dict()}, settings):
                raise GinghamError(f"{folder} contains a run with {changes}; move it to another folder")
            return run
        run = fit(recipe, data.train, data.validation, folder=folder, resume=True, progress=progress, options=options)
        save(run, folder)
    if data.validation is not None:
        evaluate(run, data.validation)  # saves the predictions
    return run


def _summarize(
    recipe: Recipe, folder: Path, seeds: Sequence[int], failed: dict[int, str], split: Split, options: FitOptions
) -> Trials:
    accuracies, train_seconds, dead = [], [], []
    majority_share = max(split.counts().values()) / len(split)
    for seed in seeds:
        run = load(folder / f"seed-{seed}", options.network)
        correct = correct_predictions(run, split)
        accuracies.append(float(correct.double().mean()))
        if (seconds := run.metrics.get("train_seconds")) is None:
            raise RunError(f"{run.folder} has no train_seconds in its metrics; remove it to train this seed again")
        train_seconds.append(float(seconds))
        if proportion_interval(int(correct.sum()), len(correct))[0] <= majority_share:
            dead.append(seed)
    return Trials(
        recipe, split.name, tuple(seeds), tuple(accuracies), tuple(train_seconds), tuple(dead), failed, folder
    )
