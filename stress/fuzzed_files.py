"""Files of data, spoilt and built: IDX, .npz, pictures, folders and tables of pictures."""

import contextlib
import gzip
import io
import json
import math
import os
import shutil
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gingham.data.decode import fit_square, open_image
from gingham.data.idx import INT, UBYTE, read_idx
from gingham.data.image_files import list_images, read_image_dataset
from gingham.data.listing import ORDER
from gingham.data.load_data import load_data, load_unchecked
from gingham.data.npz import read_npz
from gingham.data.pack_cache import _pack_name
from gingham.errors import DataError
from stress.fuzzed_pictures import valid
from stress.mutations import mutated
from stress.verdicts import Judge, badly_said

Act = Callable[[], object]


def idx(array: np.ndarray, kind: int = UBYTE) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


class IdxFiles:
    """IDX files, plain and gzipped; what is read is what is in them, and what does not add up is refused."""

    def __init__(self, judge: Judge) -> None:
        self.place = judge.place
        random = np.random.RandomState(0)
        pictures, labels = (random.randint(0, 256, shape).astype(np.uint8) for shape in ((5, 4, 3), (7,)))
        numbers = random.randint(0, 2**31, (3, 2)).astype(">i4")
        self.files = [(idx(pictures), 3, UBYTE), (idx(labels), 1, UBYTE), (idx(numbers, INT), 2, INT)]
        self.examples = st.tuples(
            st.binary(min_size=0, max_size=2) | st.just(b"\0\0"),
            st.sampled_from((UBYTE, INT, 0, 9, 255)) | st.just(UBYTE),
            st.sampled_from((UBYTE, INT)) | st.just(UBYTE),
            st.integers(1, 3),
            st.integers(0, 4) | st.none(),  # the number of dimensions that it says, if not the one that is asked for
            st.lists(st.integers(0, 5) | st.sampled_from((255, 65536, 2**31 - 1, 2**31, 2**32 - 1)), min_size=1, max_size=4),
            st.just(0) | st.integers(-4, 4),  # how many bytes there are too many
            st.booleans(),
        )

    def spoilt(self, random: Random) -> Act:
        content, dimensions, kind = random.choice(self.files)
        plain = [content for content, *_ in self.files]
        if random.random() < 0.3:  # damaged below the compression, or above it
            packed = gzip.compress(mutated(random, [content, *plain]), 1, mtime=0)
            content = packed if random.random() < 0.3 else mutated(random, [packed])
            path = self.place / "spoilt.gz"
        else:
            content, path = mutated(random, [content, content, content, *plain]), self.place / "spoilt"
        path.write_bytes(content)
        return lambda: self.read(path, dimensions, kind, content if path.suffix != ".gz" else None)

    def read(self, path: Any, dimensions: int, kind: int, content: bytes | None) -> None:
        array = read_idx(path, dimensions, kind)
        if content is None:
            content = gzip.decompress(path.read_bytes())
        head = 4 + 4 * dimensions
        assert content[:4] == bytes([0, 0, kind, dimensions])
        assert array.shape[:dimensions] == struct.unpack(f">{dimensions}I", content[4:head])
        assert array.dtype == np.uint8
        assert array.tobytes() == content[head:]

    def built(self, example: Any) -> Act:
        start, kind, wanted, dimensions, said, sizes, extra, zipped = example
        said = dimensions if said is None else said
        sizes = (sizes * 4)[:said]
        width = {UBYTE: 1, INT: 4}.get(kind, 1)
        announced = math.prod(sizes) * width
        payload = bytes(k % 251 for k in range(max(0, announced + extra))) if announced < 5000 else b"few"
        content = start + bytes([kind, said]) + struct.pack(f">{len(sizes)}I", *sizes) + payload
        right = start == b"\0\0" and kind == wanted and said == dimensions and 0 < announced < 5000 and extra == 0
        path = self.place / ("built.gz" if zipped else "built")
        path.write_bytes(gzip.compress(content, 1, mtime=0) if zipped else content)

        def act() -> None:
            try:
                array = read_idx(path, dimensions, wanted)
            except DataError:
                assert not right, "what is right was refused"
                raise
            assert array.shape == (*sizes, *(4,) * (kind == INT))
            assert array.tobytes() == payload
            assert right, "what does not add up was read"

        return act


