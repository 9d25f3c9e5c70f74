"""Files of data, spoilt and built: IDX, .npz, pictures, folders and tables of pictures."""

import gzip
import math
import struct
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gingham.errors import DataError
from gingham.readers import INT, UBYTE, read_idx
from stress.mutations import mutated
from stress.verdicts import Judge

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
