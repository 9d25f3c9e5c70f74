import contextlib
import gzip
import hashlib
import os
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gingham import DataError, load_data
from gingham.data.idx import IDX_FILES, find_idx, idx_sha256, read_idx
from helpers import write_idx


def test_plain_and_gzipped_files_give_the_same_array(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (7, 5, 3)).astype(np.uint8)
    plain, gzipped = tmp_path / "a-idx3-ubyte", tmp_path / "b-idx3-ubyte.gz"
    write_idx(plain, images)
    gzipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert (read_idx(plain, 3) == images).all()
    assert (read_idx(gzipped, 3) == images).all()
    assert idx_sha256(images) == hashlib.sha256(plain.read_bytes()).hexdigest()
    assert find_idx(tmp_path, "a-idx3-ubyte") == plain
    assert find_idx(tmp_path, "b-idx3-ubyte") == gzipped
    assert find_idx(tmp_path, "c-idx3-ubyte") is None


def encode_header(type_code=8, dimensions=1, *sizes):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, type_code, dimensions, *sizes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not an IDX file: it starts with nothing"),
        (b"PNG", "is not an IDX file"),
        (b"\x89PNG and more", "is not an IDX file: it starts with 89504e47"),
        (encode_header(0x0D, 1, 3) + bytes(12), "contains IDX type 0x0d in 1 dimensions, not 0x08 in 1"),
        (encode_header(8, 3, 1, 2, 2) + bytes(4), "in 3 dimensions, not 0x08 in 1"),
        (encode_header(8, 1) + b"\0\0", "is truncated inside its header"),
        (encode_header(8, 1, 50) + bytes(49), "its header declares 50 bytes; 49 follow"),
        (encode_header(8, 1, 50) + bytes(51), "its header declares 50 bytes; more follow"),
        (encode_header(8, 1, 0), "declares 0 bytes"),
    ],
)
@pytest.mark.parametrize("gzipped", [False, True])
def test_a_damaged_file_is_an_error_with_its_path_and_a_remedy(tmp_path, content, message, gzipped):
    path = tmp_path / ("labels.gz" if gzipped else "labels")
    path.write_bytes(gzip.compress(content) if gzipped else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 1)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


def test_an_impossible_shape_is_an_error(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(encode_header(8, 3, 2**31, 2**31, 2**31))
    with pytest.raises(DataError, match="allowed: 1 to"):
        read_idx(path, 3)


@pytest.mark.parametrize("gzipped", [False, True])
def test_no_memory_is_allocated_for_missing_data(tmp_path, monkeypatch, gzipped):
    path = tmp_path / ("images.gz" if gzipped else "images")
    content = encode_header(8, 3, 2000, 1000, 1000)
    path.write_bytes(gzip.compress(content) if gzipped else content)
    monkeypatch.setattr("gingham.data.idx.free_memory", lambda: 1 << 40)
    tracemalloc.start()
    with pytest.raises(DataError, match="its header declares 2000000000 bytes; 0 follow"):
        read_idx(path, 3)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 100_000_000


def test_a_pipe_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "labels")
    with pytest.raises(DataError, match=r"cannot read .*labels \(it is not a regular file\)"):
        read_idx(tmp_path / "labels", 1)


def test_a_truncated_or_damaged_gzip_file_is_an_error(tmp_path):
    path = tmp_path / "labels-idx1-ubyte"
    write_idx(path, np.arange(50, dtype=np.uint8))
    compressed = gzip.compress(path.read_bytes() * 40)
    for name, content in (
        ("truncated.gz", compressed[:-9]),
        ("plain.gz", b"plain text"),
        ("damaged.gz", compressed[:20] + b"\xff" * 20 + compressed[40:]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_idx(tmp_path / name, 1)


def test_a_gzip_bomb_is_not_decompressed_beyond_its_header(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(encode_header(8, 1, 10) + bytes(300_000_000), 9))
    with pytest.raises(DataError, match="its header declares 10 bytes; more follow"):
        read_idx(path, 1)


def test_a_missing_or_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*No such file or directory"):
        read_idx(tmp_path / "nothing", 1)
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path, 1)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="cannot read"):
        read_idx(tmp_path / "loop", 1)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=200), dimensions=st.sampled_from([1, 3]), like_idx=st.booleans())
def test_any_bytes_give_an_array_or_a_data_error(tmp_path_factory, content, dimensions, like_idx):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes((bytes([0, 0, 8, dimensions]) if like_idx else b"") + content)
    with contextlib.suppress(DataError):
        assert read_idx(path, dimensions).ndim == dimensions


def test_different_numbers_of_images_and_labels_are_an_error(quadrants):
    write_idx(quadrants / IDX_FILES[3], np.zeros(79, np.uint8))
    with pytest.raises(
        DataError, match=r"test images of shape \(80, 1, 28, 28\) and 79 labels; allowed: one label for each image"
    ):
        load_data(str(quadrants), validation=0)


def test_training_and_test_images_of_different_sizes_are_an_error(quadrants):
    write_idx(quadrants / IDX_FILES[2], np.zeros((80, 20, 28), np.uint8))
    with pytest.raises(DataError, match=r"test images of shape \(80, 1, 20, 28\) .* in all splits, here \(1, 28, 28\)"):
        load_data(str(quadrants), validation=0)


def test_a_gzipped_file_larger_than_memory_is_an_error(quadrants, monkeypatch):
    monkeypatch.setattr("gingham.data.idx.free_memory", lambda: 100_000)
    plain = quadrants / "train-images-idx3-ubyte"
    (quadrants / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    with pytest.raises(DataError, match=r"235200 bytes, more than half of the free memory; decompress it \(gunzip\)"):
        load_data(str(quadrants), validation=0)


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"x"])
def test_a_mapped_file_of_the_wrong_length_is_an_error(quadrants, monkeypatch, change):
    monkeypatch.setattr("gingham.data.idx.free_memory", lambda: 100_000)
    path = quadrants / "train-images-idx3-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="its header declares 235200 bytes"):
        load_data(str(quadrants), validation=0)