class Npz:
    """.npz files: what is read has as many labels as pictures, and labels of the classes it names."""

    def __init__(self, judge: Judge) -> None:
        self.place = judge.place
        random = np.random.RandomState(0)

        def pictures(count: int, *shape: int) -> np.ndarray:
            return random.randint(0, 256, (count, *shape)).astype(np.uint8)

        labels = np.arange(12) % 3
        text = np.array(["cat", "dog", "hen"])
        self.sets: list[dict[str, Any]] = [
            {"x_train": pictures(12, 5, 4), "y_train": labels, "x_test": pictures(6, 5, 4), "y_test": labels[:6].astype(np.uint8)},
            {"train_images": pictures(12, 4, 4, 3), "train_labels": labels[:, None], "val_images": pictures(3, 4, 4, 3),
             "val_labels": labels[:3, None], "test_images": pictures(3, 4, 4, 3), "test_labels": labels[:3, None]},
            {"images": pictures(12, 1, 4, 4), "labels": text[labels]},
            {"images": pictures(12, 3, 4, 4), "labels": labels, "class_names": text},
            {"images": pictures(12, 4, 4), "labels": text[labels].astype("S3"), "classes": text.astype("S3")},
        ]  # fmt: skip
        self.files = [self.packed(arrays, saver) for arrays in self.sets for saver in (np.savez, np.savez_compressed)]
        names = st.sampled_from((*sorted({name for arrays in self.sets for name in arrays}), "x_val", "y_val", "nothing"))
        kinds = st.sampled_from(
            ("u1", "u1", "i8", "u8", "f4", "S3", "U3", "b1", "O", "M8[s]", "c8", "V4", "i1,i1", ">i4", "U0")
        )
        shapes = st.lists(st.sampled_from((0, 1, 2, 3, 3, 5, 12)), max_size=4)
        self.examples = st.tuples(
            st.integers(0, 4),
            st.lists(st.tuples(names, kinds, shapes, st.integers(0, 2**32 - 1)), max_size=3),
            st.lists(names, max_size=1),  # left out
            st.sampled_from(("whole", "whole", "header", "raw", "locked")),
            st.sampled_from((
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999,), }", b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3), }", b"{'descr': __import__('os').getcwd(), 'shape': ()}",
                b"{'descr': '|u1', 'fortran_order': False, 'shape': (12L, 4L), }", b"{'descr': '|u1', 'shape': (\n", b"((((((((", b"", b"\xff\xfe",
                b"{'descr': '<U9', 'fortran_order': False, 'shape': (12,), }", b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3,), }",
            )) | st.binary(max_size=30),
        )  # fmt: skip

    def packed(self, arrays: dict[str, Any], saver: Callable[..., None] = np.savez) -> bytes:
        file = io.BytesIO()
        saver(file, **arrays)
        return file.getvalue()

    def spoilt(self, random: Random) -> Act:
        content = random.choice(self.files)
        if random.random() < 0.5:
            content = mutated(random, [content, *self.files])
        else:  # damage that the archive's checksums do not see
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            name = random.choice([*members])
            members[name] = mutated(random, [members[name], members[name], *members.values()])
            content = zipped(members)
        return self.act(content, random.random() < 0.3)

    def built(self, example: Any) -> Act:
        base, changes, lacking, way, header = example
        arrays = {name: array for name, array in self.sets[base].items() if name not in lacking}
        for name, kind, shape, seed in changes:
            size = math.prod(shape) * max(1, np.dtype(kind).itemsize)
            content = np.random.RandomState(seed).bytes(size)
            arrays[name] = (np.full(shape, None) if kind == "O" else np.zeros(shape, kind) if kind == "U0"
                            else np.frombuffer(content, kind)[: math.prod(shape)].reshape(shape))  # fmt: skip
        members = {}
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array, allow_pickle=True)
            members[f"{name}.npy"] = file.getvalue()
        name = next(iter(members), "x_train.npy")
        if way == "header":
            members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100)
        if way == "raw":
            members[name.removesuffix(".npy") if len(header) % 2 else name] = header
        content = zipped(members)
        if way == "locked":  # bit 0 of the flags of the archive's directory and of its members: a password is needed
            content = bytearray(content)
            for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
                place = content.find(mark)
                if place >= 0:
                    content[place + offset] |= 1
        return self.act(bytes(content), len(header) % 3 == 0)

    def act(self, content: bytes, whole: bool) -> Act:
        path = self.place / "arrays.npz"
        path.write_bytes(content)
        return lambda: self.loaded(path) if whole else self.read(path)

    def read(self, path: Path) -> None:
        raw = read_npz(path)
        for images, labels in ((raw.images, raw.labels), (raw.test_images, raw.test_labels)):
            if images is None or labels is None:
                assert images is labels
                continue
            assert images.dtype == np.uint8
            assert labels.dtype == np.int64
            assert images.ndim == 4
            assert images.shape[1] in (1, 3) or images.shape[0] == 0
            assert len(images) == len(labels)
            assert not len(labels) or 0 <= labels.min() <= labels.max() < len(raw.classes)
        assert len(set(raw.classes)) == len(raw.classes)
        assert all(isinstance(name, str) for name in raw.classes)
        assert 0 <= raw.validation <= len(raw.labels)

    def loaded(self, path: Path) -> None:
        data = load_data(str(path), validation=2)
        for split in filter(None, (data.train, data.validation, data.test)):
            assert len(split.images) == len(split.labels)
            assert sum(split.counts().values()) == len(split)


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


