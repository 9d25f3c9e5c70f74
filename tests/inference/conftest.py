import pytest

import gingham


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()
