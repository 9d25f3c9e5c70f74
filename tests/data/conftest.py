"""Fixtures for datasets of image files, and for a machine without datasets."""

import pytest

from dataset_files import make_image_folder


@pytest.fixture
def pack_folder(tmp_path, monkeypatch):
    """The folder of packs in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gingham" / "packs"


@pytest.fixture
def shoes(tmp_path, pack_folder):
    """A folder of images of two classes."""
    return make_image_folder(tmp_path / "shoes", {"boot": 20, "sandal": 20})
