"""Everything that may happen to Gingham, and what came of it, in one table.

    make stress                         # all of it
    python stress --short         # what CI runs, as tests
    python stress IDX SIGKILL     # the checks with these words in their names

Exits with 1 if a case was lost. Each check is a process of its own; two run at a time, so that all are through in less than twenty minutes on two cores.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"  # two checks at a time, and a thread more in each would wait for the other

try:
    from gingham.text import render  # found only now
    from stress import abusing, fuzzing, killing, spreading, starving
    from stress.outcomes import Check, Outcome
except ImportError as error:
    sys.exit(
        f"the stress tests need {error.name}; make stress installs all that they need, for this Python: pip install --group dev"
    )

# Two at a time: what computes beside what waits for its processes. The server is last, and alone, as its answers must come in time.
RUN_TOGETHER = ((*killing.CHECKS, *spreading.CHECKS, *starving.CHECKS), tuple(fuzzing.CHECKS))
RUN_ALONE = tuple(abusing.CHECKS)


EVERY = {check.name: check for checks in (*RUN_TOGETHER, RUN_ALONE) for check in checks}


def tried(check: Check, short: bool) -> tuple[Outcome, float]:
    """Run a check in a process of its own, to whatever end it comes."""
    began = time.monotonic()
    line = [sys.executable, str(Path(__file__).parent), "--one", check.name, *(["--short"] if short else [])]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):  # a check that breaks has lost what it was to try
        outcome = Outcome(1, [f"the check itself ended with {done.returncode}: {done.stderr[-500:]}"])
    seconds = time.monotonic() - began
    print(f"{check.name}: {outcome.survived():,} of {outcome.tried:,} survived, {seconds:.0f} s", file=sys.stderr, flush=True)
    return outcome, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the checks that have one of these in their name")
    parser.add_argument("--short", action="store_true", help="as few cases as CI tries")
    parser.add_argument("--one", choices=EVERY, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        check = EVERY[given.one]
        print(json.dumps(dataclasses.asdict(check.run(check.short if given.short else check.long))))
        return 0
    chosen = [name for name in EVERY if not given.words or any(word in name for word in given.words)]
    if not chosen:
        parser.error("no check has {} in its name; there are\n  {}".format(" or ".join(given.words), "\n  ".join(EVERY)))
    began = time.monotonic()
    found: dict[str, tuple[Outcome, float]] = {}

    def one_after_another(checks: Sequence[Check]) -> None:
        for check in checks:
            if check.name in chosen:
                found[check.name] = tried(check, given.short)

    with concurrent.futures.ThreadPoolExecutor() as lines:
        list(lines.map(one_after_another, RUN_TOGETHER))
    one_after_another(RUN_ALONE)
    rows, lost = [], []
    for name in chosen:
        outcome, seconds = found[name]
        counts = [f"{number:,}" for number in (outcome.tried, outcome.survived(), len(outcome.lost))]
        rows.append([name, EVERY[name].unit, *counts, f"{seconds:.0f}"])
        lost += [f"{name}: {sentence}" for sentence in outcome.lost]
    print(render(["check", "of", "tried", "survived", "lost", "seconds"], rows))
    print()
    for name in chosen:
        if found[name][0].figures:
            print(f"{name}: {found[name][0].figures}")
    for sentence in lost[:100]:
        print(f"LOST  {sentence}")
    print(
        f"\n{sum(outcome.tried for outcome, _ in found.values()):,} cases in {time.monotonic() - began:.0f} s, {len(lost)} lost"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
