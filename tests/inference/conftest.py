import pytest

import gingham


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


@pytest.fixture
def small_gallery(monkeypatch):
    """Explanations search few training images, which takes less time."""
    monkeypatch.setattr("gingham.inference.explain.MAX_GALLERY_SIZE", 100)
