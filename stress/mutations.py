"""Mutations that make nearly valid files from valid ones: bit flips, cuts, copies, splices and extreme numbers."""

import struct
from collections.abc import Sequence
from random import Random

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    1000,
    32767,
    32768,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)
STRUCT_FORMATS = ("<B", "<H", ">H", "<I", ">I", "<Q", ">Q")
TOKENS = (
    b"\0",
    b"\r\n",
    b"\n",
    b'"',
    b",",
    b"..",
    b"/",
    b"%s",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"[]",
    b"{}",
)


def mutate(random: Random, files: Sequence[bytes]) -> bytes:
    """Return one of the files with one to four mutations; rarely an empty, a random or an unchanged one."""
    kind = random.random()
    if kind < 0.01:
        return b""
    if kind < 0.03:
        return random.randbytes(random.choice((1, 4, 16, 100, 3000)))
    content = random.choice(files)
    if kind < 0.05:
        return content
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        content = random.choice(MUTATIONS)(random, content, files)
    return content


def _flip(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8, 40))) if content else ():
        changed[_offset(random, content)] ^= 1 << random.randrange(8)
    return bytes(changed)


def _overwrite(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 8))) if content else ():
        changed[_offset(random, content)] = random.choice((0, 1, 32, 127, 128, 254, 255, random.randrange(256)))
    return bytes(changed)


def _cut(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _insert(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    offset = random.randrange(len(content) + 1)
    new = random.choice(
        (random.choice(TOKENS), random.randbytes(random.randrange(1, 9)), bytes(random.choice((1, 4, 100, 5000))))
    )
    return content[:offset] + new + content[offset:]


def _repeat(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    start, stop = _span(random, content)
    return content[:stop] + content[start:stop] * random.choice((1, 1, 2, 30)) + content[stop:]


def _remove(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    start, stop = _span(random, content)
    return content[:start] + content[stop:]


def _number(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    struct_format = random.choice(STRUCT_FORMATS)
    new = struct.pack(struct_format, random.choice(NUMBERS) & ((1 << 8 * struct.calcsize(struct_format)) - 1))
    offset = _offset(random, content) if content else 0
    return content[:offset] + new + content[offset + len(new) :]


def _digits(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    """Replace a number that is written as text, as in JSON and CSV."""
    offsets = [offset for offset in range(len(content)) if content[offset : offset + 1].isdigit()]
    if not offsets:
        return _number(random, content, files)
    start = stop = random.choice(offsets)
    while content[stop : stop + 1].isdigit():
        stop += 1
    new = random.choice(
        (b"-1", b"0", b"1e999", b"1.5", b"NaN", b"true", b"null", b'"x"', str(random.choice(NUMBERS)).encode())
    )
    return content[:start] + new + content[stop:]


def _splice(random: Random, content: bytes, files: Sequence[bytes]) -> bytes:
    other = random.choice(files)
    return content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]


MUTATIONS = (_flip, _flip, _overwrite, _cut, _insert, _repeat, _remove, _number, _number, _digits, _splice)


def _offset(random: Random, content: bytes) -> int:
    """Return an offset in a file; every other time near its beginning, where its header is."""
    return random.randrange(min(len(content), 64) if random.random() < 0.5 else len(content))


def _span(random: Random, content: bytes) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 2, 4, 16, 64, 1024)))
