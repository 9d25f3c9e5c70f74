"""Tests of the fuzzing: lost cases are found, replayed and shrunk."""

import pytest
from hypothesis import strategies as st

from stress.fuzz import CHECKS, TARGETS, by_bytes, by_properties, replay

pytestmark = pytest.mark.slow


def test_every_target_is_fuzzed_by_bytes_and_by_properties():
    assert len(CHECKS) == 2 * len(TARGETS) == 18
    assert {check.long for check in CHECKS} == {10_000}


class FailsFrom700:
    """Reads a number, and fails for a few."""

    examples = st.integers(0, 1000)

    def __init__(self, judge):
        self.folder = judge.folder

    def mutated_case(self, random):
        return self.generated_case(random.randrange(1000))

    def generated_case(self, example):
        return lambda: {}["x"] if example >= 700 else None


def test_lost_case_by_bytes_can_be_replayed(monkeypatch):
    monkeypatch.setitem(TARGETS, "fragile", FailsFrom700)
    outcome = by_bytes("fragile, by bytes", FailsFrom700)(50)
    assert 5 < len(outcome.lost) <= 20
    number = int(outcome.lost[0].partition("number ")[2].partition(":")[0])
    assert "KeyError" in replay("fragile, by bytes", number)
    assert by_bytes("fragile, by bytes", FailsFrom700)(50) == outcome


def test_lost_case_by_properties_is_shrunk():
    outcome = by_properties("fragile, by properties", FailsFrom700)(100)
    assert len(outcome.lost) == 5
    assert "from 700" in outcome.lost[0]
    assert by_properties("fragile, by properties", FailsFrom700)(100).lost == outcome.lost