WHERE = ("a/0.png", "b/1.png", "a/../b/1.png", "./a/0.png", "../place/tables/a/0.png", "../../beside/secret.png", "a", "", " ", ".", "..",
         "/etc/passwd", "/dev/zero", "/dev/null", "/proc/self/environ", "pipe", "loop", "out", "endless", "gone.png", "a/0.png\0", "\0", "é/ü.png",
         "x" * 300, "y/" * 3000, "~", "~root", "$HOME", "%s", "C:\\a.png", "file:///etc/passwd", "http://127.0.0.1/a.png", "|true", "a/0.png;true",
         "-", "a\nb", "\x1b[2J", "\u202e", "=1+1")  # fmt: skip
NAMES = (
    "a",
    "b",
    "c",
    "",
    " ",
    "..",
    "a\nb",
    "\x1b[31m",
    "\u2028",
    "é",
    "e\u0301",
    "x" * 5000,
    "10",
    "9" * 5000,
    "²",
    "\0",
    "a,b",
    '"',
    "\u202e",
)


class Tables:
    """Tables and folders of pictures, and the packs that are kept of them: what is listed lies where its row says."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.place = judge, judge.place / "tables"
        self.number, self.packed = 0, dict[Path, bytes]()
        pictures = valid()["PNG"]
        for name, content in (("a", pictures[0]), ("b", pictures[1])):
            (self.place / name).mkdir(parents=True)
            for number in range(4):
                (self.place / name / f"{number}.png").write_bytes(content)
        (judge.beside / "secret.png").write_bytes(pictures[2])
        (judge.beside / "own").mkdir()
        (judge.beside / "own" / "0.png").write_bytes(pictures[3])
        os.mkfifo(self.place / "pipe")
        for name, target in (("loop", "loop"), ("out", judge.beside), ("endless", "/dev/zero"), ("missing", "nowhere")):
            (self.place / name).symlink_to(target)
        rows = [
            f"{name}/{number}.png,{name},{split}"
            for name in "ab"
            for number, split in enumerate(("train", "train", "val", "test"))
        ]
        self.tables = [
            "\n".join(["path,label,split", *rows, ""]).encode(),
            "\r\n".join(["file;class", *(";".join(row.split(",")[:2]) for row in rows), ""]).encode("utf-8-sig"),
            "\n".join(["image\tlabel", *("\t".join(f'"{cell}"' for cell in row.split(",")[:2]) for row in rows)]).encode(),
        ]
        self.deep = place = self.place.parent / "deep"
        place.mkdir()
        for _ in range(1200):
            place /= "d"
            place.mkdir()
        (place / "0.png").write_bytes(pictures[0])
        word = st.text(max_size=5)
        rows = st.lists(st.tuples(st.sampled_from(WHERE) | st.sampled_from(WHERE[:4]) | word, st.sampled_from(NAMES) | st.sampled_from("ab") | word,
                                  st.sampled_from(("train", "train", "val", "TEST", "", "other", "x" * 3000))), max_size=6)  # fmt: skip
        table = st.tuples(
            st.sampled_from(("path,label,split", "path,label,split", "path,label", "file;class;split", "image\tlabel", "label,path", "path,path,label",
                             "", "path", "PATH , Label", "x" * 3000)),
            rows, st.booleans(), st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n", "\0")),
            st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")), st.sampled_from(("", "", "", '"', "\udcff", '"' + "z" * 140_000)),
        )  # fmt: skip
        part = st.sampled_from(
            (
                "a",
                "b",
                "train",
                "test",
                "val",
                "0.png",
                "1.jpg",
                ".hidden",
                "é",
                "\udcff",
                "a\nb",
                "x" * 250,
                "model.json",
                "__MACOSX",
            )
        )
        thing = st.tuples(st.sampled_from(("file", "file", "file", "text", "empty", "folder", "link", "pipe")), st.lists(part, min_size=1, max_size=4),
                          st.sampled_from((".", "..", "../..", "a", "../a", "nowhere", "{beside}", "{beside}/secret.png", "{beside}/own", "/dev/zero", "/proc/self")))  # fmt: skip
        common = st.one_of(
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("tree"), st.lists(thing, max_size=8), st.integers(0, 5)),
            st.tuples(st.just("tree"), st.lists(thing, max_size=8), st.integers(0, 5)),
            st.tuples(st.just("pack"), st.tuples(st.sampled_from(("shape", "dtype", "missing", "odd", "crc32", "format", "header")), VALUES), st.integers(0, 5)),
            st.tuples(st.just("fan"), st.integers(1, 22), st.integers(0, 5)),
        )  # fmt: skip
        deepest = st.tuples(st.just("deep"), st.just(1200), st.integers(0, 5))
        self.examples = st.integers(0, 40).flatmap(lambda number: deepest if number == 40 else common)

    def spoilt(self, random: Random) -> Act:
        if random.random() < 0.2:
            return self.spoilt_pack(random)
        path = self.place / "list.csv"
        path.write_bytes(mutated(random, self.tables))
        return self.act(path, random.randrange(6))

    def pack(self) -> tuple[Path, Path, Path]:
        """A table, and the two files of the pack of its pictures, put back as they were: it is of this table while nothing in it moves."""
        path = self.place / "packed.csv"
        if not self.packed:
            path.write_bytes(self.tables[0])
            read_image_dataset(path, 0, skip_unreadable=False)
            found = (self.judge.place / "cache" / "gingham" / "packs").iterdir()
            known = {file: file.read_bytes() for file in found}
            self.packed = {file: content for file, content in known.items() if file.stem in self.pack_of(path)}
        for file, content in self.packed.items():
            file.write_bytes(content)
        array, metadata = sorted(self.packed, reverse=True)
        return path, array, metadata

    def pack_of(self, path: Path) -> str:
        return _pack_name(path, list_images(path), 0)

    def spoilt_pack(self, random: Random) -> Act:
        path, array, metadata = self.pack()
        file = random.choice((array, metadata))
        file.write_bytes(mutated(random, [file.read_bytes()]))
        return lambda: self.same(path)

    def same(self, path: Path) -> None:
        """A damaged pack is made anew: the pictures are what the files hold."""
        raw = read_image_dataset(path, 0, skip_unreadable=False)
        assert raw.images.shape[0] == 6
        assert raw.test_images is not None
        whole = open_image(self.place / "a" / "0.png").convert("RGB")
        assert raw.images[0].tobytes() == np.asarray(fit_square(whole, raw.images.shape[2])).transpose(2, 0, 1).tobytes()

    def built(self, example: Any) -> Act:
        kind, values, way = example
        if kind == "table":
            return self.table(values, way)
        if kind == "pack":
            return self.built_pack(*values)
        if kind == "deep":
            return self.act(self.deep, way)
        self.number += 1
        folder = self.place.parent / f"tree-{self.number}"
        if self.number > 1:
            shutil.rmtree(self.place.parent / f"tree-{self.number - 1}")
        folder.mkdir()
        if kind == "tree":
            for what, parts, target in values:
                with contextlib.suppress(OSError, ValueError):
                    self.make(folder.joinpath(*parts), what, target)
        else:
            for level in range(values):
                (folder / "a" / str(level)).mkdir(parents=True)
                for name in "xy":
                    (folder / "a" / str(level) / name).symlink_to(f"../{level + 1}")
            (folder / "a" / str(values)).mkdir()
            (folder / "b").mkdir()
            for place in (folder / "a" / str(values), folder / "b"):
                (place / "0.png").write_bytes(valid()["PNG"][0])
        return self.act(folder, way)

    def make(self, place: Path, what: str, target: str) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(place):
            return  # writing to a pipe would wait for a reader
        if what == "folder":
            place.mkdir()
        elif what == "link":
            place.symlink_to(target.format(beside=self.judge.beside))
        elif what == "pipe":
            os.mkfifo(place)
        else:
            place.write_bytes({"file": valid()["PNG"][len(place.parts) % 5], "text": b"text", "empty": b""}[what])

    def table(self, values: Any, way: int) -> Act:
        head, rows, quoted, end, encoding, tail = values
        mark = max(",;\t", key=head.count)
        columns = head.count(mark) + 1
        lines = [head, *(mark.join(f'"{cell}"' if quoted else cell for cell in row[:columns]) for row in rows), tail]
        path = self.place / "list.csv"
        path.write_bytes(end.join(lines).encode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "replace"))
        return self.act(path, way)

    def built_pack(self, key: str, value: Any) -> Act:
        path, array, metadata = self.pack()
        said = json.loads(metadata.read_text())
        if key == "shape":
            images = np.load(array)
            np.save(array, images[: len(images) // 2] if value else images[:0])
            said["crc32"] = zlib.crc32(np.load(array).tobytes())
        elif key == "dtype":
            np.save(array, np.load(array).astype(np.float32))
            said["crc32"] = zlib.crc32(np.load(array).tobytes())
        elif key == "header":
            array.write_bytes(array.read_bytes().replace(b"(8,", b"(9,", 1))
        else:
            said[key] = value
        metadata.write_text(json.dumps(said))
        if key in ("missing", "odd"):  # they are taken as they are, if they fit
            return lambda: read_image_dataset(path, 0, skip_unreadable=True)
        return lambda: self.same(path)

    def act(self, place: Path, way: int) -> Act:
        if way == 0:
            return lambda: self.list_differences(place)
        if way == 1:
            return lambda: self.examined(place)
        if way == 2:
            return lambda: self.loaded(place)
        return lambda: self.read(place, way)

    def list_differences(self, place: Path) -> None:
        listing = list_images(place, training=False)
        for entry in listing.entries:
            assert entry.split in ORDER
            assert entry.label in listing.classes
            if place.is_dir():
                assert place in entry.file.parents
            else:
                wanted = place.parent / entry.name
                assert unicodedata.normalize("NFC", str(entry.file)) == unicodedata.normalize("NFC", str(wanted))
        assert len(set(listing.classes)) == len(listing.classes)

    def read(self, place: Path, way: int) -> None:
        raw = read_image_dataset(place, 0 if way % 2 else 5, skip_unreadable=way > 3)
        assert len(raw.images) == len(raw.labels) == len(raw.files)
        assert raw.images.dtype == np.uint8
        assert not len(raw.labels) or 0 <= raw.labels.min() <= raw.labels.max() < len(raw.classes)
        for note in raw.notes:
            assert badly_said(str(DataError(note))) is None

    def loaded(self, place: Path) -> None:
        data = load_data(str(place), validation=1, skip_unreadable=True)
        for split in filter(None, (data.train, data.validation, data.test)):
            assert len(split.images) == len(split.labels) == len(split.files)

    def examined(self, place: Path) -> None:
        data, odd = load_unchecked(str(place))
        assert len(data.train.images) == len(data.train.labels)
        assert all(reason for _, reason in odd)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.sampled_from((-1, 2**31, 2**63, 10**30)), st.floats(), st.text(max_size=5),
    st.lists(st.integers(-2, 20), max_size=3), st.lists(st.lists(st.integers(0, 9) | st.text(max_size=3), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
