import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dataset_files import save_image
from gingham import DataError, load_data
from gingham.data import decode


def test_a_pack_is_written_once_and_gives_the_same_data(shoes, pack_folder, monkeypatch):
    first = load_data(str(shoes))
    assert {path.suffix for path in pack_folder.iterdir()} == {".npy", ".json"}

    def refuse(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("gingham.data.pack_cache.decode_images", refuse)
    again = load_data(str(shoes))
    assert (again.fingerprint, again.train.files) == (first.fingerprint, first.train.files)
    assert torch.equal(again.train.images, first.train.images)
    assert again.notes == first.notes[1:], "the note about reading appears once"


@pytest.mark.parametrize("change", ["pixels", "more", "fewer", "renamed"])
def test_a_changed_folder_replaces_its_pack(shoes, pack_folder, change):
    before = load_data(str(shoes), validation=0)
    file = shoes / "boot" / "4.png"
    status = file.stat()
    if change == "pixels":
        pixels = np.asarray(Image.open(shoes / "boot" / "5.png"))
        Image.fromarray(pixels[::-1].copy()).save(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same mtime as before
    elif change == "more":
        save_image(shoes / "boot" / "new.png", seed=5)
    elif change == "fewer":
        file.unlink()
    else:
        file.rename(shoes / "boot" / "40.png")
    after = load_data(str(shoes), validation=0)
    if change == "renamed":
        assert "boot/40.png" in after.train.files + after.test.files
    else:
        assert after.fingerprint != before.fingerprint
    assert len(list(pack_folder.iterdir())) == 2


def test_each_size_has_its_own_pack(shoes, pack_folder):
    for size in (0, 20, 0, 20):
        load_data(str(shoes), size=size)
    assert len(list(pack_folder.iterdir())) == 4


def flip_bit(npy, metadata):
    content = bytearray(npy.read_bytes())
    content[-100] ^= 1
    npy.write_bytes(content)


DAMAGE = {
    "a byte": flip_bit,
    "truncated": lambda npy, metadata: npy.write_bytes(npy.read_bytes()[:-1]),
    "missing": lambda npy, metadata: npy.unlink(),
    "no metadata": lambda npy, metadata: metadata.unlink(),
    "text": lambda npy, metadata: npy.write_text("no array"),
    "pickle": lambda npy, metadata: np.save(npy, np.array([{}] * 40, dtype=object)),
    "another array": lambda npy, metadata: np.save(npy, np.zeros((3, 1, 28, 28), np.uint8)),
    "invalid metadata": lambda npy, metadata: metadata.write_text(json.dumps({"format": 1, "missing": 3})),
    "truncated header": lambda npy, metadata: npy.write_bytes(npy.read_bytes()[:9] + b"\0" + npy.read_bytes()[10:12]),
    "header of a huge array": lambda npy, metadata: npy.write_bytes(
        npy.read_bytes().replace(b"(40, 1, 28, 28), }         ", b"(40, 1, 28, 28000000000), }")
    ),
    "an unknown image": lambda npy, metadata: metadata.write_text(
        json.dumps({**json.loads(metadata.read_text()), "odd": [[99, "is odd"]]})
    ),
    "invalid bits": lambda npy, metadata: metadata.write_text(
        json.dumps({**json.loads(metadata.read_text()), "grey_bits": 9})
    ),
    "truncated metadata": lambda npy, metadata: metadata.write_text('{"format"'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_pack_is_rewritten(shoes, pack_folder, name):
    before = load_data(str(shoes))
    (npy,), (metadata,) = pack_folder.glob("*.npy"), pack_folder.glob("*.json")
    content = npy.read_bytes()
    DAMAGE[name](npy, metadata)
    assert load_data(str(shoes)).fingerprint == before.fingerprint
    assert npy.read_bytes() == content
    assert json.loads(metadata.read_text())["grey_bits"] == 16


def test_an_unwritable_cache_is_ignored(shoes, pack_folder):
    pack_folder.parent.parent.mkdir()
    pack_folder.parent.write_text("not a folder")
    assert len(load_data(str(shoes)).train) == 28


def test_images_larger_than_memory_are_mapped_and_equal(shoes, pack_folder, monkeypatch):
    for k in range(2):
        save_image(shoes / ("boot", "sandal")[k] / "x.png", seed=50 + k)
    resident = load_data(str(shoes))
    shutil.rmtree(pack_folder)
    monkeypatch.setattr("gingham.data.pack_cache.free_memory", lambda: 10_000)
    for _ in range(2):  # while the pack is written, and from the pack
        mapped = load_data(str(shoes))
        assert mapped.train.block > 1
        assert mapped.fingerprint == resident.fingerprint
        for split, expected in (
            (mapped.train, resident.train),
            (mapped.validation, resident.validation),
            (mapped.test, resident.test),
        ):
            assert torch.equal(split.images, expected.images)
            assert split.files == expected.files
    shutil.rmtree(pack_folder)
    pack_folder.write_text("not a folder")
    with pytest.raises(DataError, match="which is needed for images larger than half of the free memory; free"):
        load_data(str(shoes))


def test_a_full_disk_is_an_error_before_images_are_mapped(shoes, pack_folder, monkeypatch):
    """Once a file is mapped, a full disk would kill the process."""

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gingham.data.pack_cache.free_memory", lambda: 10_000)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device.*; free \d+ bytes there"):
        load_data(str(shoes))


def test_a_memory_error_is_not_cached_as_a_damaged_file(shoes, pack_folder, monkeypatch):
    decode_square = decode._decode_square

    def fail_once(image, *arguments):
        if failures.pop():
            raise MemoryError
        return decode_square(image, *arguments)

    failures = [False] * 1000 + [True]
    monkeypatch.setattr(decode, "_decode_square", fail_once)
    with pytest.raises(DataError, match=r"1 of the .* cannot be read as images"):
        load_data(str(shoes))
    monkeypatch.undo()
    load_data(str(shoes))
