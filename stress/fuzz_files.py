"""Fuzzed dataset files: IDX, .npz, image folders and tables of images."""

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
from gingham.data.image_files import SPLIT_ORDER, list_images, read_image_dataset
from gingham.data.load_data import load_data, load_unchecked
from gingham.data.npz import read_npz
from gingham.data.pack_cache import pack_path
from gingham.errors import DataError
from stress.fuzz_images import valid_files
from stress.mutations import mutate
from stress.verdicts import Judge, message_problem

Case = Callable[[], object]


def idx_bytes(array: np.ndarray, kind: int = UBYTE) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


class IdxFiles:
    """IDX files, plain and gzipped: the array read is the one in the file, and inconsistent files are refused."""

    def __init__(self, judge: Judge) -> None:
        self.folder = judge.folder
        random = np.random.RandomState(0)
        images, labels = (random.randint(0, 256, shape).astype(np.uint8) for shape in ((5, 4, 3), (7,)))
        numbers = random.randint(0, 2**31, (3, 2)).astype(">i4")
        self.files = [(idx_bytes(images), 3, UBYTE), (idx_bytes(labels), 1, UBYTE), (idx_bytes(numbers, INT), 2, INT)]
        self.examples = st.tuples(
            st.binary(min_size=0, max_size=2) | st.just(b"\0\0"),
            st.sampled_from((UBYTE, INT, 0, 9, 255)) | st.just(UBYTE),
            st.sampled_from((UBYTE, INT)) | st.just(UBYTE),
            st.integers(1, 3),
            st.integers(0, 4) | st.none(),  # the declared number of dimensions, if not the expected one
            st.lists(
                st.integers(0, 5) | st.sampled_from((255, 65536, 2**31 - 1, 2**31, 2**32 - 1)), min_size=1, max_size=4
            ),
            st.just(0) | st.integers(-4, 4),  # number of extra bytes
            st.booleans(),
        )

    def mutated_case(self, random: Random) -> Case:
        content, dimensions, kind = random.choice(self.files)
        plain = [content for content, *_ in self.files]
        if random.random() < 0.3:  # damaged before or after compression
            compressed = gzip.compress(mutate(random, [content, *plain]), 1, mtime=0)
            content = compressed if random.random() < 0.3 else mutate(random, [compressed])
            path = self.folder / "mutated.gz"
        else:
            content, path = mutate(random, [content, content, content, *plain]), self.folder / "mutated"
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

    def generated_case(self, example: Any) -> Case:
        start, kind, expected_kind, dimensions, declared, sizes, extra, compressed = example
        declared = dimensions if declared is None else declared
        sizes = (sizes * 4)[:declared]
        width = {UBYTE: 1, INT: 4}.get(kind, 1)
        announced = math.prod(sizes) * width
        payload = bytes(k % 251 for k in range(max(0, announced + extra))) if announced < 5000 else b"few"
        content = start + bytes([kind, declared]) + struct.pack(f">{len(sizes)}I", *sizes) + payload
        valid = (
            start == b"\0\0"
            and kind == expected_kind
            and declared == dimensions
            and 0 < announced < 5000
            and extra == 0
        )
        path = self.folder / ("generated.gz" if compressed else "generated")
        path.write_bytes(gzip.compress(content, 1, mtime=0) if compressed else content)

        def case() -> None:
            try:
                array = read_idx(path, dimensions, expected_kind)
            except DataError:
                assert not valid, "what is right was refused"
                raise
            assert array.shape == (*sizes, *(4,) * (kind == INT))
            assert array.tobytes() == payload
            assert valid, "what does not add up was read"

        return case


