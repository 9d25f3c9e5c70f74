"""Fuzz everything that Gingham reads from untrusted sources or failing disks.

A case by bytes is identified by its check, a seed and a number: `replay("IDX files, by bytes", 123)` runs it again. A
lost case by properties is shrunk by hypothesis and printed.
"""

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import hypothesis
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.strategies import SearchStrategy

from stress.fuzz_files import IdxFiles, Npz, Tables
from stress.fuzz_images import Images
from stress.fuzz_requests import Requests
from stress.fuzz_runs import Checkpoints, ModelJson, Recipes, Weights
from stress.outcomes import Check, Outcome
from stress.verdicts import Judge, isolated_judge

SEED = 0
MAX_LOST = 20  # a check stops after this many lost cases, which usually have few causes
MAX_ROUNDS = 5  # of hypothesis, each with another seed, since it stops at the first lost case


class Target(Protocol):
    """A kind of input. Both methods prepare a case and return it as a callable for the Judge."""

    examples: SearchStrategy[Any]

    def mutated_case(self, random: Random) -> Callable[[], object]:
        """Return a case by bytes: a valid input with random mutations."""

    def generated_case(self, example: Any) -> Callable[[], object]:
        """Return a case by properties, built from one of the `examples`."""


def by_bytes(name: str, make_target: Callable[[Judge], Target]) -> Callable[[int], Outcome]:
    def run(size: int) -> Outcome:
        outcome = Outcome(figures=f"seed {SEED}")
        with isolated_judge() as judge:
            target = make_target(judge)
            while outcome.tried < size and len(outcome.lost) < MAX_LOST:
                if reason := judge(target.mutated_case(_case_random(name, outcome.tried))):
                    outcome.lost.append(f"{name}, seed {SEED}, number {outcome.tried}: {reason}")
                outcome.tried += 1
        return outcome

    return run


def _case_random(name: str, number: int) -> Random:
    return Random(f"{name} {SEED} {number}")


def by_properties(name: str, make_target: Callable[[Judge], Target]) -> Callable[[int], Outcome]:
    def run(size: int) -> Outcome:
        outcome = Outcome(figures=f"seeds from {SEED}")
        with isolated_judge() as judge:
            set_hypothesis_home_dir(judge.outside / "hypothesis")
            target = make_target(judge)
            seed = SEED
            while outcome.tried < size and len(outcome.lost) < MAX_ROUNDS:
                _search(name, judge, target, size - outcome.tried, seed, outcome)
                seed += 1
        return outcome

    return run


class _LostError(Exception):
    pass


def _search(name: str, judge: Judge, target: Target, size: int, seed: int, outcome: Outcome) -> None:
    """Try examples until one is lost, and add the smallest that hypothesis finds to the outcome."""
    smallest = ""

    def case(example: Any) -> None:
        nonlocal smallest
        outcome.tried += not smallest  # cases tried while shrinking do not count
        reason = judge(target.generated_case(example))
        if reason is None:
            return
        message = f"{name}, seed {seed}: {reason} (from {example!r:.600})"
        if "took more than" in reason:
            outcome.lost.append(message)  # shrinking would wait as long for each case
            return
        smallest = message
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
        hypothesis.seed(seed)(settings(hypothesis.given(target.examples)(case)))()
    except _LostError:
        outcome.lost.append(smallest)
    except hypothesis.errors.Flaky as error:
        outcome.lost.append(f"{smallest or name} (and not every time: {str(error)[:200]})")


TARGETS: dict[str, Callable[[Judge], Target]] = {
    "IDX files": IdxFiles,
    "npz files": Npz,
    "images": Images,
    "tables and folders": Tables,
    "model.json": ModelJson,
    "weights and predictions": Weights,
    "checkpoints": Checkpoints,
    "recipes": Recipes,
    "requests": Requests,
}
CHECKS = [
    Check(f"{name}, {kind}", build_check(f"{name}, {kind}", target), short=300, long=10_000)
    for name, target in TARGETS.items()
    for kind, build_check in (("by bytes", by_bytes), ("by properties", by_properties))
]


def replay(name: str, number: int) -> str | None:
    """Run one case by bytes again and return why it is lost, or None."""
    with isolated_judge() as judge:
        return judge(TARGETS[name.removesuffix(", by bytes")](judge).mutated_case(_case_random(name, number)))
