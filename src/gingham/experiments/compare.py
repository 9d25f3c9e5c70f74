"""Compare two runs, or two sets of trials, with a paired test."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gingham.data.splits import Split
from gingham.display import Displayable
from gingham.errors import GinghamError, RunError, plural
from gingham.evaluation.evaluate import correct_predictions
from gingham.evaluation.metrics import paired_interval
from gingham.io import is_run_folder, read_json
from gingham.models.registry import NetworkFactory, factory_name
from gingham.runs.run import METADATA_FILE, TRIALS_FILE, Run, load
from gingham.text import natural_key

BOOTSTRAP_SAMPLES = 2000
SIGNIFICANCE = 0.05


@dataclass(frozen=True, repr=False)
class Comparison(Displayable):
    """The result of comparing A and B.

    `difference` is B's accuracy minus A's, with its 95 % `interval`, both fractions. `p_value` is the probability of a
    difference at least as large if there is none. `verdict` is the result in a sentence: one is better if the p-value
    is below 0.05, and only then does the interval exclude 0. `more_seeds` is the number of further seeds on each side
    that would make a difference of this size significant. It is None if the difference is significant already, if more
    images are needed, or for two single runs.
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

    def plot(self) -> Any:
        """Return a figure of the difference and its interval."""
        from gingham.plots import draw_difference

        title = f"A {self.accuracies[0]:.2%}, B {self.accuracies[1]:.2%} of the {self.split} images right"
        return draw_difference(self.difference, self.interval, title)


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
        GinghamError: one is a run and the other trials, a folder is neither, they were not evaluated on the same
        images, or no run has one of the `networks`.

    Sources: McNemar, "Note on the sampling error of the difference between correlated proportions" (1947); Owen, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), which resamples images and seeds together; this is too
    conservative with few seeds, so here they are resampled separately; Rao & Wu, "Resampling inference with complex
    survey data" (1988), for resampling one seed fewer than there are.
    """
    folders = [Path(a), Path(b)]
    sides = [_load_runs(folder, networks) for folder in folders]
    is_trials, other_is_trials = (is_run_folder(folder, TRIALS_FILE) for folder in folders)
    if is_trials != other_is_trials:
        raise GinghamError(f"one of {a} and {b} is a single run and the other a set of trials; give two of a kind")
    known = {run.recipe.network for runs in sides for run in runs}
    if unused := [name for name in map(factory_name, networks) if name not in known]:
        raise GinghamError(f"no run in {a} or {b} has the network {unused[0]}; leave it out")
    split_a, split_b = (splits(runs[0]) for runs in sides)
    if split_a.fingerprint != split_b.fingerprint or not torch.equal(split_a.labels, split_b.labels):
        raise GinghamError(
            f"{a} and {b} were not evaluated on the same images ({split_a.dataset}, {len(split_a)} and "
            f"{split_b.dataset}, {len(split_b)}); compare runs with the same data and validation_images"
        )
    correct_a = torch.stack([correct_predictions(run, split_a) for run in sides[0]])
    correct_b = torch.stack([correct_predictions(run, split_b) for run in sides[1]])
    names = (f"{a} (A)", f"{b} (B)")
    if is_trials:
        return _compare_trials(correct_a, correct_b, names, split_a.name)
    return _compare_runs(correct_a[0], correct_b[0], names, split_a.name)


def _load_runs(folder: Path, networks: Sequence[NetworkFactory]) -> list[Run]:
    """Return the finished runs of a folder of trials, in the order of their seeds, or the run of any other folder."""
    if not is_run_folder(folder, TRIALS_FILE):
        return [_load(folder, networks)]
    seed_folders = [path.parent for path in folder.glob(f"seed-*/{METADATA_FILE}")]
    if not seed_folders:
        raise RunError(f"no seed in {folder} is finished; continue with gingham trials --out {folder}")
    return [_load(path, networks) for path in sorted(seed_folders, key=lambda path: natural_key(path.name))]


def _load(folder: Path, networks: Sequence[NetworkFactory]) -> Run:
    file = folder / METADATA_FILE
    name = read_json(file).get("network") if networks and file.is_file() else None
    return load(folder, next((factory for factory in networks if factory_name(factory) == name), None))


def _compare_runs(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    """Compare two bool (N,): whether each run is right on each of N images."""
    import scipy.stats

    only_a, only_b, n = int((a & ~b).sum()), int((b & ~a).sum()), len(a)
    accuracies, difference = (float(a.double().mean()), float(b.double().mean())), (only_b - only_a) / n
    p_value = float(scipy.stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    details = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; {only_a} images that only A gets right, {only_b} that only B "
        f"gets right; McNemar's exact test, {_format_p(p_value)}"
    )
    interval = paired_interval(only_b, only_a, n)
    if p_value < SIGNIFICANCE:
        verdict = (
            f"On these {n:,} {split} images, {names[difference > 0]} is better by {100 * abs(difference):.2f} points "
            f"({details}). This is about these two networks; to compare their recipes, use gingham trials."
        )
    else:
        # The exact test is more conservative than the interval, which must not contradict it.
        interval = min(interval[0], 0.0), max(interval[1], 0.0)
        needed = math.ceil(1.96**2 * ((only_a + only_b) / n) / difference**2) if difference else 0
        advice = f"If the true difference is this large, about {needed:,} images would show it. " if needed > n else ""
        verdict = (
            f"No evidence of a difference between {names[0]} and {names[1]} on {n:,} {split} images "
            f"({details}). {advice}To compare recipes, use gingham trials."
        )
    return Comparison("runs", split, accuracies, difference, interval, p_value, verdict, None)


def _compare_trials(a: torch.Tensor, b: torch.Tensor, names: Sequence[str], split: str) -> Comparison:
    """Compare two bool (S, N): whether each of S seeds is right on each of N images."""
    n, sizes = a.shape[1], (len(a), len(b))
    if min(sizes) < 2:
        raise GinghamError(
            f"{names[0]} has {plural(sizes[0], 'finished seed')} and {names[1]} {sizes[1]}; both need 2, preferably 10"
        )
    accuracies = (float(a.double().mean()), float(b.double().mean()))
    difference = accuracies[1] - accuracies[0]
    variance = _bootstrap_variance(a, b)
    p_value, half_width = 2 * float(variance.distribution().sf(abs(difference))), variance.half_width()
    interval = (difference - half_width, difference + half_width)
    details = (
        f"A {accuracies[0]:.2%}, B {accuracies[1]:.2%}; 95 % interval of B - A {100 * interval[0]:+z.2f} to "
        f"{100 * interval[1]:+z.2f} points; {_format_p(p_value)}; {sizes[0]} and {sizes[1]} seeds, {n:,} {split} "
        "images"
    )
    uniform = [name for name, side in zip(names, (a, b), strict=True) if len(set(side.sum(dim=1).tolist())) == 1]
    unknown = "so their spread is unknown and the interval too narrow; train more, and check that none is a copy"
    warning = f" All seeds of {' and of '.join(uniform)} have the same accuracy, {unknown}." if uniform else ""
    if p_value < SIGNIFICANCE:
        verdict = f"{names[difference > 0]} is better by {100 * abs(difference):.2f} points ({details}).{warning}"
        return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, None)
    more_seeds, advice = _describe_seeds_needed(variance, difference, n)
    verdict = f"No evidence of a difference between {names[0]} and {names[1]} ({details}). {advice}{warning}"
    return Comparison("trials", split, accuracies, difference, interval, p_value, verdict, more_seeds)


@dataclass(frozen=True)
class _Variance:
    """The variance of a difference of means by source: the seeds of each side (with their numbers), and the images."""

    seeds: tuple[float, float]
    sizes: tuple[int, int]
    images: float

    def distribution(self, more_seeds: int = 0) -> Any:
        """Return the distribution of the difference's error, with `more_seeds` on each side: a frozen Student's t.

        The degrees of freedom are those of Welch and Satterthwaite, in which only the seeds' variance is uncertain.
        """
        import scipy.stats

        sizes = [size + more_seeds for size in self.sizes]
        seeds = [variance * size / more for variance, size, more in zip(self.seeds, self.sizes, sizes, strict=True)]
        total = sum(seeds) + self.images
        uncertainty = sum(variance**2 / (size - 1) for variance, size in zip(seeds, sizes, strict=True))
        freedom = total**2 / uncertainty if uncertainty else 1e9
        return scipy.stats.t(freedom, scale=math.sqrt(total) or 1e-300)  # scipy does not accept a scale of 0

    def half_width(self, more_seeds: int = 0) -> float:
        """Return half the width of the 95 % interval, with `more_seeds` on each side."""
        return float(self.distribution(more_seeds).ppf(1 - SIGNIFICANCE / 2))


def _bootstrap_variance(a: torch.Tensor, b: torch.Tensor) -> _Variance:
    """Bootstrap the seeds of each side, then the images of both.

    The effect of a seed on single images is part of both variances, so it is subtracted from that of the images. A
    sample has one seed fewer than there are: with few seeds, samples of all of them would vary too little.
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
    """Return how many more seeds on each side would make this difference significant, and a sentence about it."""
    if not difference:
        return None, "The means are equal, so there is no difference that more seeds could show."
    candidates = range(1, 10**6)
    more = 1 + bisect_left(candidates, True, key=lambda more: variance.half_width(more) < abs(difference))
    if more not in candidates:
        answer = f"no number of seeds would show it on {n:,} images: more images are needed"
    elif more > 1000:
        answer = "over 1,000 more seeds on each side would show it"
    else:
        answer = f"about {more} more seed{'s' * (more > 1)} on each side would show it"
    return more if more <= 1000 else None, f"If the true difference is this large, {answer}."


def _format_p(value: float) -> str:
    return f"p = {value:.3g}" if value >= 0.001 else "p below 0.001"
