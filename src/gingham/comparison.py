"""Trials: one recipe over many seeds, with mean and interval. compare(): is one better than another, by a paired test."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gingham.datasets import Data, Split
from gingham.errors import GinghamError, RunError, TrainingError
from gingham.evaluation import evaluate
from gingham.files import locked, read_json, require_writable, write_json
from gingham.metrics import mean_interval, proportion_interval
from gingham.models import NetworkFactory, name_of
from gingham.recipe import Recipe
from gingham.storage import FACTS, TRIALS, Run, load, load_predictions, save
from gingham.tables import duration
from gingham.training import fit

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95


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
    data: Data,
    seeds: Sequence[int],
    folder: str | Path,
    *,
    split: str = "validation",
    device: str = "auto",
    network: NetworkFactory | None = None,
    progress: bool = True,
    on_seed: Callable[[int, Run | None, bool], None] | None = None,
) -> Trials:
    """Train a recipe with each of some seeds, one after the other, and return what they came to.

    Each is a run of its own in `folder`/seed-N, with its predictions; what is there already is kept, so an interrupted
    call goes on where it was, a seed that was under way from its last checkpoint. The test split, if that is asked
    for, is opened once by each run, after the last has been trained. `on_seed(seed, run, kept)` is called after
    each, with None for one whose training failed; `kept` is true for one that was there already.

        found = gingham.trials(gingham.RECIPES["fast"], data, seeds=range(10), folder="runs/fast-trials")
        found.mean, found.std, found.interval

    Raises
        GinghamError: no seeds, an unknown split, a folder with trials of another recipe or data, every seed failed.
    """
    folder = Path(folder)
    wanted = list(dict.fromkeys(seeds))
    if not wanted:
        raise GinghamError("trials got no seeds; give at least one, better ten")
    chosen = _split(data, split, recipe)
    if network is not None:
        recipe = recipe.replace(network=name_of(network))
    require_writable(folder)
    with locked(folder, wait=False):
        _claim(folder, recipe, data)
        failed: dict[int, str] = {}
        trained = []
        for seed in wanted:
            kept = (folder / f"seed-{seed}" / FACTS).exists()
            try:
                run = _one(recipe.replace(seed=seed), data, folder / f"seed-{seed}", device, network, progress)
                trained.append(seed)
            except TrainingError as error:
                run, failed[seed] = None, str(error)
            if on_seed is not None:
                on_seed(seed, run, kept)
        if not trained:
            raise GinghamError(f"not one of {len(wanted)} seeds could be trained ({failed[wanted[0]]})")
        return _gather(recipe, folder, trained, failed, chosen, network)


def _split(data: Data, name: str, recipe: Recipe) -> Split:
    if name not in ("validation", "test"):
        raise GinghamError(f"--split got {name!r}; allowed: validation, test")
    chosen = data.test if name == "test" else data.validation
    if chosen is None:
        raise GinghamError(
            f"the recipe {recipe.name} holds no pictures out (validation_images=0), so only the test split is left to measure "
            "on; say --split test, or hold some out with --set validation_images=5000"
        )
    return chosen


def _claim(folder: Path, recipe: Recipe, data: Data) -> None:
    """Write down what the trials in a folder are of, or see that it is the same."""
    held_out = len(data.validation) if data.validation else 0
    settings = {**recipe.replace(validation_images=held_out).to_dict(), "seed": None, "checkpoint_seconds": None}
    now = {"recipe": settings, "data": data.name, "fingerprint": data.fingerprint}
    if not (folder / TRIALS).exists():
        if any(folder.glob("*/" + FACTS)) or (folder / FACTS).exists():
            raise GinghamError(f"{folder} holds runs, but no trials; give another --out")
        write_json(folder / TRIALS, now)
        return
    before = read_json(folder / TRIALS)
    theirs = before.get("recipe") if isinstance(before.get("recipe"), dict) else {}
    assert isinstance(theirs, dict)
    changed = [f"{key} {theirs.get(key)}, not {value}" for key, value in settings.items() if theirs.get(key) != value]
    changed += [f"data {before.get('data')}, not {data.name}"] * (before.get("fingerprint") != data.fingerprint)
    if changed:
        raise GinghamError(f"{folder} holds trials with {' and '.join(changed)}; give another --out")


def _one(recipe: Recipe, data: Data, folder: Path, device: str, network: NetworkFactory | None, progress: bool) -> Run:
    if (folder / FACTS).exists():
        return load(folder, network)
    run = fit(
        recipe, data.train, data.validation, folder=folder, resume=True, device=device, network=network, progress=progress
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
        right = right_answers(run, split)
        accuracies.append(float(right.double().mean()))
        seconds.append(float(run.metrics["train_seconds"]))
        if proportion_interval(int(right.sum()), len(right))[0] <= commonest:
            dead.append(seed)
    return Trials(recipe, split.name, tuple(seeds), tuple(accuracies), tuple(seconds), tuple(dead), failed, folder)


def right_answers(run: Run, split: Split) -> torch.Tensor:
    """Return which pictures of a split a run gets right, bool (N,): from the predictions it keeps, or evaluated anew."""
    kept = load_predictions(run, split.name, split.fingerprint)
    if kept is None or len(kept["labels"]) != len(split):
        evaluate(run, split)
        kept = load_predictions(run, split.name, split.fingerprint)
        assert kept is not None
    return kept["predicted"] == split.labels.cpu()


@dataclass(frozen=True)
class Comparison:
    """Whether B is better than A: `difference` is B's accuracy less A's, with its 95 % `interval`, both fractions.

    `p_value` is the probability of a difference at least as large if there were none. `verdict` says it in a sentence.
    `more_seeds` is how many seeds more on each side would show the difference if it is what it seems; None where it is
    shown already, where the pictures are what is scarce, or between two single runs.
    """

    kind: str
    split: str
    accuracies: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    p_value: float
    verdict: str
    more_seeds: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**vars(self), "accuracies": list(self.accuracies), "interval": list(self.interval)}

    def __str__(self) -> str:
        return self.verdict


def compare(
    a: str | Path,
    b: str | Path,
    splits: Callable[[Run], Split],
    *,
    networks: Sequence[NetworkFactory] = (),
) -> Comparison:
    """Compare two run folders, or two folders of trials, on the same pictures.

    Two runs: McNemar's exact test on the pictures that only one of them gets right. It speaks of these two networks, not
    of their recipes. Two sets of trials: a bootstrap over pictures and seeds, which speaks of the recipes. `splits(run)`
    gives the split to measure a run on; `networks` are the classes of those that are your own.

        gingham.compare("runs/fast-trials", "runs/other-trials", lambda run: data.validation).verdict

    Raises
        GinghamError: one is a run and the other trials, a folder is neither, or they were not measured on the same pictures.

    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947); Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), which draws both at once and is too cautious with few seeds: here each is drawn
    alone; Rao & Wu, "Resampling inference with complex survey data" (1988), for drawing one seed less than there are.
    """
    folders = [Path(a), Path(b)]
    for folder in folders:
        if not folder.is_dir():
            raise GinghamError(f"there is no folder {folder}; give two run folders, or two folders of trials")
    kinds = ["trials" if (folder / TRIALS).exists() else "runs" for folder in folders]
    if kinds[0] != kinds[1]:
        raise GinghamError(
            f"{folders[kinds.index('runs')]} is a single run and {folders[kinds.index('trials')]} a set of trials; compare two "
            "of a kind: gingham trials trains a recipe over seeds"
        )
    names, rows, split = [], [], None
    for folder in folders:
        runs = [_load(place, networks) for place in (_members(folder) if kinds[0] == "trials" else [folder])]
        own = splits(runs[0])
        if split is not None and (own.fingerprint != split.fingerprint or not torch.equal(own.labels, split.labels)):
            raise GinghamError(
                f"{folders[0]} and {folder} were not measured on the same pictures ({split.dataset}, {len(split)} and "
                f"{own.dataset}, {len(own)}); compare on data and validation_images they share"
            )
        split = own
        rows.append(torch.stack([right_answers(run, split) for run in runs]))
        names.append(str(folder))
    assert split is not None
    if kinds[0] == "runs":
        return _compare_runs(rows[0][0], rows[1][0], names, split.name)
    return _compare_trials(rows[0], rows[1], names, split.name)


def _load(folder: Path, networks: Sequence[NetworkFactory]) -> Run:
    own = {name_of(factory): factory for factory in networks}
    name = read_json(folder / FACTS).get("network") if own and (folder / FACTS).exists() else None
    return load(folder, own.get(name) if isinstance(name, str) else None)


def _members(folder: Path) -> list[Path]:
    members = sorted((path.parent for path in folder.glob(f"seed-*/{FACTS}")), key=lambda path: (len(path.name), path.name))
    if not members:
        raise RunError(f"no seed in {folder} is finished; go on with gingham trials --out {folder}")
    return members


def _compare_runs(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    import scipy.stats

    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    p_value = float(scipy.stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    difference = (only_b - only_a) / n
    # The interval of Agresti & Min (2005): half a picture added to each kind, so that it is not empty without any.
    shifted, total = (only_b - only_a) / (n + 2), only_a + only_b + 1
    error = math.sqrt(max(total - (only_b - only_a) ** 2 / (n + 2), 0)) / (n + 2)
    interval = (shifted - 1.96 * error, shifted + 1.96 * error)
    accuracies = (float(a.double().mean()), float(b.double().mean()))
    seen = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; {only_a} pictures that A alone gets right, {only_b} that B alone does; "
        f"McNemar's exact test, {_p(p_value)}"
    )
    if p_value < 1 - LEVEL:
        verdict = (
            f"On these {n:,} {split} pictures {_winner(difference, names)} is better by {100 * abs(difference):.2f} points ({seen}). "
            "That is about these two networks; whether one recipe is better takes gingham trials."
        )
    else:
        verdict = (
            f"No evidence of a difference between {names[0]} (A) and {names[1]} (B) on {n:,} {split} pictures ({seen}). "
            f"{_pictures_needed(difference, (only_a + only_b) / n, n)}"
        )
    return Comparison("runs", split, accuracies, difference, interval, p_value, verdict, None)


def _pictures_needed(difference: float, discordant: float, n: int) -> str:
    if not difference:
        return "To tell recipes apart, compare gingham trials over seeds."
    needed = math.ceil(1.96**2 * discordant / difference**2)
    return (
        f"If the difference is what it seems, about {needed:,} pictures would show it; to tell recipes apart, compare gingham "
        "trials over seeds."
        if needed > n
        else "To tell recipes apart, compare gingham trials over seeds."
    )


def _compare_trials(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    """Compare bool (S, N): whether each of S seeds is right on each of N pictures."""
    import scipy.stats

    n, sizes = a.shape[1], (len(a), len(b))
    accuracies = (float(a.double().mean()), float(b.double().mean()))
    difference = accuracies[1] - accuracies[0]
    if min(sizes) < 2:
        raise GinghamError(
            f"{names[0]} has {sizes[0]} finished seeds and {names[1]} {sizes[1]}; at least 2 each are needed, better ten: "
            "gingham trials --seeds 10"
        )
    spread = _spread(a, b)
    error = spread.error
    p_value = float(2 * scipy.stats.t.sf(abs(difference) / error, spread.freedom)) if error else float(difference == 0)
    interval = (difference - spread.reach, difference + spread.reach)
    seen = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; 95 % interval of B - A {100 * interval[0]:+.2f} to "
        f"{100 * interval[1]:+.2f} points; {_p(p_value)}; {sizes[0]} and {sizes[1]} seeds, {n:,} {split} pictures"
    )
    if p_value < 1 - LEVEL:
        verdict = f"{_winner(difference, names)} is better by {100 * abs(difference):.2f} points ({seen})."
        return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, None)
    more, advice = _seeds_needed(spread, difference, n)
    verdict = f"No evidence of a difference between {names[0]} (A) and {names[1]} (B) ({seen}). {advice}"
    return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, more)


@dataclass(frozen=True)
class _Spread:
    """The variance of a difference of means, by where it comes from: the seeds drawn on each side, and the pictures."""

    seeds: tuple[float, float]
    sizes: tuple[int, int]
    pictures: float

    @property
    def error(self) -> float:
        return math.sqrt(sum(self.seeds) + self.pictures)

    @property
    def reach(self) -> float:
        """Half of the 95 % interval."""
        import scipy.stats

        return float(scipy.stats.t.ppf(0.5 + LEVEL / 2, self.freedom)) * self.error

    @property
    def freedom(self) -> float:
        """Degrees of freedom, by Welch and Satterthwaite: the pictures are many, the seeds few."""
        uncertain = sum(part**2 / (size - 1) for part, size in zip(self.seeds, self.sizes, strict=True))
        return self.error**4 / uncertain if uncertain else 1e9

    def with_more(self, seeds: int) -> "_Spread":
        """What it would be with so many more seeds on each side."""
        sizes = (self.sizes[0] + seeds, self.sizes[1] + seeds)
        parts = [part * size / more for part, size, more in zip(self.seeds, self.sizes, sizes, strict=True)]
        return _Spread((parts[0], parts[1]), sizes, self.pictures)


def _spread(a: torch.Tensor, b: torch.Tensor) -> _Spread:
    """Bootstrap the seeds of each side, then the pictures of both.

    What a seed does to single pictures shows in both, and is taken out of one. Of seeds one less is drawn than there
    are: few of them drawn with replacement vary too little.
    """
    generator = torch.Generator().manual_seed(0)
    sides = [side.double() for side in (a, b)]
    by_seed, twice = [], 0.0
    for side in sides:
        drawn = torch.randint(len(side), (DRAWS, len(side) - 1), generator=generator)
        by_seed.append(float(side.mean(dim=1)[drawn].mean(dim=1).var()))
        twice += float(side.var(dim=0).mean()) / side.numel()
    per_picture = sides[1].mean(dim=0) - sides[0].mean(dim=0)
    n = len(per_picture)
    means = [per_picture[torch.randint(n, (100, n), generator=generator)].mean(dim=1) for _ in range(DRAWS // 100)]
    pictures = max(float(torch.cat(means).var()) - twice, 0.0)
    return _Spread((by_seed[0], by_seed[1]), (len(a), len(b)), pictures)


def _seeds_needed(spread: _Spread, difference: float, n: int) -> tuple[int | None, str]:
    """How many seeds more on each side would show a difference of this size, and that as a sentence."""
    if not difference:
        return None, "The means are equal; no number of seeds would show a difference that is not there."
    if spread.with_more(10**6).reach >= abs(difference):
        return None, (
            f"If the difference is what it seems, no number of seeds would show it on {n:,} pictures: more pictures are needed."
        )
    more = next((seeds for seeds in range(1, 1001) if spread.with_more(seeds).reach < abs(difference)), None)
    if more is None:
        return None, "If the difference is what it seems, over 1,000 more seeds on each side would show it."
    return more, f"If the difference is what it seems, about {more} more seed{'s' * (more > 1)} on each side would show it."


def _winner(difference: float, names: Sequence[str]) -> str:
    return f"{names[1]} (B)" if difference > 0 else f"{names[0]} (A)"


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p below 0.001"
