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

BOOTSTRAP_SAMPLES = 2000
CONFIDENCE_LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """The result of comparing A and B: `difference` is B's accuracy minus A's, with its 95 % `interval`, both fractions.

    `p_value` is the probability of a difference at least as large if there were none. `verdict` is the result in a
    sentence. `more_seeds` is the number of further seeds on each side that would make a difference of this size
    significant. It is None if the difference is significant already, if more images are needed, or for two single runs.
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
        """Return all fields as JSON values."""
        return {**vars(self), "accuracies": list(self.accuracies), "interval": list(self.interval)}

    def __str__(self) -> str:
        return self.verdict


def compare(
    a: str | Path, b: str | Path, splits: Callable[[Run], Split], *, networks: Sequence[NetworkFactory] = ()
) -> Comparison:
    """Compare two run folders, or two folders of trials, on the same images.

    Two runs are compared with McNemar's exact test on the images that only one of them gets right. The result is about
    these two networks, not about their recipes. Two sets of trials are compared with a bootstrap over images and seeds,
    whose result is about the recipes. `splits(run)` returns the split to evaluate a run on; `networks` are the classes
    of your own networks.

        gingham.compare("runs/fast-trials", "runs/other-trials", lambda run: data.validation).verdict

    Raises
        GinghamError: one is a run and the other trials, a folder is neither, or they were not evaluated on the same
        images.

    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947); Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), which resamples images and seeds together and is too
    cautious with few seeds, so that here they are resampled separately; Rao & Wu, "Resampling inference with complex
    survey data" (1988), for resampling one seed fewer than there are.
    """
    folders = [Path(a), Path(b)]
    for folder in folders:
        if not folder.is_dir():
            raise GinghamError(f"there is no folder {folder}; give two run folders, or two folders of trials")
    kinds = ["trials" if (folder / TRIALS_FILE).exists() else "runs" for folder in folders]
    if kinds[0] != kinds[1]:
        raise GinghamError(
            f"{folders[kinds.index('runs')]} is a single run and {folders[kinds.index('trials')]} a set of trials; "
            "compare two of a kind: gingham trials trains a recipe over seeds"
        )
    names, correct, first = [], [], None
    for folder in folders:
        runs = [_load(path, networks) for path in (_seed_folders(folder) if kinds[0] == "trials" else [folder])]
        split = splits(runs[0])
        if first is not None and (
            split.fingerprint != first.fingerprint or not torch.equal(split.labels, first.labels)
        ):
            raise GinghamError(
                f"{folders[0]} and {folder} were not measured on the same pictures ({first.dataset}, {len(first)} and "
                f"{split.dataset}, {len(split)}); compare on data and validation_images they share"
            )
        first = split
        correct.append(torch.stack([correct_predictions(run, split) for run in runs]))
        names.append(str(folder))
    assert first is not None
    if kinds[0] == "runs":
        return _compare_runs(correct[0][0], correct[1][0], names, first.name)
    return _compare_trials(correct[0], correct[1], names, first.name)


def _load(folder: Path, networks: Sequence[NetworkFactory]) -> Run:
    factories = {factory_name(factory): factory for factory in networks}
    name = read_json(folder / METADATA_FILE).get("network") if factories and (folder / METADATA_FILE).exists() else None
    return load(folder, factories.get(name) if isinstance(name, str) else None)


def _seed_folders(folder: Path) -> list[Path]:
    folders = sorted(
        (path.parent for path in folder.glob(f"seed-*/{METADATA_FILE}")), key=lambda path: (len(path.name), path.name)
    )
    if not folders:
        raise RunError(f"no seed in {folder} is finished; go on with gingham trials --out {folder}")
    return folders


def _compare_runs(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    import scipy.stats

    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    p_value = float(scipy.stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    difference = (only_b - only_a) / n
    # The interval of Agresti & Min (2005), with half an image added to each cell, so that the width is never 0.
    center, discordant = (only_b - only_a) / (n + 2), only_a + only_b + 1
    error = math.sqrt(max(discordant - (only_b - only_a) ** 2 / (n + 2), 0)) / (n + 2)
    interval = (center - 1.96 * error, center + 1.96 * error)
    accuracies = (float(a.double().mean()), float(b.double().mean()))
    details = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; {only_a} pictures that A alone gets right, {only_b} that B "
        f"alone does; McNemar's exact test, {_format_p(p_value)}"
    )
    if p_value < 1 - CONFIDENCE_LEVEL:
        verdict = (
            f"On these {n:,} {split} pictures {_winner(difference, names)} is better by {100 * abs(difference):.2f} "
            f"points ({details}). That is about these two networks; whether one recipe is better takes gingham trials."
        )
    else:
        verdict = (
            f"No evidence of a difference between {names[0]} (A) and {names[1]} (B) on {n:,} {split} pictures "
            f"({details}). {_describe_images_needed(difference, (only_a + only_b) / n, n)}"
        )
    return Comparison("runs", split, accuracies, difference, interval, p_value, verdict, None)


def _describe_images_needed(difference: float, discordant: float, n: int) -> str:
    if not difference:
        return "To tell recipes apart, compare gingham trials over seeds."
    needed = math.ceil(1.96**2 * discordant / difference**2)
    return (
        f"If the difference is what it seems, about {needed:,} pictures would show it; to tell recipes apart, compare "
        "gingham trials over seeds."
        if needed > n
        else "To tell recipes apart, compare gingham trials over seeds."
    )


def _compare_trials(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    """Compare two bool (S, N): whether each of S seeds is right on each of N images."""
    import scipy.stats

    n, sizes = a.shape[1], (len(a), len(b))
    accuracies = (float(a.double().mean()), float(b.double().mean()))
    difference = accuracies[1] - accuracies[0]
    if min(sizes) < 2:
        raise GinghamError(
            f"{names[0]} has {sizes[0]} finished seeds and {names[1]} {sizes[1]}; at least 2 each are needed, better "
            "ten: gingham trials --seeds 10"
        )
    variance = _bootstrap_variance(a, b)
    error = variance.standard_error
    p_value = (
        float(2 * scipy.stats.t.sf(abs(difference) / error, variance.freedom)) if error else float(difference == 0)
    )
    interval = (difference - variance.half_width, difference + variance.half_width)
    details = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; 95 % interval of B - A {100 * interval[0]:+.2f} to "
        f"{100 * interval[1]:+.2f} points; {_format_p(p_value)}; {sizes[0]} and {sizes[1]} seeds, {n:,} {split} "
        "pictures"
    )
    if p_value < 1 - CONFIDENCE_LEVEL:
        verdict = f"{_winner(difference, names)} is better by {100 * abs(difference):.2f} points ({details})."
        return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, None)
    more_seeds, advice = _describe_seeds_needed(variance, difference, n)
    verdict = f"No evidence of a difference between {names[0]} (A) and {names[1]} (B) ({details}). {advice}"
    return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, more_seeds)


@dataclass(frozen=True)
class _Variance:
    """The variance of a difference of means by source: the seeds of each side (with their numbers), and the images."""

    seeds: tuple[float, float]
    sizes: tuple[int, int]
    images: float

    @property
    def standard_error(self) -> float:
        return math.sqrt(sum(self.seeds) + self.images)

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval."""
        import scipy.stats

        return float(scipy.stats.t.ppf(0.5 + CONFIDENCE_LEVEL / 2, self.freedom)) * self.standard_error

    @property
    def freedom(self) -> float:
        """The degrees of freedom by Welch and Satterthwaite, in which only the variance of the seeds is uncertain."""
        uncertainty = sum(variance**2 / (size - 1) for variance, size in zip(self.seeds, self.sizes, strict=True))
        return self.standard_error**4 / uncertainty if uncertainty else 1e9

    def with_more_seeds(self, count: int) -> "_Variance":
        """Return the variance with `count` more seeds on each side."""
        sizes = (self.sizes[0] + count, self.sizes[1] + count)
        seeds = [variance * size / more for variance, size, more in zip(self.seeds, self.sizes, sizes, strict=True)]
        return _Variance((seeds[0], seeds[1]), sizes, self.images)


