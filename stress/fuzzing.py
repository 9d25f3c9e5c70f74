"""Everything Gingham reads that may come from strangers or broken disks, thousands of times over, each time a little wrong.

A case by bytes is known by its check, a seed and a number: `replay("IDX files, by bytes", 123)` runs it again. A case by properties is
shrunk by hypothesis, and shown.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy

from stress.fuzzed_files import IdxFiles, Npz, Tables
from stress.fuzzed_pictures import Pictures
from stress.fuzzed_requests import Requests
from stress.fuzzed_runs import Checkpoints, ModelJson, Recipes, Weights
from stress.outcomes import Check, Outcome
from stress.verdicts import Judge, judging

SEED = 0
ENOUGH = 20  # a check that has lost as many cases ends: they will be of few kinds
ROUNDS = 5  # of hypothesis, which ends at the first case lost; each begins with another seed


class Target(Protocol):
    """Something that is read. Both kinds of cases come back as what is to be judged, prepared but not begun."""

    examples: SearchStrategy[Any]

    def spoilt(self, random: Random) -> Callable[[], object]:
        """A case by bytes."""

    def built(self, example: Any) -> Callable[[], object]:
        """A case by properties, from one of the `examples`."""


def by_bytes(name: str, target: Callable[[Judge], Target]) -> Callable[[int], Outcome]:
    def run(size: int) -> Outcome:
        outcome = Outcome(figures=f"seed {SEED}")
        with judging() as judge:
            aim = target(judge)
            while outcome.tried < size and len(outcome.lost) < ENOUGH:
                if reason := judge(aim.spoilt(_random(name, outcome.tried))):
                    outcome.lost.append(f"{name}, seed {SEED}, number {outcome.tried}: {reason}")
                outcome.tried += 1
        return outcome

    return run


def _random(name: str, number: int) -> Random:
    return Random(f"{name} {SEED} {number}")


def by_properties(name: str, target: Callable[[Judge], Target]) -> Callable[[int], Outcome]:
    def run(size: int) -> Outcome:
        outcome = Outcome(figures=f"seeds from {SEED}")
        with judging() as judge:
            set_hypothesis_home_dir(judge.beside / "hypothesis")
            aim = target(judge)
            seed = SEED
            while outcome.tried < size and len(outcome.lost) < ROUNDS:
                _search(name, judge, aim, size - outcome.tried, seed, outcome)
                seed += 1
        return outcome

    return run


class _LostError(Exception):
    pass


def _search(name: str, judge: Judge, aim: Target, size: int, seed: int, outcome: Outcome) -> None:
    """Try examples until one is lost; what hypothesis ends with is the smallest it found."""
    smallest = ""

    def case(example: Any) -> None:
        nonlocal smallest
        outcome.tried += not smallest  # what shrinking tries is not counted
        reason = judge(aim.built(example))
        if reason is None:
            return
        said = f"{name}, seed {seed}: {reason} (from {example!r:.600})"
        if "took more than" in reason:
            outcome.lost.append(said)  # shrinking would wait as long for each
            return
        smallest = said
        raise _LostError

    settings = hypothesis.settings(
        max_examples=max(size, 1),
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    try:
        hypothesis.seed(seed)(settings(hypothesis.given(aim.examples)(case)))()
    except _LostError:
        outcome.lost.append(smallest)
    except hypothesis.errors.Flaky as error:
        outcome.lost.append(f"{smallest or name} (and not every time: {str(error)[:200]})")


TARGETS: dict[str, Callable[[Judge], Target]] = {
    "IDX files": IdxFiles,
    "npz files": Npz,
    "pictures": Pictures,
    "tables and folders": Tables,
    "model.json": ModelJson,
    "weights and predictions": Weights,
    "checkpoints": Checkpoints,
    "recipes": Recipes,
    "requests": Requests,
}
CHECKS = [
    Check(f"{name}, {way}", make(f"{name}, {way}", target), short=300, long=10_000)
    for name, target in TARGETS.items()
    for way, make in (("by bytes", by_bytes), ("by properties", by_properties))
]


def replay(name: str, number: int) -> str | None:
    """Run one case by bytes again and return why it is lost, or None."""
    with judging() as judge:
        return judge(TARGETS[name.removesuffix(", by bytes")](judge).spoilt(_random(name, number)))
