"""The short form of `make stress`: every check with the few cases that CI has time for."""

import pytest

from stress import distributed, fuzz, kill, load, resources

CHECKS = [check for module in (kill, distributed, resources, fuzz, load) for check in module.CHECKS]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_no_case_is_lost(check):
    outcome = check.run(check.short)
    assert outcome.lost == []
    assert outcome.tried >= check.short or "not tried" in outcome.figures
