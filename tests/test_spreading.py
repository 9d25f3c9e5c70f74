"""A short form of the trainings in many processes that `make stress` does."""

import pytest

from stress.spreading import CHECKS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_many_processes_end_as_one_does(check):
    outcome = check.run(check.short)
    assert outcome.lost == []
    assert outcome.tried or "not tried" in outcome.figures