def _bootstrap_variance(a: torch.Tensor, b: torch.Tensor) -> _Variance:
    """Bootstrap the seeds of each side, then the images of both.

    The effect of a seed on single images is part of both variances, so it is subtracted from that of the images. A
    sample has one seed fewer than there are: samples of as many seeds would vary too little, because the seeds are few.
    """
    generator = torch.Generator().manual_seed(0)
    sides = [side.double() for side in (a, b)]
    by_seed, counted_twice = [], 0.0
    for side in sides:
        indices = torch.randint(len(side), (BOOTSTRAP_SAMPLES, len(side) - 1), generator=generator)
        by_seed.append(float(side.mean(dim=1)[indices].mean(dim=1).var()))
        counted_twice += float(side.var(dim=0).mean()) / side.numel()
    differences = sides[1].mean(dim=0) - sides[0].mean(dim=0)
    n, batches = len(differences), BOOTSTRAP_SAMPLES // 100
    means = [differences[torch.randint(n, (100, n), generator=generator)].mean(dim=1) for _ in range(batches)]
    images = max(float(torch.cat(means).var()) - counted_twice, 0.0)
    return _Variance((by_seed[0], by_seed[1]), (len(a), len(b)), images)


def _describe_seeds_needed(variance: _Variance, difference: float, n: int) -> tuple[int | None, str]:
    """Return how many more seeds on each side would make this difference significant, and a sentence that says so."""
    if not difference:
        return None, "The means are equal; no number of seeds would show a difference that is not there."
    if variance.with_more_seeds(10**6).half_width >= abs(difference):
        return None, (
            f"If the difference is what it seems, no number of seeds would show it on {n:,} pictures: more pictures "
            "are needed."
        )
    more = next(
        (count for count in range(1, 1001) if variance.with_more_seeds(count).half_width < abs(difference)), None
    )
    if more is None:
        return None, "If the difference is what it seems, over 1,000 more seeds on each side would show it."
    return (
        more,
        f"If the difference is what it seems, about {more} more seed{'s' * (more > 1)} on each side would show it.",
    )


def _winner(difference: float, names: Sequence[str]) -> str:
    return f"{names[1]} (B)" if difference > 0 else f"{names[0]} (A)"


def _format_p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 0.001 else "p below 0.001"