class Npz:
    """.npz files: there are as many labels as images, and each label has a class."""

    def __init__(self, judge: Judge) -> None:
        self.folder = judge.folder
        random = np.random.RandomState(0)

        def random_images(count: int, *shape: int) -> np.ndarray:
            return random.randint(0, 256, (count, *shape)).astype(np.uint8)

        labels = np.arange(12) % 3
        text = np.array(["cat", "dog", "hen"])
        self.sets: list[dict[str, Any]] = [
            {
                "x_train": random_images(12, 5, 4),
                "y_train": labels,
                "x_test": random_images(6, 5, 4),
                "y_test": labels[:6].astype(np.uint8),
            },
            {
                "train_images": random_images(12, 4, 4, 3),
                "train_labels": labels[:, None],
                "val_images": random_images(3, 4, 4, 3),
                "val_labels": labels[:3, None],
                "test_images": random_images(3, 4, 4, 3),
                "test_labels": labels[:3, None],
            },
            {"images": random_images(12, 1, 4, 4), "labels": text[labels]},
            {"images": random_images(12, 3, 4, 4), "labels": labels, "class_names": text},
            {"images": random_images(12, 4, 4), "labels": text[labels].astype("S3"), "classes": text.astype("S3")},
        ]
        self.files = [
            self.npz_bytes(arrays, saver) for arrays in self.sets for saver in (np.savez, np.savez_compressed)
        ]
        names = st.sampled_from(
            (*sorted({name for arrays in self.sets for name in arrays}), "x_val", "y_val", "nothing")
        )
        kinds = st.sampled_from(
            ("u1", "u1", "i8", "u8", "f4", "S3", "U3", "b1", "O", "M8[s]", "c8", "V4", "i1,i1", ">i4", "U0")
        )
        shapes = st.lists(st.sampled_from((0, 1, 2, 3, 3, 5, 12)), max_size=4)
        self.examples = st.tuples(
            st.integers(0, 4),
            st.lists(st.tuples(names, kinds, shapes, st.integers(0, 2**32 - 1)), max_size=3),
            st.lists(names, max_size=1),  # left out
            st.sampled_from(("whole", "whole", "header", "raw", "locked")),
            st.sampled_from(
                (
                    b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999,), }",
                    b"{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
                    b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 3), }",
                    b"{'descr': __import__('os').getcwd(), 'shape': ()}",
                    b"{'descr': '|u1', 'fortran_order': False, 'shape': (12L, 4L), }",
                    b"{'descr': '|u1', 'shape': (\n",
                    b"((((((((",
                    b"",
                    b"\xff\xfe",
                    b"{'descr': '<U9', 'fortran_order': False, 'shape': (12,), }",
                    b"{'descr': [('a', '|u1')], 'fortran_order': False, 'shape': (3,), }",
                )
            )
            | st.binary(max_size=30),
        )

    def npz_bytes(self, arrays: dict[str, Any], saver: Callable[..., None] = np.savez) -> bytes:
        file = io.BytesIO()
        saver(file, **arrays)
        return file.getvalue()

    def mutated_case(self, random: Random) -> Case:
        content = random.choice(self.files)
        if random.random() < 0.5:
            content = mutate(random, [content, *self.files])
        else:  # damage that the archive's checksums do not detect
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            name = random.choice([*members])
            members[name] = mutate(random, [members[name], members[name], *members.values()])
            content = zip_bytes(members)
        return self.case(content, random.random() < 0.3)

    def generated_case(self, example: Any) -> Case:
        base, changes, removed, damage, header = example
        arrays = {name: array for name, array in self.sets[base].items() if name not in removed}
        for name, kind, shape, seed in changes:
            size = math.prod(shape) * max(1, np.dtype(kind).itemsize)
            content = np.random.RandomState(seed).bytes(size)
            arrays[name] = (
                np.full(shape, None)
                if kind == "O"
                else np.zeros(shape, kind)
                if kind == "U0"
                else np.frombuffer(content, kind)[: math.prod(shape)].reshape(shape)
            )
        members = {}
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array, allow_pickle=True)
            members[f"{name}.npy"] = file.getvalue()
        name = next(iter(members), "x_train.npy")
        if damage == "header":
            members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(100)
        if damage == "raw":
            members[name.removesuffix(".npy") if len(header) % 2 else name] = header
        content = zip_bytes(members)
        if damage == "locked":  # bit 0 of the flags in the archive's directory and in its members: encrypted
            content = bytearray(content)
            for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
                start = content.find(mark)
                if start >= 0:
                    content[start + offset] |= 1
        return self.case(bytes(content), len(header) % 3 == 0)

    def case(self, content: bytes, load: bool) -> Case:
        path = self.folder / "arrays.npz"
        path.write_bytes(content)
        return lambda: self.check_load_data(path) if load else self.check_read_npz(path)

    def check_read_npz(self, path: Path) -> None:
        raw = read_npz(path)
        for images, labels, *_ in raw.parts.values():
            assert images.dtype == np.uint8
            assert labels.dtype == np.int64
            assert images.ndim == 4
            assert images.shape[1] in (1, 3) or images.shape[0] == 0
            assert len(images) == len(labels)
            assert not len(labels) or 0 <= labels.min() <= labels.max() < len(raw.classes)
        assert len(set(raw.classes)) == len(raw.classes)
        assert all(isinstance(name, str) for name in raw.classes)
        assert 0 <= raw.num_validation <= len(raw.parts["training"].labels)

    def check_load_data(self, path: Path) -> None:
        data = load_data(str(path), validation=2)
        for split in filter(None, (data.train, data.validation, data.test)):
            assert len(split.images) == len(split.labels)
            assert sum(split.counts().values()) == len(split)


