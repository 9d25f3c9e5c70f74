"""Run the stress checks and print their results in one table.

    make stress                         # all of it
    python stress --short               # the few cases that CI runs
    python stress IDX SIGKILL           # the checks with one of these words in their name

Exits with 1 if a case was lost. Each check runs in its own process, two at a time; all of them take less than twenty
minutes on two cores.
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
os.environ["OMP_NUM_THREADS"] = "1"  # two checks run at a time; more threads would compete for the cores

try:
    from gingham.text import render_table  # needs the paths set above
    from stress import distributed, fuzz, kill, load, resources
    from stress.outcomes import Check, Outcome
except ImportError as error:
    sys.exit(
        f"the stress tests need {error.name}; run make stress, which installs it, or for this Python: pip install "
        "--group dev"
    )

# Checks that mostly wait for processes run beside those that compute. The server check runs last and alone: its
# response times count.
CONCURRENT_CHECKS = ((*kill.CHECKS, *distributed.CHECKS, *resources.CHECKS), tuple(fuzz.CHECKS))
LAST_CHECKS = tuple(load.CHECKS)


CHECKS = {check.name: check for checks in (*CONCURRENT_CHECKS, LAST_CHECKS) for check in checks}


def run_in_process(check: Check, short: bool) -> tuple[Outcome, float]:
    """Run a check in its own process and return its outcome and its seconds."""
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).parent), "--one", check.name, *(["--short"] if short else [])]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        outcome = Outcome(**json.loads(process.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):  # a check that crashes counts as lost
        outcome = Outcome(1, [f"the check itself ended with {process.returncode}: {process.stderr[-500:]}"])
    seconds = time.monotonic() - started
    print(
        f"{check.name}: {outcome.survived():,} of {outcome.tried:,} survived, {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return outcome, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="run the checks that have one of these in their name")
    parser.add_argument("--short", action="store_true", help="run as few cases as CI does")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        check = CHECKS[arguments.one]
        print(json.dumps(dataclasses.asdict(check.run(check.short if arguments.short else check.long))))
        return 0
    selected = [name for name in CHECKS if not arguments.words or any(word in name for word in arguments.words)]
    if not selected:
        parser.error(
            "no check has {} in its name; the checks are\n  {}".format(
                " or ".join(arguments.words), "\n  ".join(CHECKS)
            )
        )
    started = time.monotonic()
    results: dict[str, tuple[Outcome, float]] = {}

    def run_in_order(checks: Sequence[Check]) -> None:
        for check in checks:
            if check.name in selected:
                results[check.name] = run_in_process(check, arguments.short)

    with concurrent.futures.ThreadPoolExecutor() as executor:
        list(executor.map(run_in_order, CONCURRENT_CHECKS))
    run_in_order(LAST_CHECKS)
    rows, lost = [], []
    for name in selected:
        outcome, seconds = results[name]
        counts = [f"{number:,}" for number in (outcome.tried, outcome.survived(), len(outcome.lost))]
        rows.append([name, CHECKS[name].unit, *counts, f"{seconds:.0f}"])
        lost += [f"{name}: {message}" for message in outcome.lost]
    print(render_table(["check", "of", "tried", "survived", "lost", "seconds"], rows))
    print()
    for name in selected:
        if results[name][0].figures:
            print(f"{name}: {results[name][0].figures}")
    for message in lost[:100]:
        print(f"LOST  {message}")
    print(
        f"\n{sum(outcome.tried for outcome, _ in results.values()):,} cases in {time.monotonic() - started:.0f} s, "
        f"{len(lost)} lost"
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
