import pytest

import gingham


@pytest.fixture
def saved_run(small_run, tmp_path):
    """A saved run, its data and its folder."""
    run, data = small_run
    return run, data, gingham.save(run, tmp_path / "run")
