"""Pictures in files of their own, as load_data and the commands take them; every fault is planted."""

import json
import os
import shutil
import subprocess
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import gingham
from gingham import DataError, load_data
from gingham.data.image_files import list_images
from gingham.text import natural_key


@pytest.fixture(autouse=True)
def packs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gingham" / "packs"


def paint(file, seed=0, shape=(28, 28), bright=0):
    """A noisy picture, its upper or lower half bright by its class."""
    pixels = np.random.RandomState(seed).randint(0, 90, shape).astype(np.uint8)
    half = shape[0] // 2
    pixels[half * (bright % 2) : half * (bright % 2) + half] += 120
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def fill(folder, counts, **options):
    """A folder a class with as many pictures as `counts` says."""
    for place, (name, count) in enumerate(counts.items()):
        for k in range(count):
            paint(folder / name / f"{k}.png", seed=1000 * place + k, bright=place, **options)
    return folder


@pytest.fixture
def shoes(tmp_path):
    return fill(tmp_path / "shoes", {"boot": 20, "sandal": 20})


def ids(split):
    return {picture.numpy().tobytes() for picture in split.images}


# --- layouts and splits


def test_a_folder_of_class_folders(shoes):
    data = load_data(str(shoes))
    assert data.classes == ("boot", "sandal")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [28, 6, 6]
    assert data.test.counts() == {"boot": 3, "sandal": 3}
    assert (data.train.images.shape, data.train.images.dtype) == ((28, 1, 28, 28), torch.uint8)
    assert (data.train.labels.dtype, data.train.block) == (torch.int64, 1)
    parts = [ids(part) for part in (data.train, data.validation, data.test)]
    assert len(set.union(*parts)) == 40, "every picture is in one split"
    for part in (data.train, data.validation, data.test):
        for image, label, file in zip(part.images, part.labels, part.files, strict=True):
            assert file.startswith(part.classes[label])
            with Image.open(shoes / file) as stored:
                assert (np.asarray(stored) == image[0].numpy()).all()


def test_split_folders_are_taken_as_they_are(tmp_path):
    for split, each in (("Train", 6), ("val", 2), ("TEST", 3)):
        fill(tmp_path / "d" / split, {"a": each, "b": each}, shape=(20 + each, 30))
    data = load_data(str(tmp_path / "d"), validation=1)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 6]
    joined = load_data(str(tmp_path / "d"), validation=0)
    assert (len(joined.train), joined.validation) == (16, None)
    assert joined.fingerprint == data.fingerprint
    assert ids(joined.train) == ids(data.train) | ids(data.validation)
    assert joined.train.files[:12] == data.train.files
    with pytest.raises(DataError, match="-1 validation pictures were asked of"):
        load_data(str(tmp_path / "d"), validation=-1)


def test_a_validation_folder_without_a_test_folder(tmp_path):
    for split, each in (("train", 20), ("valid", 5)):
        fill(tmp_path / "d" / split, {"a": each, "b": each}, shape=(20 + each, 30))
    data, joined = (load_data(str(tmp_path / "d"), validation) for validation in (5000, 0))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [34, 10, 6]
    assert len(joined.train) == 44
    assert ids(data.test) == ids(joined.test)
    assert not ids(joined.train) & ids(joined.test)
    assert ids(data.train) | ids(data.validation) == ids(joined.train)


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path / "d", {"train": 4, "car": 4, "plane": 4})
    assert load_data(str(tmp_path / "d")).classes == ("car", "plane", "train")


def test_nested_folders_hidden_files_and_runs(shoes):
    paint(shoes / "boot" / "more" / "deep.png", seed=77)
    for hidden in ("boot/.DS_Store", "boot/Thumbs.db", ".git/x.png", "boot/.cache/y.png", "__MACOSX/a/b.png", "boot/._0.png"):
        (shoes / hidden).parent.mkdir(parents=True, exist_ok=True)
        (shoes / hidden).write_text("no picture")
    (shoes / "runs" / "fast-0").mkdir(parents=True)
    (shoes / "runs" / "fast-0" / "model.json").write_text("{}")
    (shoes / "labels.txt").write_text("beside the classes")
    data = load_data(str(shoes), validation=0)
    assert data.classes == ("boot", "sandal")
    assert len(data.train) + len(data.test) == 41
    assert "boot/more/deep.png" in data.train.files + data.test.files


