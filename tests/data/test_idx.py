import contextlib
import gzip
import hashlib
import os
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gingham import DataError
from gingham.data.idx import find_idx, idx_sha256, read_idx
from helpers import write_idx


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels-idx1-ubyte"
    write_idx(path, np.arange(50, dtype=np.uint8))
    return path


def test_plain_and_gzipped_files_hold_the_same(tmp_path):
    pictures = np.random.RandomState(0).randint(0, 256, (7, 5, 3)).astype(np.uint8)
    plain, zipped = tmp_path / "a-idx3-ubyte", tmp_path / "b-idx3-ubyte.gz"
    write_idx(plain, pictures)
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert (read_idx(plain, 3) == pictures).all()
    assert (read_idx(zipped, 3) == pictures).all()
    assert idx_sha256(pictures) == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert find_idx(tmp_path, "a-idx3-ubyte") == plain
    assert find_idx(tmp_path, "b-idx3-ubyte") == zipped
    assert find_idx(tmp_path, "c-idx3-ubyte") is None


def header(kind=8, dimensions=1, *sizes):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, kind, dimensions, *sizes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file .it starts with nothing."),
        (b"PNG", "is not an IDX file"),
        (b"\x89PNG and more", "is not an IDX file .it starts with 89504e47."),
        (header(0x0D, 1, 3) + bytes(12), "holds IDX type 0x0d in 1 dimensions, where unsigned bytes"),
        (header(8, 3, 1, 2, 2) + bytes(4), "in 3 dimensions, where unsigned bytes .0x08. in 1 are needed"),
        (header(8, 1) + b"\0\0", "is truncated inside its header"),
        (header(8, 1, 50) + bytes(49), "is truncated: its header announces 50 bytes, 49 are there"),
        (header(8, 1, 50) + bytes(51), "is longer than the 50 bytes its header announces"),
        (header(8, 1, 0), "announces 0 bytes"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_files_name_themselves_and_the_way_out(tmp_path, content, message, zipped):
    path = tmp_path / ("labels.gz" if zipped else "labels")
    path.write_bytes(gzip.compress(content) if zipped else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 1)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


def test_an_absurd_shape_costs_no_memory(tmp_path):
    path = tmp_path / "pictures"
    path.write_bytes(header(8, 3, 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="allowed: 1 to"):
        read_idx(path, 3)


@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_not_there_is_not_made_room_for(tmp_path, monkeypatch, zipped):
    path = tmp_path / ("pictures.gz" if zipped else "pictures")
    content = header(8, 3, 2000, 1000, 1000)
    path.write_bytes(gzip.compress(content) if zipped else content)
    monkeypatch.setattr("gingham.data.idx._content", None)
    with pytest.raises(DataError, match="truncated: its header announces 2000000000 bytes"):
        read_idx(path, 3)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "labels")
    with pytest.raises(DataError, match=r"cannot read .*labels \(it is no plain file\)"):
        read_idx(tmp_path / "labels", 1)


def test_a_truncated_or_damaged_gzip(tmp_path, labels):
    whole = gzip.compress(labels.read_bytes() * 40)
    for name, content in (
        ("cut.gz", whole[:-9]),
        ("not.gz", b"plain text"),
        ("bad.gz", whole[:20] + b"\xff" * 20 + whole[40:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_idx(tmp_path / name, 1)


def test_a_gzip_bomb_is_read_no_further_than_announced(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(header(8, 1, 10) + bytes(300_000_000), 9))
    with pytest.raises(DataError, match="longer than the 10 bytes"):
        read_idx(path, 1)


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(DataError, match="is missing"):
        read_idx(tmp_path / "nothing", 1)
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path, 1)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path / "loop", 1)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), dimensions=st.sampled_from([1, 3]), like_idx=st.booleans())
def test_any_bytes_give_an_array_or_one_line(tmp_path_factory, content, dimensions, like_idx):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes((bytes([0, 0, 8, dimensions]) if like_idx else b"") + content)
    with contextlib.suppress(DataError):
        assert read_idx(path, dimensions).ndim == dimensions
