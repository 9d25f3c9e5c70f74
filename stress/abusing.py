"""A server under load and abuse, all at once: who asks well is answered rightly, and nothing grows.

A real `gingham serve` of the packaged model, with the setting of docs/deploy.md for its memory and 1,024 file descriptors. While 64 clients ask for
pictures and compare each answer with the model's own, others send slowly, never read, go away at every stage, and send what is too large, wrong,
broken or hostile; /health is asked twice a second by a thread of its own.

What is held to be lost:

- a status of 500 or more, but for 503; a refusal of the server's own that is no JSON with `error` on one line; a status that the abuse cannot rightly get;
- a wrong answer to a good request, or none. A server that has too much to do may close a connection or say 503: a good client then asks
  again, for up to 60 seconds in all, and only then has it been lost. So it does where its connection was closed between two requests;
- a /health that is not answered with 200 within 5 seconds, on a connection of its own, without a second try;
- the process gone, a traceback on its stderr, another end than exit code 0 upon SIGTERM;
- memory whose median in the last quarter is above that of the second quarter by more than a tenth and 50 MB;
- more threads in the last quarter than in the second (two may come and go), or file descriptors still open when everyone has left.
"""

import asyncio
import contextlib
import http.client
import io
import json
import os
import random
import re
import resource
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

import gingham
from stress.outcomes import Check, Outcome

