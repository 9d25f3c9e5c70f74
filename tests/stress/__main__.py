"""Everything that may happen to Gingham, and what came of it, in one table.

    make stress                         # all of it
    python tests/stress --short         # what CI runs, as tests
    python tests/stress IDX SIGKILL     # the checks with these words in their names

Exits with 1 if a case was lost. The fuzzing takes the one core and the processes the other, so as to be through in less than twenty minutes on two.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src")]
os.environ["OMP_NUM_THREADS"] = "1"  # two checks at a time, and a thread more in each would wait for the other

from gingham.tables import render  # noqa: E402  # found only now
from stress import abusing, fuzzing, killing, spreading, starving  # noqa: E402
from stress.outcomes import Check, Outcome  # noqa: E402

# Two at a time: what computes beside what waits for its processes. The server is last, and alone, as its answers must come in time.
BESIDE = ((*killing.CHECKS, *spreading.CHECKS, *starving.CHECKS), tuple(fuzzing.CHECKS))
ALONE = tuple(abusing.CHECKS)


def tried(check: Check, size: int) -> tuple[Outcome, float]:
    """Run a check, to whatever end it comes."""
    began = time.monotonic()
    try:
        outcome = check.run(size)
    except Exception as error:  # noqa: BLE001  # a check that breaks has lost what it was to try
        outcome = Outcome(1, [f"the check itself broke: {type(error).__name__}: {error}"])
    return outcome, time.monotonic() - began


def one_after_another(names: Sequence[str], short: bool, results: "multiprocessing.Queue[tuple[str, Outcome, float]]") -> None:
    by_name = {check.name: check for checks in (*BESIDE, ALONE) for check in checks}
    for name in names:
        check = by_name[name]
        results.put((name, *tried(check, check.short if short else check.long)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the checks that have one of these in their name")
    parser.add_argument("--short", action="store_true", help="as few cases as CI tries")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[str, Outcome, float]] = context.Queue()
    found: dict[str, tuple[Outcome, float]] = {}
    began = time.monotonic()
    for group in (BESIDE, (ALONE,)):
        lines = [
            [check.name for check in checks if not given.words or any(word in check.name for word in given.words)]
            for checks in group
        ]
        processes = [context.Process(target=one_after_another, args=(names, given.short, results)) for names in lines if names]
        for process in processes:
            process.start()
        for _ in range(sum(map(len, lines))):
            name, outcome, seconds = results.get()
            found[name] = outcome, seconds
            print(f"{name}: {outcome.survived():,} of {outcome.tried:,} survived, {seconds:.0f} s", file=sys.stderr, flush=True)
        for process in processes:
            process.join()
    rows, lost = [], []
    for check in (check for checks in (*BESIDE, ALONE) for check in checks):
        if check.name in found:
            outcome, seconds = found[check.name]
            counts = [f"{number:,}" for number in (outcome.tried, outcome.survived(), len(outcome.lost))]
            rows.append([check.name, check.unit, *counts, f"{seconds:.0f}"])
            lost += [f"{check.name}: {sentence}" for sentence in outcome.lost]
    print(render(["check", "of", "tried", "survived", "lost", "seconds"], rows))
    print()
    for name, (outcome, _) in found.items():
        if outcome.figures:
            print(f"{name}: {outcome.figures}")
    for sentence in lost[:100]:
        print(f"LOST  {sentence}")
    print(
        f"\n{sum(outcome.tried for outcome, _ in found.values()):,} cases in {time.monotonic() - began:.0f} s, {len(lost)} lost"
    )
    return 1 if lost or not found else 0


if __name__ == "__main__":
    sys.exit(main())
