import pytest
import torch

import gingham
from gingham import DataError, load_data


@pytest.fixture
def mapped_packs(monkeypatch, tmp_path):
    """The folder of packs on a machine where the test datasets are larger than half of the memory."""
    monkeypatch.setattr("gingham.data.idx.free_memory", lambda: 100_000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gingham" / "packs"


def test_images_larger_than_memory_are_mapped_and_equal(quadrants, mapped_packs, monkeypatch):
    mapped = load_data(str(quadrants), validation=40)
    monkeypatch.undo()
    resident = load_data(str(quadrants), validation=40)
    assert mapped.train.block == (1 << 16) // (28 * 28)
    assert resident.train.block == mapped.validation.block == 1
    for split, expected in (
        (mapped.train, resident.train),
        (mapped.validation, resident.validation),
        (mapped.test, resident.test),
    ):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)
    assert mapped.fingerprint == resident.fingerprint


def test_a_pack_is_written_once_and_reused(quadrants, mapped_packs):
    load_data(str(quadrants), validation=40)
    (pack,) = mapped_packs.iterdir()
    assert pack.stat().st_size == 260 * 28 * 28
    before = pack.stat().st_mtime_ns
    load_data(str(quadrants), validation=40)
    assert [path.stat().st_mtime_ns for path in mapped_packs.iterdir()] == [before]
    pack.write_bytes(b"damaged")  # of the wrong size, so that it is rewritten
    assert load_data(str(quadrants), validation=40).train.images.shape == (260, 1, 28, 28)
    assert pack.stat().st_size == 260 * 28 * 28


def test_no_pack_is_written_if_nothing_is_held_out(quadrants, mapped_packs):
    data = load_data(str(quadrants), validation=0)
    assert data.train.block > 1
    assert not mapped_packs.exists()


def test_a_mapped_file_is_never_changed(quadrants, mapped_packs):
    before = (quadrants / "train-images-idx3-ubyte").read_bytes()
    load_data(str(quadrants), validation=0).train.images.fill_(7)
    assert (quadrants / "train-images-idx3-ubyte").read_bytes() == before


def test_a_model_trains_on_a_mapped_dataset(quadrants, mapped_packs):
    data = load_data(str(quadrants), validation=40)
    run = gingham.fit(
        gingham.RECIPES["fast"].replace(network="tiny", flip="none", tta="none", epochs=8, batch_size=16),
        data.train,
        data.validation,
        progress=False,
    )
    assert run.metrics["validation_accuracy"] > 0.9


def test_a_pack_that_cannot_be_written_is_an_error(quadrants, mapped_packs):
    mapped_packs.parent.mkdir()
    mapped_packs.write_text("not a folder")
    with pytest.raises(DataError, match="which is needed for a dataset larger than half of the free memory"):
        load_data(str(quadrants), validation=40)
