import pytest

import gingham


@pytest.fixture
def saved_run(small_run, tmp_path):
    """The folder of a saved run, the run and its data."""
    run, data = small_run
    return gingham.save(run, tmp_path / "run"), run, data