def zip_bytes(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


PATHS = (
    "a/0.png",
    "b/1.png",
    "a/../b/1.png",
    "./a/0.png",
    "../folder/tables/a/0.png",
    "../../outside/secret.png",
    "a",
    "",
    " ",
    ".",
    "..",
    "/etc/passwd",
    "/dev/zero",
    "/dev/null",
    "/proc/self/environ",
    "pipe",
    "loop",
    "out",
    "endless",
    "gone.png",
    "a/0.png\0",
    "\0",
    "é/ü.png",
    "x" * 300,
    "y/" * 3000,
    "~",
    "~root",
    "$HOME",
    "%s",
    "C:\\a.png",
    "file:///etc/passwd",
    "http://127.0.0.1/a.png",
    "|true",
    "a/0.png;true",
    "-",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "=1+1",
)
CLASS_NAMES = (
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
    """Tables and folders of images and their cached packs: each listed file is where its row says."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.folder = judge, judge.folder / "tables"
        self.num_trees, self.pack_files = 0, dict[Path, bytes]()
        images = valid_files()["PNG"]
        for name, content in (("a", images[0]), ("b", images[1])):
            (self.folder / name).mkdir(parents=True)
            for number in range(4):
                (self.folder / name / f"{number}.png").write_bytes(content)
        (judge.outside / "secret.png").write_bytes(images[2])
        (judge.outside / "own").mkdir()
        (judge.outside / "own" / "0.png").write_bytes(images[3])
        os.mkfifo(self.folder / "pipe")
        for name, target in (
            ("loop", "loop"),
            ("out", judge.outside),
            ("endless", "/dev/zero"),
            ("missing", "nowhere"),
        ):
            (self.folder / name).symlink_to(target)
        rows = [
            f"{name}/{number}.png,{name},{split}"
            for name in "ab"
            for number, split in enumerate(("train", "train", "val", "test"))
        ]
        self.tables = [
            "\n".join(["path,label,split", *rows, ""]).encode(),
            "\r\n".join(["file;class", *(";".join(row.split(",")[:2]) for row in rows), ""]).encode("utf-8-sig"),
            "\n".join(
                ["image\tlabel", *("\t".join(f'"{cell}"' for cell in row.split(",")[:2]) for row in rows)]
            ).encode(),
        ]
        self.deep_folder = folder = self.folder.parent / "deep"
        folder.mkdir()
        for _ in range(1200):
            folder /= "d"
            folder.mkdir()
        (folder / "0.png").write_bytes(images[0])
        word = st.text(max_size=5)
        rows = st.lists(
            st.tuples(
                st.sampled_from(PATHS) | st.sampled_from(PATHS[:4]) | word,
                st.sampled_from(CLASS_NAMES) | st.sampled_from("ab") | word,
                st.sampled_from(("train", "train", "val", "TEST", "", "other", "x" * 3000)),
            ),
            max_size=6,
        )
        table = st.tuples(
            st.sampled_from(
                (
                    "path,label,split",
                    "path,label,split",
                    "path,label",
                    "file;class;split",
                    "image\tlabel",
                    "label,path",
                    "path,path,label",
                    "",
                    "path",
                    "PATH , Label",
                    "x" * 3000,
                )
            ),
            rows,
            st.booleans(),
            st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n", "\0")),
            st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")),
            st.sampled_from(("", "", "", '"', "\udcff", '"' + "z" * 140_000)),
        )
        name_part = st.sampled_from(
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
        tree_entry = st.tuples(
            st.sampled_from(("file", "file", "file", "text", "empty", "folder", "link", "pipe")),
            st.lists(name_part, min_size=1, max_size=4),
            st.sampled_from(
                (
                    ".",
                    "..",
                    "../..",
                    "a",
                    "../a",
                    "nowhere",
                    "{outside}",
                    "{outside}/secret.png",
                    "{outside}/own",
                    "/dev/zero",
                    "/proc/self",
                )
            ),
        )
        common = st.one_of(
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("table"), table, st.integers(0, 5)),
            st.tuples(st.just("tree"), st.lists(tree_entry, max_size=8), st.integers(0, 5)),
            st.tuples(st.just("tree"), st.lists(tree_entry, max_size=8), st.integers(0, 5)),
            st.tuples(
                st.just("pack"),
                st.tuples(st.sampled_from(("shape", "dtype", "missing", "odd", "crc32", "format", "header")), VALUES),
                st.integers(0, 5),
            ),
            st.tuples(st.just("fan"), st.integers(1, 22), st.integers(0, 5)),
        )
        deepest = st.tuples(st.just("deep"), st.just(1200), st.integers(0, 5))
        self.examples = st.integers(0, 40).flatmap(lambda number: deepest if number == 40 else common)

    def mutated_case(self, random: Random) -> Case:
        if random.random() < 0.2:
            return self.mutated_pack(random)
        path = self.folder / "list.csv"
        path.write_bytes(mutate(random, self.tables))
        return self.case(path, random.randrange(6))

    def pack(self) -> tuple[Path, Path, Path]:
        """Return a table and the two files of its pack, restored: the pack is valid while no file changes."""
        path = self.folder / "packed.csv"
        if not self.pack_files:
            path.write_bytes(self.tables[0])
            read_image_dataset(path, 0, skip_unreadable=False)
            files = (self.judge.folder / "cache" / "gingham" / "packs").iterdir()
            contents = {file: file.read_bytes() for file in files}
            self.pack_files = {file: content for file, content in contents.items() if file.stem in self.pack_name(path)}
        for file, content in self.pack_files.items():
            file.write_bytes(content)
        array, metadata = sorted(self.pack_files, reverse=True)
        return path, array, metadata

    def pack_name(self, path: Path) -> str:
        return pack_path(path, [entry.path for entry in list_images(path).entries], 0).name

    def mutated_pack(self, random: Random) -> Case:
        path, array, metadata = self.pack()
        file = random.choice((array, metadata))
        file.write_bytes(mutate(random, [file.read_bytes()]))
        return lambda: self.check_rebuilt(path)

    def check_rebuilt(self, path: Path) -> None:
        """Check that a damaged pack is rebuilt: the images are those in the files."""
        raw = read_image_dataset(path, 0, skip_unreadable=False)
        images = raw.parts["training"].images
        assert len(images) == 6
        assert "test" in raw.parts
        original = open_image(self.folder / "a" / "0.png").convert("RGB")
        expected = np.asarray(fit_square(original, images.shape[2])).transpose(2, 0, 1)
        assert images[0].tobytes() == expected.tobytes()

    def generated_case(self, example: Any) -> Case:
        kind, values, variant = example
        if kind == "table":
            return self.table_case(values, variant)
        if kind == "pack":
            return self.generated_pack(*values)
        if kind == "deep":
            return self.case(self.deep_folder, variant)
        self.num_trees += 1
        folder = self.folder.parent / f"tree-{self.num_trees}"
        if self.num_trees > 1:
            shutil.rmtree(self.folder.parent / f"tree-{self.num_trees - 1}")
        folder.mkdir()
        if kind == "tree":
            for entry_kind, parts, target in values:
                with contextlib.suppress(OSError, ValueError):
                    self.create(folder.joinpath(*parts), entry_kind, target)
        else:
            for level in range(values):
                (folder / "a" / str(level)).mkdir(parents=True)
                for name in "xy":
                    (folder / "a" / str(level) / name).symlink_to(f"../{level + 1}")
            (folder / "a" / str(values)).mkdir()
            (folder / "b").mkdir()
            for class_folder in (folder / "a" / str(values), folder / "b"):
                (class_folder / "0.png").write_bytes(valid_files()["PNG"][0])
        return self.case(folder, variant)

    def create(self, path: Path, kind: str, target: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            return  # writing to a pipe would block
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            path.symlink_to(target.format(outside=self.judge.outside))
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.write_bytes({"file": valid_files()["PNG"][len(path.parts) % 5], "text": b"text", "empty": b""}[kind])

    def table_case(self, values: Any, variant: int) -> Case:
        head, rows, quoted, end, encoding, tail = values
        mark = max(",;\t", key=head.count)
        columns = head.count(mark) + 1
        lines = [head, *(mark.join(f'"{cell}"' if quoted else cell for cell in row[:columns]) for row in rows), tail]
        path = self.folder / "list.csv"
        path.write_bytes(
            end.join(lines).encode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "replace")
        )
        return self.case(path, variant)

    def generated_pack(self, key: str, value: Any) -> Case:
        path, array, metadata = self.pack()
        values = json.loads(metadata.read_text())
        if key == "shape":
            images = np.load(array)
            np.save(array, images[: len(images) // 2] if value else images[:0])
            values["crc32"] = zlib.crc32(np.load(array).tobytes())
        elif key == "dtype":
            np.save(array, np.load(array).astype(np.float32))
            values["crc32"] = zlib.crc32(np.load(array).tobytes())
        elif key == "header":
            array.write_bytes(array.read_bytes().replace(b"(8,", b"(9,", 1))
        else:
            values[key] = value
        metadata.write_text(json.dumps(values))
        if key in ("missing", "odd"):  # they are used as they are if they are consistent
            return lambda: read_image_dataset(path, 0, skip_unreadable=True)
        return lambda: self.check_rebuilt(path)

    def case(self, path: Path, variant: int) -> Case:
        if variant == 0:
            return lambda: self.check_listing(path)
        if variant == 1:
            return lambda: self.check_unchecked(path)
        if variant == 2:
            return lambda: self.check_load_data(path)
        return lambda: self.check_read(path, variant)

    def check_listing(self, path: Path) -> None:
        listing = list_images(path, training=False)
        for entry in listing.entries:
            assert entry.split in SPLIT_ORDER
            assert entry.label in listing.classes
            if path.is_dir():
                assert path in entry.path.parents
            else:
                # Unless the name was completed, or found in a folder beside the table.
                expected = path.parent / entry.name
                is_named = unicodedata.normalize("NFC", str(entry.path)) == unicodedata.normalize("NFC", str(expected))
                assert is_named or (entry.path.is_file() and entry.path.is_relative_to(path.parent))
        assert len(set(listing.classes)) == len(listing.classes)

    def check_read(self, path: Path, variant: int) -> None:
        raw = read_image_dataset(path, 0 if variant % 2 else 5, skip_unreadable=variant > 3)
        images, labels, files, groups = raw.parts["training"]
        assert len(groups) in (0, len(labels))
        assert len(images) == len(labels) == len(files)
        assert images.dtype == np.uint8
        assert not len(labels) or 0 <= labels.min() <= labels.max() < len(raw.classes)
        for note in raw.notes:
            assert message_problem(str(DataError(note))) is None

    def check_load_data(self, path: Path) -> None:
        data = load_data(str(path), validation=1, skip_unreadable=True)
        for split in filter(None, (data.train, data.validation, data.test)):
            assert len(split.images) == len(split.labels) == len(split.files)

    def check_unchecked(self, path: Path) -> None:
        data, unreadable = load_unchecked(str(path))
        assert len(data.train.images) == len(data.train.labels)
        assert all(reason for _, reason in unreadable)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from((-1, 2**31, 2**63, 10**30)),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 20), max_size=3),
    st.lists(st.lists(st.integers(0, 9) | st.text(max_size=3), max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