def test_links_are_followed_and_circles_end(shoes, tmp_path):
    fill(tmp_path / "elsewhere", {"clog": 5})
    (shoes / "clog").symlink_to(tmp_path / "elsewhere" / "clog")
    (shoes / "boot" / "circle").symlink_to(shoes / "boot")
    (shoes / "boot" / "linked.png").symlink_to(shoes / "sandal" / "3.png")
    data = load_data(str(shoes), validation=0)
    assert data.classes == ("boot", "clog", "sandal")
    assert len(data.train) + len(data.test) == 46


def test_links_to_links_do_not_make_millions_of_paths(shoes):
    for level in range(40):
        (shoes / "clog" / str(level)).mkdir(parents=True)
        for name in "ab":
            (shoes / "clog" / str(level) / name).symlink_to(f"../{level + 1}")
    fill(shoes / "clog", {"40": 5})
    assert len(list_images(shoes).entries) == 45


def test_any_depth_of_folders_is_listed(shoes):
    place = shoes / "boot"
    for _ in range(1200):
        place /= "d"
        place.mkdir()
    paint(place / "deep.png", seed=78)
    assert len(list_images(shoes).entries) == 41
    subprocess.run(["rm", "-rf", str(shoes / "boot")], check=True)  # Python removes no folders so deep


