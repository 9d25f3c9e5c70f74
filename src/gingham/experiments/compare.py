"""Compare two runs, or two sets of trials, with a paired test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gingham.data.splits import Split
from gingham.errors import GinghamError, RunError
from gingham.evaluation.evaluate import correct_predictions
from gingham.io import read_json
from gingham.models.registry import NetworkFactory, factory_name
from gingham.runs.run import METADATA_FILE, TRIALS_FILE, Run, load

DRAWS = 2000  # of the bootstrap
LEVEL = 0.95


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
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), which draws both at once and is too cautious with few
    seeds: here each is drawn alone; Rao & Wu, "Resampling inference with complex survey data" (1988), for drawing one seed
    less than there are.
    """
    folders = [Path(a), Path(b)]
    for folder in folders:
        if not folder.is_dir():
            raise GinghamError(f"there is no folder {folder}; give two run folders, or two folders of trials")
    kinds = ["trials" if (folder / TRIALS_FILE).exists() else "runs" for folder in folders]
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
        rows.append(torch.stack([correct_predictions(run, split) for run in runs]))
        names.append(str(folder))
    assert split is not None
    if kinds[0] == "runs":
        return _compare_runs(rows[0][0], rows[1][0], names, split.name)
    return _compare_trials(rows[0], rows[1], names, split.name)


def _load(folder: Path, networks: Sequence[NetworkFactory]) -> Run:
    own = {factory_name(factory): factory for factory in networks}
    name = read_json(folder / METADATA_FILE).get("network") if own and (folder / METADATA_FILE).exists() else None
    return load(folder, own.get(name) if isinstance(name, str) else None)


def _members(folder: Path) -> list[Path]:
    members = sorted(
        (path.parent for path in folder.glob(f"seed-*/{METADATA_FILE}")), key=lambda path: (len(path.name), path.name)
    )
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