CLIENTS, HEALTH_SECONDS, PATIENCE = 64, 5.0, 60.0
BOUNDARY = b"a-boundary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
CLOSED = (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
Abuse = Callable[["Abused", random.Random], Awaitable[None]]


@dataclass
class Record:
    """What was seen: how much was tried, what was lost, and the process measured twice a second."""

    tried: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds until a good request was answered, all its tries together
    health: list[float] = field(default_factory=list)  # seconds each
    memory: list[float] = field(default_factory=list)  # MB
    threads: list[int] = field(default_factory=list)
    files_before: int = 0
    files_after: int = 0
    exit_code: int | None = 0
    stderr: str = ""

    def status(self, what: str, status: int, body: bytes, allowed: tuple[int, ...]) -> None:
        """Judge an answer to an abuse; 503 is what a server may always say."""
        if status != 503 and status not in allowed:
            self.lost[f"{what} was answered {status}, not {' or '.join(map(str, allowed))}: {body[:200]!r}"] += 1
        elif status >= 400:
            try:
                said = json.loads(body)["error"]
                if not isinstance(said, str) or "\n" in said or not said:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                self.lost[f"{what} was refused with {status} and no sentence: {body[:200]!r}"] += 1


def judge(record: Record) -> list[str]:
    """Return a sentence for each thing lost."""
    lost = [f"{what} ({times} times)" if times > 1 else what for what, times in record.lost.items()]
    lost += [
        f"/health took {seconds:.1f} s, over {HEALTH_SECONDS:g} s" for seconds in record.health if seconds > HEALTH_SECONDS
    ]
    if not record.health:
        lost.append("/health was never answered")
    if grown := growth(record.memory):
        lost.append(f"memory grew from {grown[0]:.0f} MB in the second quarter to {grown[1]:.0f} MB in the last")
    early, late = quarters(record.threads)
    if early and max(late) > max(early) + 2:
        lost.append(f"threads grew from {max(early)} in the second quarter to {max(late)} in the last")
    if record.files_after > record.files_before + 10:
        lost.append(f"{record.files_after} files are open when everyone has left, {record.files_before} were before they came")
    if record.exit_code != 0:
        lost.append(f"told to end, the server ended with {record.exit_code}, not 0: {record.stderr[-300:]!r}")
    if "Traceback" in record.stderr:
        lost.append(f"a traceback on stderr: {record.stderr[record.stderr.index('Traceback') :][-600:]!r}")
    return lost


def growth(memory: list[float]) -> tuple[float, float] | None:
    """The medians of the second and the last quarter, if the last is above it by more than a tenth and 50 MB."""
    early, late = quarters(memory)
    if not early:
        return None
    before, after = statistics.median(early), statistics.median(late)
    return (before, after) if after > before * 1.1 + 50 else None


def quarters(series: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The second and the last of them; nothing of a series that is too short."""
    size = len(series) // 4
    return (series[size : 2 * size], series[-size:]) if size else ([], [])


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def form(files: list[tuple[str, bytes]]) -> bytes:
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="images"; filename="%b"\r\n\r\n%b\r\n'
        % (BOUNDARY, name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + b"--%b--\r\n" % BOUNDARY


def post(body: bytes, kind: bytes = b"image/png", query: bytes = b"", length: bytes | None = None) -> bytes:
    head = b"POST /predict%b HTTP/1.1\r\nHost: here\r\nContent-Type: %b\r\nContent-Length: %b\r\n\r\n"
    return head % (query, kind, str(len(body)).encode() if length is None else length) + body


class Materials:
    """Pictures with the answers that are right for them, and hostile ones, made once."""

    def __init__(self) -> None:
        chance = np.random.RandomState(0)
        run = gingham.load_packaged()
        images = [Image.fromarray(chance.randint(256, size=(28, 28)).astype(np.uint8)) for _ in range(40)]
        for _ in range(6):  # prepared as photographs, in steps
            photo = np.full((150, 110, 3), 240, np.uint8)
            photo[30:120, 25:85] = chance.randint(20, 160, 3)
            images.append(Image.fromarray(photo))
        self.good = [encoded(image) for image in images]
        self.answers = [
            answer.probabilities or {} for answer in gingham.predict(run, [Image.open(io.BytesIO(one)) for one in self.good])
        ]
        self.largest = encoded(Image.new("1", (7000, 7000)))  # 49 megapixels, which are allowed
        noise = encoded(Image.fromarray(chance.randint(256, size=(60, 60, 3)).astype(np.uint8)), "JPEG")
        self.hostile = [
            encoded(Image.new("1", (40_000, 40_000))),
            encoded(Image.new("1", (9000, 6000))),
            b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(50),
            b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08" + b"\xff" * 300,
            b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\xff" * 600,  # a TIFF of 65,535 tags
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
            texts(self.good[0], 60),
            noise[: len(noise) // 2],
            self.good[0][: len(self.good[0]) // 2],
            self.good[0][:40] + bytes(100),
            b"\xff\xd8\xff" + b"\xe1\xff\xff" * 400,
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(r) file\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"\x00",
            b"",
        ]

    def right(self, place: int, entry: dict[str, object]) -> bool:
        said, wanted = entry.get("probabilities"), self.answers[place]
        return (
            isinstance(said, dict)
            and said.keys() == wanted.keys()
            and all(abs(said[key] - wanted[key]) < 1e-3 for key in wanted)
        )


def texts(png: bytes, megabytes: int) -> bytes:
    """A PNG whose comments unfold to so many megabytes."""
    packed = zlib.compress(bytes(megabytes << 20), 9)
    data = b"Comment\0\0" + packed
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return png[:33] + chunk + png[33:]


class Line:
    """A connection, spoken to in bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, receive: int | None = None) -> "Line":
        place = socket.socket()
        place.setblocking(False)
        if receive is not None:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            async with asyncio.timeout(30):
                await asyncio.get_running_loop().sock_connect(place, ("127.0.0.1", port))
        except BaseException:
            place.close()
            raise
        return cls(*await asyncio.open_connection(sock=place, limit=1 << 24 if receive is None else 1024))

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def answer(self, seconds: float = PATIENCE) -> tuple[int, bytes]:
        """Read one answer; its status and its body."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            body = await (self.reader.readexactly(int(length[1])) if length else self.reader.read(-1))
            return status, body

    def reset(self) -> None:
        """Go away at once: the other end is told by RST."""
        place = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it is gone already
            place.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


class Abused:
    """A server that is being abused: where it is, what is sent to it and what came of it."""

    def __init__(self, port: int, materials: Materials, record: Record, until: float) -> None:
        self.port, self.materials, self.record, self.until = port, materials, record, until

    def over(self) -> bool:
        return time.monotonic() >= self.until

    async def ask(self, what: str, request: bytes, *allowed: int, halved: bool = False) -> tuple[int, bytes] | None:
        """Send a request on a connection of its own; None where the server closed it, which it may."""
        self.record.tried[what] += 1
        try:
            line = await Line.open(self.port)
        except (OSError, TimeoutError):
            return None
        try:
            # It may be refused before all of it is there, and is told so then: whoever only sends would not hear it.
            sending = asyncio.create_task(line.send(request))
            try:
                if halved:
                    await sending
                    line.writer.write_eof()
                status, body = await line.answer()
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            self.record.status(what, status, body, allowed)
            return status, body
        except TimeoutError:
            self.record.lost[f"{what} was neither answered nor closed within {PATIENCE:g} s"] += 1
        except CLOSED:
            pass
        finally:
            line.reset()
        return None


async def good(abused: Abused, chance: random.Random) -> None:
    """A client that asks well, on one connection as long as that is kept: each answer must be its own and right."""
    materials, record, line = abused.materials, abused.record, None
    while not abused.over():
        places = [chance.randrange(len(materials.good)) for _ in range(chance.choice((1, 1, 1, 1, 2, 5)))]
        explain = chance.random() < 0.03
        if explain:  # each picture's takes its turn among all that are asked for, also by those who never read them
            places = places[:2]
        body = form([(f"{place}.png", materials.good[place]) for place in places])
        request = post(body, FORM, b"?explain=true" if explain else b"")
        record.tried["a good request"] += 1
        started, pause, story = time.monotonic(), 0.05, []
        while True:
            status, answer = 0, b""
            try:
                line = line or await Line.open(abused.port)
                await line.send(request)
                status, answer = await line.answer()
            except (*CLOSED, TimeoutError) as error:
                story.append(f"{type(error).__name__} after {time.monotonic() - started:.1f} s")
            if status == 200:
                record.slowest = max(record.slowest, time.monotonic() - started)
                said = json.loads(answer)["predictions"]
                if len(said) != len(places) or not all(map(materials.right, places, said)):
                    record.lost["a good request got a wrong answer"] += 1
                elif explain and not all(entry["explanation"]["moved"] for entry in said):
                    record.lost["a good request got no explanation"] += 1
                break
            if line is not None:
                line.reset()
                line = None
            if status == 503:
                story.append(f"503 after {time.monotonic() - started:.1f} s")
            if status not in (0, 503):
                record.lost[f"a good request was answered {status}: {answer[:200]!r}"] += 1
                break
            if time.monotonic() - started > PATIENCE:
                what = f"{len(places)} pictures{' explained' * explain}"
                record.lost[f"a good request of {what} was not answered within {PATIENCE:g} s: {', '.join(story[-3:])}"] += 1
                break
            record.tried["a good request again"] += 1
            await asyncio.sleep(pause)
            pause = min(2, 2 * pause)
    if line is not None:
        line.close()


async def slow_head(abused: Abused, chance: random.Random) -> None:
    """A head that never ends, a byte at a time."""
    abused.record.tried["a slow head"] += 1
    line = await Line.open(abused.port)
    try:
        await line.send(b"GET / HTTP/1.1\r\nHost: here\r\nX-Slow: ")
        while not abused.over() and not line.reader.at_eof():
            await line.send(b"a")
            await asyncio.sleep(chance.choice((0.2, 1.0)))
    finally:
        line.reset()


async def slow_body(abused: Abused, chance: random.Random) -> None:
    """A picture, a byte or a few at a time: right in the end, or refused, or given up."""
    place = chance.randrange(len(abused.materials.good))
    content, what = abused.materials.good[place], "a slow body"
    abused.record.tried[what] += 1
    step = chance.choice((1, 20, 200))
    line = await Line.open(abused.port)
    try:
        await line.send(post(b"", length=str(len(content)).encode()))
        for k in range(0, len(content), step):
            if abused.over():
                return
            await line.send(content[k : k + step])
            await asyncio.sleep(0.02)
        status, body = await line.answer()
        abused.record.status(what, status, body, (200, 408))
        if status == 200 and not abused.materials.right(place, json.loads(body)["predictions"][0]):
            abused.record.lost["a slow body got a wrong answer"] += 1
    finally:
        line.reset()


async def never_reads(abused: Abused, chance: random.Random) -> None:
    """Asks for much, again and again on one connection, and reads none of it."""
    abused.record.tried["a client that never reads"] += 1
    line = await Line.open(abused.port, receive=2048)
    try:
        request = chance.choice(
            (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", post(abused.materials.good[-1], query=b"?explain=true"))
        )
        line.writer.write(request * chance.choice((1, 30, 300)))
        for _ in range(chance.choice((2, 10, 40))):
            if not abused.over():
                await asyncio.sleep(0.5)
    finally:
        line.reset()


async def goes_away(abused: Abused, chance: random.Random) -> None:
    """Goes away: before anything, in the head, in the body, before the answer, in the answer; politely or not."""
    abused.record.tried["a dropped connection"] += 1
    request = post(abused.materials.good[0], query=chance.choice((b"", b"?explain=true")))
    head = request.index(b"\r\n\r\n") + 4
    sent = chance.choice((0, chance.randrange(head), head, chance.randrange(head, len(request)), len(request)))
    line = await Line.open(abused.port, receive=2048)
    leave = chance.choice((line.close, line.reset))
    await line.send(request[:sent])
    await asyncio.sleep(chance.choice((0, 0.01, 0.1)))
    if sent == len(request) and chance.random() < 0.3:
        await line.reader.read(10)
    leave()


async def too_large(abused: Abused, chance: random.Random) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
    declared = chance.choice((b"33554433", b"9" * 15, b"9" * 19))
    await abused.ask("a body declared too large", head + b"Content-Length: " + declared + b"\r\n\r\n", 413, 400)
    if chance.random() < 0.2:
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        await abused.ask("an undeclared body too large", head + b"Transfer-Encoding: chunked\r\n\r\n" + piece * 33, 413)
    if chance.random() < 0.2:
        await abused.ask(
            "an endless body to a place that takes none",
            b"POST /health HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" + piece_of(5),
            405,
        )


def piece_of(megabytes: int) -> bytes:
    return (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * megabytes


async def wrong_length(abused: Abused, chance: random.Random) -> None:
    content = abused.materials.good[0]
    size = len(content)
    wrong = chance.choice(
        (
            b"-1",
            b"x",
            b"",
            b"1e3",
            b"0x10",
            b"+5",
            b"%d, %d" % (size, size + 1),
            b"%d\r\nContent-Length: 3" % size,
            b" ",
            b"\xb2",
        )
    )
    await abused.ask("a content-length that is no number", post(content, length=wrong), 400, 413, 200, 422)
    await abused.ask("a content-length too short", post(content, length=b"50"), 422)
    await abused.ask("a content-length too long", post(content, length=b"%d" % (size + 50)), 400, 408, halved=True)
    both = post(content).replace(b"Host: here", b"Host: here\r\nTransfer-Encoding: chunked")
    await abused.ask("a length and chunks", both, 400, 422)


async def broken_form(abused: Abused, chance: random.Random) -> None:
    whole = form([("a.png", abused.materials.good[0])])
    part = b"--" + BOUNDARY
    body, kind = chance.choice(
        (
            (whole[: chance.randrange(len(whole))], FORM),
            (whole[chance.randrange(1, 20) :], FORM),
            (whole, b"multipart/form-data"),
            (whole, b"multipart/form-data; boundary=" + bytes(chance.randrange(33, 127) for _ in range(60))),
            (whole, b"multipart/form-data; boundary=\xff\xfe\xfd"),
            (whole.replace(b'filename="a.png"', b"filename*=utf-8''%00%0a%ff"), FORM),
            (whole.replace(b"a.png", b"\xff\xfe\xed\xa0\x80\x01\x0b"), FORM),
            (whole.replace(b"a.png", b"a" * 4000), FORM),
            (part + b"\r\n" + b"X: y\r\n" * 5000 + b"\r\nz\r\n" + part + b"--\r\n", FORM),
            ((part + b"\r\n\r\n\r\n") * 20_000 + part + b"--\r\n", FORM),
            ((part + b'\r\nContent-Disposition: form-data; filename=""\r\n\r\n\r\n') * 300 + part + b"--\r\n", FORM),
            (part + b'\r\nContent-Disposition: form-data; name="x"\r\n\r\n' + bytes(10_000) + b"\r\n" + part + b"--\r\n", FORM),
            (b"\r\n" * 3000, FORM),
            (part * 3000, FORM),
        )
    )
    # A name may have any letters, and be long: it is shortened.
    await abused.ask(
        "a broken form", post(body, kind), 200 if body.startswith(part) and len(body) < 9000 else 422, 422, 413, 400, 415
    )


async def broken_http(abused: Abused, chance: random.Random) -> None:
    garbage = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 2000))) + b"\r\n\r\n"
    request = chance.choice(
        (
            garbage,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + garbage,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /health\r\n\r\n",
            b"GET /health HTTP/1.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: here\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
            b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: here\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: here\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
            b"GET /health HTTP/1.1\r\nHost: here\r\nX: \x00\x01\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost : here\r\n folded: x\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
            b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
            + b"F" * 30
            + b"\r\nabc",
            b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n3;"
            + b"x" * 100_000,
            b"\r\n" * 5000,
            b"CONNECT a:1 HTTP/1.1\r\nHost: here\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: here\r\n\r\n",
        )
    )
    await abused.ask(f"broken HTTP ({request[:60]!r})", request, 400, 404, 405, 431, 501, 415, 422, halved=True)


async def odd_request(abused: Abused, chance: random.Random) -> None:
    method = chance.choice((b"GET", b"PUT", b"DELETE", b"HEAD", b"TRACE", b"BREW", b"post", b"PATCH", b"A" * 900, b"!#$%&'*+"))
    path = chance.choice(
        (b"/", b"//", b"/predict", b"/predict/", b"/health", b"/model?a=b&&=", b"/../../etc/passwd", b"/%2e%2e/%2e%2e/etc/passwd", b"/%00", b"/%ff%fe",
         b"/%ED%A0%80", b"/docs/../model", b"/predict?explain=%00", b"/predict?explain=" + b"1" * 9000, b"/predict?explain=true&explain=x", b"/openapi.json?" + b"a=b&" * 500,
         b"/static-offline-docs/../../secret", b"/static-offline-docs/%2e%2e%2f%2e%2e%2fsetup.py", b"/static-offline-docs/%00", b"/static-offline-docs/" + b"a" * 3000, b"/docs", b"*", b"/\x7f", b"/a b")
    )  # fmt: skip
    header = chance.choice(
        (b"", b"Content-Type: \xff\xfe\r\n", b"Content-Type: " + b";" * 3000 + b"\r\n", b'Content-Type: multipart/form-data; boundary="\r\n', b"Expect: 100-continue\r\n",
         b"Upgrade: websocket\r\nConnection: Upgrade\r\n", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", b"Range: bytes=0-0,1-1,-9\r\n", b"If-Modified-Since: never\r\n",
         b"Cookie: " + b"a=b;" * 500 + b"\r\n", b"Accept-Encoding: \x80\r\n", b"X-Forwarded-For: \xf0, 1\r\nX-Forwarded-Proto: \xf0\r\n")
    )  # fmt: skip
    request = method + b" " + path + b" HTTP/1.1\r\nHost: here\r\n" + header + b"Connection: close\r\n\r\n"
    abused.record.tried["an odd request"] += 1
    line = await Line.open(abused.port)
    try:
        await line.send(request)
        if method == b"HEAD":
            head = await asyncio.wait_for(line.reader.readuntil(b"\r\n\r\n"), PATIENCE)
            status, body = int(head.split(b" ", 2)[1]), b""
        else:
            status, body = await line.answer()
        if (status >= 400 and body[:1] == b"{") or status >= 500:
            abused.record.status("an odd request", status, body, (400, 404, 405, 413, 415, 422))
    except TimeoutError:
        abused.record.lost[f"the odd request {request[:80]!r} was neither answered nor closed"] += 1
    finally:
        line.reset()


async def hostile_picture(abused: Abused, chance: random.Random) -> None:
    content = chance.choice(abused.materials.hostile)
    await abused.ask(
        "a hostile picture", post(content, chance.choice((b"image/png", b"image/tiff", b"application/octet-stream"))), 422
    )
    some = chance.sample(abused.materials.hostile, 3)
    answer = await abused.ask(
        "hostile pictures among good ones",
        post(form([("a", abused.materials.good[0]), *(("b", one) for one in some)]), FORM),
        422,
    )
    if answer and answer[0] == 422 and not abused.materials.right(0, json.loads(answer[1])["predictions"][0]):
        abused.record.lost["a good picture among hostile ones got a wrong answer"] += 1


async def largest_picture(abused: Abused, chance: random.Random) -> None:
    """As many pixels as are allowed; it takes 0.6 GB while it is read."""
    await abused.ask("a picture of 49 megapixels", post(abused.materials.largest), 200)
    await asyncio.sleep(chance.uniform(1, 4))


async def pipelined(abused: Abused, chance: random.Random) -> None:
    """Many requests in one go: as many answers, in order."""
    places = [chance.randrange(len(abused.materials.good)) for _ in range(20)]
    abused.record.tried["pipelined requests"] += len(places)
    line = await Line.open(abused.port)
    try:
        await line.send(b"".join(post(abused.materials.good[place]) for place in places))
        for place in places:
            status, body = await line.answer()
            abused.record.status("a pipelined request", status, body, (200,))
            if status == 200 and not abused.materials.right(place, json.loads(body)["predictions"][0]):
                abused.record.lost["a pipelined request got a wrong answer"] += 1
    finally:
        line.reset()


async def crowd(abused: Abused, chance: random.Random) -> None:
    """More connections at once than the server has file descriptors for; most of them say nothing."""
    abused.record.tried["a connection in a crowd"] += 1200
    lines = await asyncio.gather(*(Line.open(abused.port) for _ in range(1200)), return_exceptions=True)
    there = [line for line in lines if isinstance(line, Line)]
    for line in there[::3]:
        line.writer.write(b"POST /predict HTTP/1.1\r\nContent-")
    await asyncio.sleep(2)
    for line in there:
        line.reset()
    await asyncio.sleep(3)


# How many do each thing at the same time. A client that stays away for good, such as a slow one, is many.
ABUSES: list[tuple[Abuse, int]] = [
    (slow_head, 60), (slow_body, 20), (never_reads, 20), (goes_away, 4), (too_large, 1), (wrong_length, 2), (broken_form, 2), (broken_http, 2),
    (odd_request, 2), (hostile_picture, 1), (largest_picture, 1), (pipelined, 1), (crowd, 1),
]  # fmt: skip


async def again(abuse: Abuse, abused: Abused, chance: random.Random) -> None:
    while not abused.over():
        try:
            await abuse(abused, chance)
        except TimeoutError:
            abused.record.lost[f"a connection stood still ({abuse.__name__})"] += 1
        except CLOSED:
            pass  # the server may close on whoever abuses it
        await asyncio.sleep(0.02)


async def besiege(abused: Abused) -> None:
    tasks = [asyncio.create_task(good(abused, random.Random(k))) for k in range(CLIENTS)]
    tasks += [
        asyncio.create_task(again(abuse, abused, random.Random(f"{abuse.__name__} {k}")))
        for abuse, number in ABUSES
        for k in range(number)
    ]
    await asyncio.gather(*tasks)


def watch(port: int, process: int, record: Record, ended: threading.Event) -> None:
    """Ask /health, and measure the process, twice a second; on a thread, so as not to wait for the others."""
    while not ended.wait(0.5):
        started = time.monotonic()
        record.tried["/health"] += 1
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            if answer.status != 200 or answer.read() != b'{"status":"ok"}':
                record.lost[f"/health was answered {answer.status}"] += 1
        except (OSError, http.client.HTTPException) as error:
            record.lost[f"/health was not answered ({type(error).__name__})"] += 1
        finally:
            connection.close()
        record.health.append(time.monotonic() - started)
        try:
            status = Path(f"/proc/{process}/status").read_text()
            record.memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6)
            record.threads.append(int(re.search(r"Threads:\s+(\d+)", status)[1]))
        except (OSError, TypeError):
            record.lost["the server is gone"] += 1
            return


def open_files(process: int) -> int:
    try:
        return len([*Path(f"/proc/{process}/fd").iterdir()])
    except OSError:
        return 0


def abuse(seconds: int) -> Outcome:
    """Besiege a server for so many seconds, and see what it has come to."""
    record, materials = Record(), Materials()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "16000000"}
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "gingham", "serve", "--port", "0"], cwd=folder, stderr=said, env=environment
        )
        try:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
            port = _port(process, Path(said.name))
            # Warm: its libraries loaded, its threads started, its training pictures gone through.
            asyncio.run(besiege_warmly(Abused(port, materials, Record(), time.monotonic() + 4)))
            _settled(process.pid, 0)
            record.files_before = open_files(process.pid)
            ended = threading.Event()
            watching = threading.Thread(target=watch, args=(port, process.pid, record, ended))
            watching.start()
            try:
                asyncio.run(besiege(Abused(port, materials, record, time.monotonic() + seconds)))
            finally:
                ended.set()
                watching.join()
            record.files_after = _settled(process.pid, record.files_before)
            process.send_signal(signal.SIGTERM)
            try:
                record.exit_code = process.wait(60)
            except subprocess.TimeoutExpired:
                record.exit_code = None
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        record.stderr = said.read()
    early, late = (statistics.median(part or [0]) for part in quarters(record.memory))
    requests = sum(record.tried.values())
    return Outcome(
        requests,
        judge(record),
        f"{requests:,} requests, {record.tried['a good request']:,} of them good ({record.tried['a good request again']:,} asked again, "
        f"{record.slowest:.0f} s at most), {early:,.0f} MB in the second quarter, {late:,.0f} MB in the last, health at most {max(record.health, default=0):.1f} s",
    )


async def besiege_warmly(abused: Abused) -> None:
    kinds = (good, good, good, good, never_reads, largest_picture, hostile_picture, pipelined)
    await asyncio.gather(*(again(kind, abused, random.Random(k)) for k, kind in enumerate(kinds)))


def _port(process: subprocess.Popen[bytes], said: Path) -> int:
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/ ", said.read_text()):
            return int(found[1])
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {said.read_text()}")


def _settled(process: int, wanted: int) -> int:
    """Return how many files a process has open, once their number stands still, or is down to what is wanted."""
    before, still = -1, 0
    for _ in range(150):
        now = open_files(process)
        if now <= wanted:
            return now
        still = still + 1 if now == before else 0
        if still > 20 and not wanted:
            return now
        before = now
        time.sleep(0.1)
    return before


CHECKS = [Check("a server under load and abuse", abuse, short=10, long=180, unit="requests")]