WRONG_FOLDERS = {
    "nothing": (lambda d: d.mkdir(), "holds no class folders with pictures in them"),
    "loose": (lambda d: paint(d / "a.png"), "holds no class folders with pictures in them"),
    "no classes": (lambda d: (paint(d / "train/a.png"), paint(d / "test/b.png")), "holds no class folders with pictures in them"),
    "no train": (lambda d: fill(d / "test", {"a": 3, "b": 3}), "has class folders in test and none in train"),
    "unsorted": (lambda d: (fill(d / "train", {"a": 3, "b": 3}), paint(d / "test/b.png")), "holds pictures in test beside the split"),
    "both": (lambda d: (fill(d / "train", {"a": 3}), fill(d, {"b": 3})), "holds pictures in b beside the split folder train"),
    "one class": (lambda d: fill(d, {"a": 9}), "has 1 classes; allowed: 2 to 10,000"),
    "few": (lambda d: fill(d, {"a": 9, "b": 2}), "the class b of .* has 2 training pictures, too few"),
    "empty": (lambda d: (fill(d, {"a": 9, "b": 9}), (d / "c").mkdir()), "the class folder c of .* is empty"),
    "test lacks": (lambda d: (fill(d / "train", {"a": 3, "b": 3}), fill(d / "test", {"a": 3})), "the test split of .* no picture of b"),
    "train lacks": (lambda d: (fill(d / "train", {"a": 3}), fill(d / "test", {"a": 3, "b": 3})), "the training split of .* of b"),
    "val lacks": (lambda d: (fill(d / "train", {"a": 3, "b": 3}), fill(d / "val", {"b": 3})), "the validation split of .* of a"),
    "name": (lambda d: fill(d, {"a": 9, "b\nc": 9}), "has a class of the name"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FOLDERS)
def test_a_folder_that_cannot_be_trained_on_is_one_sentence(tmp_path, name):
    make, message = WRONG_FOLDERS[name]
    make(tmp_path / "d")
    with pytest.raises(DataError, match=message) as caught:
        load_data(str(tmp_path / "d"))
    assert "\n" not in str(caught.value)


# --- the test split depends on nothing but names


def test_the_test_split_never_moves(tmp_path):
    # A change here makes every earlier run's figures incomparable.
    data = load_data(str(fill(tmp_path / "d", {"boot": 20, "sandal": 20})))
    assert data.test.files == ("boot/1.png", "boot/2.png", "boot/5.png", "sandal/4.png", "sandal/13.png", "sandal/17.png")


def test_the_splits_do_not_depend_on_place_order_or_seed(tmp_path, shoes):
    other = tmp_path / "far" / "away"
    for file in sorted(shoes.rglob("*.png"), reverse=True):
        (other / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, other / file.parent.name / file.name)
    one, two = load_data(str(shoes)), load_data(str(other))
    assert one.fingerprint == two.fingerprint == load_data(str(shoes), validation=0).fingerprint
    for ours, theirs in ((one.train, two.train), (one.validation, two.validation), (one.test, two.test)):
        assert ours.files == theirs.files
        assert torch.equal(ours.images, theirs.images)
    for k in range(20, 24):
        paint(other / "boot" / f"{k}.png", seed=k)
    assert set(load_data(str(other)).test.files) >= set(one.test.files), "more pictures move none out of the test split"


@pytest.mark.parametrize(("count", "held_out"), [(3, 0), (4, 1), (7, 1), (10, 2), (20, 3), (23, 3), (24, 4)])
def test_fifteen_percent_are_held_out(tmp_path, count, held_out):
    data = load_data(str(fill(tmp_path / "d", {"a": count, "b": 20})), validation=0)
    assert data.test.counts() == {"a": held_out, "b": 3}


def test_the_fingerprint_moves_with_pictures_names_and_splits(tmp_path, shoes):
    seen = {load_data(str(shoes)).fingerprint}
    (shoes / "boot").rename(shoes / "shoe")
    seen.add(load_data(str(shoes)).fingerprint)
    paint(shoes / "shoe" / "0.png", seed=99)
    seen.add(load_data(str(shoes)).fingerprint)
    for name in ("shoe", "sandal"):
        for split in ("train", "val"):
            (shoes / split / name).mkdir(parents=True)
        for k in range(20):
            (shoes / name / f"{k}.png").rename(shoes / ("val" if k < 5 else "train") / name / f"{k}.png")
        (shoes / name).rmdir()
    seen.add(load_data(str(shoes)).fingerprint)
    assert len(seen) == 4


def test_classes_are_in_natural_order(tmp_path):
    names = ["10", "2", "1", "B", "a", "é", "b10", "b9"]
    data = load_data(str(fill(tmp_path / "d", dict.fromkeys(names, 4))))
    assert data.classes == ("1", "2", "10", "B", "a", "b9", "b10", "é")


def test_one_name_in_two_spellings_is_one_class(tmp_path):
    fill(tmp_path / "d", {unicodedata.normalize("NFD", "é"): 3, "f": 6})
    fill(tmp_path / "d", {unicodedata.normalize("NFC", "é"): 3})
    assert load_data(str(tmp_path / "d")).classes == ("f", "é")


@given(st.lists(st.text(max_size=6)))
def test_natural_order_is_an_order(names):
    ordered = sorted(names, key=natural_key)
    names.reverse()
    assert sorted(names, key=natural_key) == ordered
    numbers = [name for name in ordered if name.isascii() and name.isdigit()]
    assert [int(name) for name in numbers] == sorted(map(int, numbers))


def test_more_than_255_classes(tmp_path):
    data = load_data(str(fill(tmp_path / "d", {str(k): 3 for k in range(300)}, shape=(8, 8))), validation=0)
    assert data.classes[:3] == ("0", "1", "2")
    assert (int(data.train.labels.max()), data.train.images.shape) == (299, (900, 1, 8, 8))


# --- sizes and colours


def test_a_common_small_size_is_kept_and_others_become_28(tmp_path):
    assert load_data(str(fill(tmp_path / "a", {"x": 4, "y": 4}, shape=(20, 20)))).train.images.shape[1:] == (1, 20, 20)
    assert load_data(str(fill(tmp_path / "b", {"x": 4, "y": 4}, shape=(65, 65)))).train.images.shape[1:] == (1, 28, 28)
    assert load_data(str(fill(tmp_path / "c", {"x": 4, "y": 4}, shape=(20, 24)))).train.images.shape[1:] == (1, 28, 28)
    paint(tmp_path / "a" / "x" / "other.png", shape=(21, 21))
    assert load_data(str(tmp_path / "a")).train.images.shape[1:] == (1, 28, 28)
    assert load_data(str(tmp_path / "a"), size=40).train.images.shape[1:] == (1, 40, 40)


@pytest.mark.parametrize("size", [-1, 5000])
def test_a_size_that_no_picture_has(shoes, size):
    with pytest.raises(DataError, match=f"pictures of size {size} were asked for; allowed: 1 to 4096"):
        load_data(str(shoes), size=size)


def test_grey_among_colour_is_spread_over_three_channels(tmp_path):
    fill(tmp_path / "d", {"x": 4, "y": 4})
    grey = load_data(str(tmp_path / "d"), validation=0)
    Image.new("RGB", (28, 28), (250, 10, 10)).save(tmp_path / "d" / "x" / "red.png")
    data = load_data(str(tmp_path / "d"), validation=0)
    assert data.train.images.shape[1:] == (3, 28, 28)
    place, before = data.train.files.index("y/1.png"), grey.train.files.index("y/1.png")
    assert torch.equal(data.train.images[place], grey.train.images[before].expand(3, -1, -1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_formats(tmp_path, suffix):
    for name, value in (("dark", 20), ("light", 230)):
        (tmp_path / "d" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("L", (16, 16), value + k).save(tmp_path / "d" / name / f"{k}.{suffix}")
    data = load_data(str(tmp_path / "d"), validation=0)
    assert data.train.images.shape == (6, 1, 16, 16)
    assert (data.train.images[data.train.labels == 1] > 200).all()


# --- files that cannot be read


def spoil(folder):
    """Every kind of file that is no picture, beside whole ones."""
    boot = folder / "boot"
    whole = (boot / "1.png").read_bytes()
    (boot / "empty.png").write_bytes(b"")
    (boot / "notes.jpg").write_text("remember the boots")
    (boot / "torn.png").write_bytes(whole[: len(whole) // 2])
    (boot / "gone.png").symlink_to(boot / "nowhere.png")
    os.mkfifo(boot / "pipe.png")
    Image.new("L", (20, 20)).save(boot / "bomb.bmp")
    header = bytearray((boot / "bomb.bmp").read_bytes())
    header[18:26] = (60_000).to_bytes(4, "little") * 2  # claims 3.6 billion pixels
    (boot / "bomb.bmp").write_bytes(header)
    (boot / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(np.zeros((9, 9), np.float32)).save(boot / "float.tif")
    return {"empty.png", "notes.jpg", "torn.png", "gone.png", "pipe.png", "bomb.bmp", "program.png", "float.tif"}


def test_unreadable_files_are_counted_and_named_or_left_out(shoes):
    whole = load_data(str(shoes))
    spoiled = spoil(shoes)
    with pytest.raises(
        DataError, match=r"8 of the 48 files of .* cannot be read as pictures: boot/bomb.bmp \(.*and 5 more; "
    ) as caught:
        load_data(str(shoes))
    assert "--skip-unreadable" in str(caught.value)
    data = load_data(str(shoes), skip_unreadable=True)
    assert data.fingerprint == whole.fingerprint
    assert data.test.files == whole.test.files
    assert any("8 of the 48 files are left out: boot/bomb.bmp" in note for note in data.notes)
    assert not any(name in file for name in spoiled for file in data.train.files)
    from gingham.data.load_data import load_unchecked

    _, odd = load_unchecked(str(shoes))
    reasons = {name.removeprefix("boot/"): reason for name, reason in odd}
    assert set(reasons) == spoiled
    assert reasons["empty.png"] == "cannot be read: it is empty"
    assert reasons["pipe.png"] == "cannot be read: it is no plain file"
    assert reasons["gone.png"] == "cannot be read: No such file or directory"


def test_damaged_bytes_are_named_and_nothing_else_is_printed(tmp_path, capfd):
    random = np.random.RandomState(0)
    noise = Image.fromarray(random.randint(0, 256, (40, 50, 3)).astype(np.uint8))
    fill(tmp_path / "d", {"a": 9, "b": 9})
    for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp"):
        noise.save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for k in range(40):
            damaged = bytearray(content)
            reach = min(len(content), [40, 200, len(content)][k % 3])
            damaged[random.randint(reach)] = random.randint(256)
            (tmp_path / "d" / "a" / f"{suffix}{k}.{suffix}").write_bytes(
                damaged[: random.randint(len(content)) if k % 5 == 0 else None]
            )
    data = load_data(str(tmp_path / "d"), validation=0, skip_unreadable=True)
    left_out = int(data.notes[-1].split()[0])
    assert 50 < left_out < 240
    assert len(data.train) + len(data.test) == 258 - left_out
    assert capfd.readouterr() == ("", "")


def test_a_class_of_unreadable_files_is_not_lost_in_silence(shoes):
    for file in (shoes / "boot").iterdir():
        file.write_text("no")
    with pytest.raises(DataError, match="has no picture of boot"):
        load_data(str(shoes), skip_unreadable=True)
    for file in (shoes / "sandal").iterdir():
        file.write_text("no")
    with pytest.raises(DataError, match="holds no file that can be read as a picture"):
        load_data(str(shoes), skip_unreadable=True)


def test_a_folder_that_may_not_be_listed(shoes, monkeypatch):
    scandir = os.scandir

    def refuse(place):
        """As the system does for anyone but root, who may list everything."""
        if place == shoes / "boot":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot list"):
        load_data(str(shoes))


# --- packs


def test_a_pack_is_made_once_and_is_the_same(shoes, packs, monkeypatch):
    first = load_data(str(shoes))
    assert {path.suffix for path in packs.iterdir()} == {".npy", ".json"}

    def refuse(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("gingham.data.pack_cache.decode_images", refuse)
    again = load_data(str(shoes))
    assert (again.fingerprint, again.train.files) == (first.fingerprint, first.train.files)
    assert torch.equal(again.train.images, first.train.images)
    assert again.notes == first.notes[1:], "what was read is said once"


@pytest.mark.parametrize("change", ["pixels", "more", "fewer", "renamed"])
def test_a_changed_folder_is_read_again_and_its_old_pack_removed(shoes, packs, change):
    before = load_data(str(shoes), validation=0)
    file = shoes / "boot" / "4.png"
    status = file.stat()
    if change == "pixels":
        pixels = np.asarray(Image.open(shoes / "boot" / "5.png"))
        Image.fromarray(pixels[::-1].copy()).save(file)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as old as before, to look at
    elif change == "more":
        paint(shoes / "boot" / "new.png", seed=5)
    elif change == "fewer":
        file.unlink()
    else:
        file.rename(shoes / "boot" / "40.png")
    after = load_data(str(shoes), validation=0)
    if change == "renamed":
        assert "boot/40.png" in after.train.files + after.test.files
    else:
        assert after.fingerprint != before.fingerprint
    assert len(list(packs.iterdir())) == 2


def test_each_size_has_a_pack(shoes, packs):
    for size in (0, 20, 0, 20):
        load_data(str(shoes), size=size)
    assert len(list(packs.iterdir())) == 4


def damage_byte(npy, metadata):
    content = bytearray(npy.read_bytes())
    content[-100] ^= 1
    npy.write_bytes(content)


DAMAGE = {
    "a byte": damage_byte,
    "cut": lambda npy, metadata: npy.write_bytes(npy.read_bytes()[:-1]),
    "gone": lambda npy, metadata: npy.unlink(),
    "no facts": lambda npy, metadata: metadata.unlink(),
    "text": lambda npy, metadata: npy.write_text("no array"),
    "pickle": lambda npy, metadata: np.save(npy, np.array([{}] * 40, dtype=object)),
    "another array": lambda npy, metadata: np.save(npy, np.zeros((3, 1, 28, 28), np.uint8)),
    "facts of another kind": lambda npy, metadata: metadata.write_text(json.dumps({"format": 1, "missing": 3})),
    "torn header": lambda npy, metadata: npy.write_bytes(npy.read_bytes()[:9] + b"\0" + npy.read_bytes()[10:12]),
    "header of a giant": lambda npy, metadata: npy.write_bytes(
        npy.read_bytes().replace(b"(40, 1, 28, 28), }         ", b"(40, 1, 28, 28000000000), }")
    ),
    "an unknown picture": lambda npy, metadata: metadata.write_text(
        json.dumps({**json.loads(metadata.read_text()), "odd": [[99, "is odd"]]})
    ),
    "facts cut": lambda npy, metadata: metadata.write_text('{"format"'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_pack_is_made_anew(shoes, packs, name):
    before = load_data(str(shoes))
    (npy,), (metadata,) = packs.glob("*.npy"), packs.glob("*.json")
    whole = npy.read_bytes()
    DAMAGE[name](npy, metadata)
    assert load_data(str(shoes)).fingerprint == before.fingerprint
    assert npy.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_no_result(shoes, packs):
    packs.parent.parent.mkdir()
    packs.parent.write_text("a file in the way")
    assert len(load_data(str(shoes)).train) == 28


def test_pictures_larger_than_memory_are_mapped_and_the_same(shoes, packs, monkeypatch):
    for k in range(2):
        paint(shoes / ("boot", "sandal")[k] / "x.png", seed=50 + k)
    resident = load_data(str(shoes))
    shutil.rmtree(packs)
    monkeypatch.setattr("gingham.data.pack_cache.free_memory", lambda: 10_000)
    for _ in range(2):  # as it is packed, and from the pack
        mapped = load_data(str(shoes))
        assert mapped.train.block > 1
        assert mapped.fingerprint == resident.fingerprint
        for ours, theirs in (
            (mapped.train, resident.train),
            (mapped.validation, resident.validation),
            (mapped.test, resident.test),
        ):
            assert torch.equal(ours.images, theirs.images)
            assert ours.files == theirs.files
    shutil.rmtree(packs)
    packs.write_text("a file in the way")
    with pytest.raises(DataError, match="which pictures larger than half of the free memory need; free"):
        load_data(str(shoes))


def test_room_for_what_is_mapped_is_taken_first(shoes, packs, monkeypatch):
    """A disk that is full is an error then; while memory is written that stands for it, it ends the process."""

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gingham.data.pack_cache.free_memory", lambda: 10_000)
    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(DataError, match=r"cannot write .*No space left on device.*; free \d+ bytes there"):
        load_data(str(shoes))


def test_want_of_memory_is_not_remembered_as_a_damaged_file(shoes, packs, monkeypatch):
    from gingham.data import decode as pictures

    square = pictures._square

    def starve(image, size):
        if starving.pop():
            raise MemoryError
        return square(image, size)

    starving = [False] * 1000 + [True]
    monkeypatch.setattr(pictures, "_square", starve)
    with pytest.raises(DataError, match=r"1 of the .* cannot be read as pictures"):
        load_data(str(shoes))
    monkeypatch.undo()
    load_data(str(shoes))


# --- tables


def table(shoes, rows, name="list.csv", head="path,label,split"):
    (shoes / name).write_text("\n".join([head, *rows]) + "\n")
    return str(shoes / name)


def test_a_table_of_paths_and_labels(shoes):
    rows = [f"boot/{k}.png,Stiefel,train" for k in range(10)] + [f"sandal/{k}.png,Sandale,train" for k in range(10)]
    rows += [
        "boot/11.png,Stiefel,val",
        "sandal/11.png,Sandale,validation",
        "boot/12.png,Stiefel,Test",
        "sandal/12.png,Sandale,test",
    ]
    data = load_data(table(shoes, rows))
    assert data.classes == ("Sandale", "Stiefel")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 2, 2]
    assert data.test.files == ("sandal/12.png", "boot/12.png")


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_without_splits(shoes, mark):
    rows = [f'"{name}/{k}.png"{mark}{name}{mark}"a, b"' for name in ("boot", "sandal") for k in range(20)]
    data = load_data(table(shoes, rows, head=f"\ufeffImage{mark}Class{mark}remark"))
    assert [len(part) for part in (data.train, data.validation, data.test)] == [28, 6, 6]
    assert data.classes == ("boot", "sandal")


WRONG_TABLES = {
    "header": (["boot/1.png,x,train"], "name,kind,split", "begins with name, kind, split; it needs a first line"),
    "columns": (["boot/1.png"], "path,label", "line 2 of .* has 1 columns"),
    "label": (["boot/1.png,"], "path,label", "an empty path or label"),
    "split": (["boot/1.png,x,training"], "path,label,split", "line 2 of .* has the split 'training'; allowed: train"),
    "twice": (["boot/1.png,x", "boot/2.png,x", "boot/1.png,y"], "path,label", "lines 2 and 4 of .* both name boot/1.png"),
    "zero byte": (["boot/1.png\0,x"], "path,label", "line 2 of .* cannot hold a zero byte"),
    "no rows": ([], "path,label", "names no training picture"),
    "quotes": (['"boot/1.png,x'], "path,label", "is not a table in UTF-8"),
    "missing": ([f"boot/{k}.png,x" for k in range(9)] + [f"no/{k}.png,y" for k in range(9)], "path,label",
                r"9 of the 18 files of .* no/0.png \(No such file or directory\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_TABLES)
def test_a_table_that_cannot_be_used_is_one_sentence(shoes, name):
    rows, head, message = WRONG_TABLES[name]
    with pytest.raises(DataError, match=message):
        load_data(table(shoes, rows, head=head))


def test_a_table_that_is_no_text(shoes):
    shutil.copy(shoes / "boot" / "1.png", shoes / "list.csv")
    with pytest.raises(DataError, match="is not a table in UTF-8"):
        load_data(str(shoes / "list.csv"))


# --- the commands


def values(done):
    return json.loads(done.stdout)


def test_a_run_on_a_folder_goes_through_every_command(command, shoes):
    spoil(shoes)
    refused = command("train", "--data", shoes, code=2)
    assert "8 of the 48 files of" in refused.stderr
    done = command(
        "train", "--recipe", "fast-90", "--data", shoes, "--skip-unreadable", "--set", "size=24", "--epochs", 2, "--json"
    )
    assert "8 of the 48 files are left out" in done.stderr
    assert "6 of the 34 training pictures are held out for validation, a fifth, not 5000" in done.stderr
    run = gingham.load(command.folder / "runs/fast-90-0")
    assert (run.recipe.size, run.recipe.validation_images, run.data["skip_unreadable"]) == (24, 6, True)
    assert run.model.input_shape == (1, 24, 24)
    data = load_data(str(shoes), 6, size=24, skip_unreadable=True)
    assert data.fingerprint == run.data["fingerprint"]
    report = values(command("evaluate", "runs/fast-90-0", "--json"))
    assert (report["total"], report["accuracy"]) == (6, values(done)["validation_accuracy"])
    assert values(command("evaluate", "runs/fast-90-0", "--split", "test", "--json"))["total"] == 6
    command("report", "runs/fast-90-0")
    command("diagnose", "runs/fast-90-0", "--split", "validation")
    metadata = values(command("show", shoes, "--skip-unreadable", "--json"))
    assert (metadata["images"], metadata["classes"], metadata["shape"]) == (40, ["boot", "sandal"], [1, 28, 28])
    assert "8 files are not to be read as pictures" in command("diagnose", shoes).stdout
    paint(shoes / "boot" / "0.png", seed=123)
    assert "has changed since" in command("evaluate", "runs/fast-90-0", code=2).stderr


def test_a_run_is_measured_on_another_folder(command, shoes, tmp_path):
    command("train", "--recipe", "fast-90", "--data", shoes, "--epochs", 2)
    other = fill(tmp_path / "other", {"sandal": 4, "boot": 4}, shape=(300, 200))
    report = values(command("evaluate", "runs/fast-90-0", "--split", "test", "--data", other, "--json"))
    assert (report["split"], report["total"]) == ("photographs", 8)  # all of them: there are no splits among them
    strange = fill(tmp_path / "strange", {"sandal": 4, "clog": 4})
    refused = command("evaluate", "runs/fast-90-0", "--split", "test", "--data", strange, code=2)
    assert "has the class clog, which is none of the model's (boot, sandal)" in refused.stderr


def test_trials_and_compare_on_a_folder(command, shoes):
    for out in ("a", "b"):
        command("trials", "--recipe", "fast-90", "--data", shoes, "--seeds", 2, "--epochs", 2, "--set", "size=24", "--out", out)
    command("trials", "--recipe", "fast-90", "--data", shoes, "--seeds", 2, "--epochs", 2, "--set", "size=24", "--out", "a")
    assert values(command("compare", "a", "b", "--json"))["difference"] == 0


@pytest.mark.slow
def test_twenty_pictures_a_class_train_without_a_complaint(command, tmp_path, fashion_mnist):
    for number, name in enumerate(fashion_mnist.classes):
        place = tmp_path / "clothes" / name.replace("/", " or ")
        place.mkdir(parents=True)
        for k, row in enumerate((fashion_mnist.train.labels == number).nonzero().flatten()[:20].tolist()):
            Image.fromarray(fashion_mnist.train.images[row, 0].numpy()).save(place / f"{k}.png")
    done = command("train", "--data", tmp_path / "clothes", process=True)
    assert "warning" not in done.stderr.lower()
    lines = [line for line in done.stderr.splitlines() if not line.startswith("epoch ")]
    assert lines[0].startswith("read 200 pictures of ")
    assert lines[1:] == [
        "34 of the 170 training pictures are held out for validation, a fifth, not 5000",
        (
            "136 training pictures are few for fast: batch_size 17, epochs 63, hard_share 1 in place of 256, 21, 0.3 (set any of "
            "these, and all stay)"
        ),
    ]
    assert values(command("evaluate", "runs/fast-0", "--split", "test", "--json"))["accuracy"] > 0.5


@pytest.mark.slow
def test_colour_pictures_train_by_the_same_recipe(command, tmp_path):
    for number, name in enumerate(("red", "green", "blue")):
        for k in range(30):
            pixels = np.random.RandomState(100 * number + k).randint(0, 120, (32, 32, 3)).astype(np.uint8)
            pixels[..., number] += 60
            file = tmp_path / "d" / name / f"{k}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    done = command("train", "--data", tmp_path / "d", "--json")
    assert "warning" not in done.stderr.lower()
    run = gingham.load(command.folder / "runs/fast-0")
    assert run.model.input_shape == (3, 32, 32)
    assert values(command("evaluate", "runs/fast-0", "--split", "test", "--json"))["accuracy"] > 0.9


def test_diagnose_tells_of_empty_and_missing_classes(command, tmp_path):
    fill(tmp_path / "d" / "train", {"a": 12, "b": 12})
    fill(tmp_path / "d" / "test", {"a": 4})
    (tmp_path / "d" / "test" / "b").mkdir()
    shown = command("diagnose", tmp_path / "d").stdout
    assert "the test split lacks 1 of 2 classes" in shown
    assert "test/b is a class folder without a picture" in shown
