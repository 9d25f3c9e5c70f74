"""Load-test a server: good clients get correct responses next to misbehaving ones, and resource use does not grow.

Runs `gingham serve` with the packaged model, the memory settings of docs/deploy.md and 1,024 file descriptors. 64 good
clients send images and compare each response with the model's own predictions. Others send slowly, never read,
disconnect at every stage, or send requests that are too large, wrong, malformed or hostile. A thread requests /health
twice a second. There are fewer connections than the server's limit: disconnecting slow clients is the proxy's task.

These count as lost:

- a status of 500 or more other than 503, an error that is neither JSON with `error` on one line nor uvicorn's own
  refusal of malformed HTTP, or a status that does not fit the request;
- a wrong response to a good request, or none. A busy server may close a connection or respond 503; a good client then
  retries for up to 60 seconds, as it does when its connection was closed between two requests;
- a /health that does not respond 200 within 5 seconds, on its own connection and without a retry;
- a server that has ended, a traceback on its stderr, or an exit code other than 0 after SIGTERM;
- a median memory in the last quarter that exceeds that of the second quarter by more than a tenth and 50 MB;
- more threads in the last quarter than in the second (with a tolerance of two), or file descriptors left open after all
  clients have disconnected.
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

NUM_GOOD_CLIENTS, MAX_HEALTH_SECONDS, TIMEOUT_SECONDS = 64, 5.0, 60.0
BOUNDARY = b"a-boundary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
UVICORN_REFUSAL = b"Invalid HTTP request received."  # of malformed HTTP, which the application never sees
CONNECTION_ERRORS = (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
MEMORY_SETTINGS = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "16000000"}
Client = Callable[["LoadSession", random.Random], Awaitable[None]]


@dataclass
class Record:
    """The requests tried, the failures, and the measurements of the process, twice a second."""

    tried: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds until a good request was answered, with its retries
    health: list[float] = field(default_factory=list)  # seconds each
    memory: list[float] = field(default_factory=list)  # MB
    threads: list[int] = field(default_factory=list)
    files_before: int = 0
    files_after: int = 0
    exit_code: int | None = 0
    stderr: str = ""

    def status(self, label: str, status: int, body: bytes, allowed: tuple[int, ...]) -> None:
        """Check a response to a bad request; 503 is always allowed."""
        if status != 503 and status not in allowed:
            self.lost[f"{label} was answered {status}, not {' or '.join(map(str, allowed))}: {body[:200]!r}"] += 1
        elif status >= 400 and not (status == 400 and UVICORN_REFUSAL in body):
            try:
                message = json.loads(body)["error"]
                if not isinstance(message, str) or "\n" in message or not message:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                self.lost[f"{label} was refused with {status} and no sentence: {body[:200]!r}"] += 1


def find_issues(record: Record) -> list[str]:
    """Return a message for each failure."""
    lost = [f"{issue} ({count} times)" if count > 1 else issue for issue, count in record.lost.items()]
    lost += [
        f"/health took {seconds:.1f} s, over {MAX_HEALTH_SECONDS:g} s"
        for seconds in record.health
        if seconds > MAX_HEALTH_SECONDS
    ]
    if not record.health:
        lost.append("/health was never answered")
    if grown := growth(record.memory):
        lost.append(f"memory grew from {grown[0]:.0f} MB in the second quarter to {grown[1]:.0f} MB in the last")
    early, late = quarters(record.threads)
    if early and max(late) > max(early) + 2:
        lost.append(f"threads grew from {max(early)} in the second quarter to {max(late)} in the last")
    if record.files_after > record.files_before + 10:
        lost.append(
            f"{record.files_after} files are open when everyone has left, {record.files_before} were before they came"
        )
    if record.exit_code != 0:
        lost.append(f"after SIGTERM, the server ended with {record.exit_code}, not 0: {record.stderr[-300:]!r}")
    if "Traceback" in record.stderr:
        lost.append(f"a traceback on stderr: {record.stderr[record.stderr.index('Traceback') :][-600:]!r}")
    return lost


def growth(memory: list[float]) -> tuple[float, float] | None:
    """Return the medians of the second and last quarter if the last is more than a tenth and 50 MB higher."""
    early, late = quarters(memory)
    if not early:
        return None
    before, after = statistics.median(early), statistics.median(late)
    return (before, after) if after > before * 1.1 + 50 else None


def quarters(series: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Return the second and the last quarter of a series; empty ones if it is too short."""
    size = len(series) // 4
    return (series[size : 2 * size], series[-size:]) if size else ([], [])


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
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


class SampleImages:
    """Good images with their correct probabilities, and hostile ones."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)
        run = gingham.load_packaged()
        pil_images = [Image.fromarray(rng.randint(256, size=(28, 28)).astype(np.uint8)) for _ in range(40)]
        for _ in range(6):  # prepared as photos, in steps
            photo = np.full((150, 110, 3), 240, np.uint8)
            photo[30:120, 25:85] = rng.randint(20, 160, 3)
            pil_images.append(Image.fromarray(photo))
        self.good = [encode(image) for image in pil_images]
        self.probabilities = [
            prediction.probabilities or {}
            for prediction in gingham.predict(run, [Image.open(io.BytesIO(content)) for content in self.good])
        ]
        self.largest = encode(Image.new("1", (7000, 7000)))  # 49 megapixels, which are allowed
        noise = encode(Image.fromarray(rng.randint(256, size=(60, 60, 3)).astype(np.uint8)), "JPEG")
        self.hostile = [
            encode(Image.new("1", (40_000, 40_000))),
            encode(Image.new("1", (9000, 6000))),
            b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(50),
            b"GIF89a\xff\xff\xff\xff\x80\x00\x00"
            + bytes(6)
            + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08"
            + b"\xff" * 300,
            b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\xff" * 600,  # a TIFF of 65,535 tags
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
            compressed_text_png(self.good[0], 60),
            noise[: len(noise) // 2],
            self.good[0][: len(self.good[0]) // 2],
            self.good[0][:40] + bytes(100),
            b"\xff\xd8\xff" + b"\xe1\xff\xff" * 400,
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(r) file\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"\x00",
            b"",
        ]

    def is_correct(self, index: int, entry: dict[str, object]) -> bool:
        actual, expected = entry.get("probabilities"), self.probabilities[index]
        return (
            isinstance(actual, dict)
            and actual.keys() == expected.keys()
            and all(abs(actual[key] - expected[key]) < 1e-3 for key in expected)
        )


def compressed_text_png(png: bytes, megabytes: int) -> bytes:
    """Return a PNG whose comment decompresses to this many megabytes."""
    packed = zlib.compress(bytes(megabytes << 20), 9)
    data = b"Comment\0\0" + packed
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return png[:33] + chunk + png[33:]


class Connection:
    """A connection for raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int, receive: int | None = None) -> "Connection":
        client_socket = socket.socket()
        client_socket.setblocking(False)
        if receive is not None:
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        try:
            async with asyncio.timeout(30):
                await asyncio.get_running_loop().sock_connect(client_socket, ("127.0.0.1", port))
        except BaseException:
            client_socket.close()
            raise
        return cls(*await asyncio.open_connection(sock=client_socket, limit=1 << 24 if receive is None else 1024))

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.writer.drain()

    async def response(self, seconds: float = TIMEOUT_SECONDS) -> tuple[int, bytes]:
        """Read one response; return its status and its body."""
        async with asyncio.timeout(seconds):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            body = await (self.reader.readexactly(int(length[1])) if length else self.reader.read(-1))
            return status, body

    def reset(self) -> None:
        """Disconnect at once with a TCP reset."""
        client_socket = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # already closed
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


class LoadSession:
    """The server under test, the images to send and the record of the results."""

    def __init__(self, port: int, images: SampleImages, record: Record, deadline: float) -> None:
        self.port, self.images, self.record, self.deadline = port, images, record, deadline

    def is_over(self) -> bool:
        return time.monotonic() >= self.deadline

    async def ask(
        self, label: str, request: bytes, *allowed: int, half_close: bool = False
    ) -> tuple[int, bytes] | None:
        """Send a request on its own connection; return None if the server closed it, which is allowed."""
        self.record.tried[label] += 1
        try:
            connection = await Connection.open(self.port)
        except (OSError, TimeoutError):
            return None
        try:
            # The server may refuse a request before it is complete, so the response is read while sending.
            send_task = asyncio.create_task(connection.send(request))
            try:
                if half_close:
                    await send_task
                    connection.writer.write_eof()
                status, body = await connection.response()
            finally:
                send_task.cancel()
                await asyncio.gather(send_task, return_exceptions=True)
            self.record.status(label, status, body, allowed)
            return status, body
        except TimeoutError:
            self.record.lost[f"{label} was neither answered nor closed within {TIMEOUT_SECONDS:g} s"] += 1
        except CONNECTION_ERRORS:
            pass
        finally:
            connection.reset()
        return None


async def good_client(session: LoadSession, rng: random.Random) -> None:
    """Send valid requests, on one connection as long as it stays open; each response must be the correct one."""
    images, record, connection = session.images, session.record, None
    while not session.is_over():
        indices = [rng.randrange(len(images.good)) for _ in range(rng.choice((1, 1, 1, 1, 2, 5)))]
        explain = rng.random() < 0.03
        if explain:  # explanations are computed one at a time, also those for clients that never read them
            indices = indices[:2]
        body = form([(f"{index}.png", images.good[index]) for index in indices])
        request = post(body, FORM, b"?explain=true" if explain else b"")
        record.tried["a good request"] += 1
        started, pause, attempts = time.monotonic(), 0.05, []
        while True:
            status, response = 0, b""
            try:
                connection = connection or await Connection.open(session.port)
                await connection.send(request)
                status, response = await connection.response()
            except (*CONNECTION_ERRORS, TimeoutError) as error:
                attempts.append(f"{type(error).__name__} after {time.monotonic() - started:.1f} s")
            if status == 200:
                record.slowest = max(record.slowest, time.monotonic() - started)
                predictions = json.loads(response)["predictions"]
                if len(predictions) != len(indices) or not all(map(images.is_correct, indices, predictions)):
                    record.lost["a good request got a wrong answer"] += 1
                elif explain and not all(entry["explanation"]["moved"] for entry in predictions):
                    record.lost["a good request got no explanation"] += 1
                break
            if connection is not None:
                connection.reset()
                connection = None
            if status == 503:
                attempts.append(f"503 after {time.monotonic() - started:.1f} s")
            if status not in (0, 503):
                record.lost[f"a good request was answered {status}: {response[:200]!r}"] += 1
                break
            if time.monotonic() - started > TIMEOUT_SECONDS:
                request_label = f"{len(indices)} images{' explained' * explain}"
                record.lost[
                    f"a good request of {request_label} was not answered within {TIMEOUT_SECONDS:g} s: "
                    f"{', '.join(attempts[-3:])}"
                ] += 1
                break
            record.tried["a good request again"] += 1
            await asyncio.sleep(pause)
            pause = min(2, 2 * pause)
    if connection is not None:
        connection.close()


async def slow_head(session: LoadSession, rng: random.Random) -> None:
    """Send a head that never ends, one byte at a time."""
    session.record.tried["a slow head"] += 1
    connection = await Connection.open(session.port)
    try:
        await connection.send(b"GET / HTTP/1.1\r\nHost: here\r\nX-Slow: ")
        while not session.is_over() and not connection.reader.at_eof():
            await connection.send(b"a")
            await asyncio.sleep(rng.choice((0.2, 1.0)))
    finally:
        connection.reset()


async def slow_body(session: LoadSession, rng: random.Random) -> None:
    """Send an image a few bytes at a time: the response is correct or a refusal, or the test ends first."""
    index = rng.randrange(len(session.images.good))
    content, label = session.images.good[index], "a slow body"
    session.record.tried[label] += 1
    step = rng.choice((1, 20, 200))
    connection = await Connection.open(session.port)
    try:
        await connection.send(post(b"", length=str(len(content)).encode()))
        for k in range(0, len(content), step):
            if session.is_over():
                return
            await connection.send(content[k : k + step])
            await asyncio.sleep(0.02)
        status, body = await connection.response()
        session.record.status(label, status, body, (200, 408))
        if status == 200 and not session.images.is_correct(index, json.loads(body)["predictions"][0]):
            session.record.lost["a slow body got a wrong answer"] += 1
    finally:
        connection.reset()


async def never_reads(session: LoadSession, rng: random.Random) -> None:
    """Send many requests on one connection and never read a response."""
    session.record.tried["a client that never reads"] += 1
    connection = await Connection.open(session.port, receive=2048)
    try:
        request = rng.choice(
            (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", post(session.images.good[-1], query=b"?explain=true"))
        )
        connection.writer.write(request * rng.choice((1, 30, 300)))
        for _ in range(rng.choice((2, 10, 40))):
            if not session.is_over():
                await asyncio.sleep(0.5)
    finally:
        connection.reset()


async def goes_away(session: LoadSession, rng: random.Random) -> None:
    """Disconnect before the head, in the head, in the body, before the response or in it; with or without a reset."""
    session.record.tried["a dropped connection"] += 1
    request = post(session.images.good[0], query=rng.choice((b"", b"?explain=true")))
    head = request.index(b"\r\n\r\n") + 4
    sent = rng.choice((0, rng.randrange(head), head, rng.randrange(head, len(request)), len(request)))
    connection = await Connection.open(session.port, receive=2048)
    leave = rng.choice((connection.close, connection.reset))
    await connection.send(request[:sent])
    await asyncio.sleep(rng.choice((0, 0.01, 0.1)))
    if sent == len(request) and rng.random() < 0.3:
        await connection.reader.read(10)
    leave()


async def too_large(session: LoadSession, rng: random.Random) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
    declared = rng.choice((b"33554433", b"9" * 15, b"9" * 19))
    await session.ask("a body declared too large", head + b"Content-Length: " + declared + b"\r\n\r\n", 413, 400)
    if rng.random() < 0.2:
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        await session.ask(
            "an undeclared body too large", head + b"Transfer-Encoding: chunked\r\n\r\n" + piece * 33, 413
        )
    if rng.random() < 0.2:
        await session.ask(
            "an endless body to a place that takes none",
            b"POST /health HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(5),
            405,
        )


def chunks(megabytes: int) -> bytes:
    return (b"100000\r\n" + bytes(1 << 20) + b"\r\n") * megabytes


async def wrong_length(session: LoadSession, rng: random.Random) -> None:
    content = session.images.good[0]
    size = len(content)
    wrong = rng.choice(
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
    await session.ask("a content-length that is no number", post(content, length=wrong), 400, 413, 200, 422)
    await session.ask("a content-length too short", post(content, length=b"50"), 422)
    await session.ask("a content-length too long", post(content, length=b"%d" % (size + 50)), 400, 408, half_close=True)
    both = post(content).replace(b"Host: here", b"Host: here\r\nTransfer-Encoding: chunked")
    await session.ask("a length and chunks", both, 400, 422)


async def broken_form(session: LoadSession, rng: random.Random) -> None:
    whole = form([("a.png", session.images.good[0])])
    part = b"--" + BOUNDARY
    body, kind = rng.choice(
        (
            (whole[: rng.randrange(len(whole))], FORM),
            (whole[rng.randrange(1, 20) :], FORM),
            (whole, b"multipart/form-data"),
            (whole, b"multipart/form-data; boundary=" + bytes(rng.randrange(33, 127) for _ in range(60))),
            (whole, b"multipart/form-data; boundary=\xff\xfe\xfd"),
            (whole.replace(b'filename="a.png"', b"filename*=utf-8''%00%0a%ff"), FORM),
            (whole.replace(b"a.png", b"\xff\xfe\xed\xa0\x80\x01\x0b"), FORM),
            (whole.replace(b"a.png", b"a" * 4000), FORM),
            (part + b"\r\n" + b"X: y\r\n" * 5000 + b"\r\nz\r\n" + part + b"--\r\n", FORM),
            ((part + b"\r\n\r\n\r\n") * 20_000 + part + b"--\r\n", FORM),
            ((part + b'\r\nContent-Disposition: form-data; filename=""\r\n\r\n\r\n') * 300 + part + b"--\r\n", FORM),
            (
                part
                + b'\r\nContent-Disposition: form-data; name="x"\r\n\r\n'
                + bytes(10_000)
                + b"\r\n"
                + part
                + b"--\r\n",
                FORM,
            ),
            (b"\r\n" * 3000, FORM),
            (part * 3000, FORM),
        )
    )
    # A file name may be long and have any letters: it is shortened.
    await session.ask(
        "a broken form",
        post(body, kind),
        200 if body.startswith(part) and len(body) < 9000 else 422,
        422,
        413,
        400,
        415,
    )


async def broken_http(session: LoadSession, rng: random.Random) -> None:
    random_bytes = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 2000))) + b"\r\n\r\n"
    request = rng.choice(
        (
            random_bytes,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random_bytes,
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
            (
                b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
                b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n"
            ),
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
    await session.ask(f"broken HTTP ({request[:60]!r})", request, 400, 404, 405, 431, 501, 415, 422, half_close=True)


async def odd_request(session: LoadSession, rng: random.Random) -> None:
    method = rng.choice(
        (b"GET", b"PUT", b"DELETE", b"HEAD", b"TRACE", b"BREW", b"post", b"PATCH", b"A" * 900, b"!#$%&'*+")
    )
    path = rng.choice(
        (
            b"/",
            b"//",
            b"/predict",
            b"/predict/",
            b"/health",
            b"/model?a=b&&=",
            b"/../../etc/passwd",
            b"/%2e%2e/%2e%2e/etc/passwd",
            b"/%00",
            b"/%ff%fe",
            b"/%ED%A0%80",
            b"/docs/../model",
            b"/predict?explain=%00",
            b"/predict?explain=" + b"1" * 9000,
            b"/predict?explain=true&explain=x",
            b"/openapi.json?" + b"a=b&" * 500,
            b"/static-offline-docs/../../secret",
            b"/static-offline-docs/%2e%2e%2f%2e%2e%2fsetup.py",
            b"/static-offline-docs/%00",
            b"/static-offline-docs/" + b"a" * 3000,
            b"/docs",
            b"*",
            b"/\x7f",
            b"/a b",
        )
    )
    header = rng.choice(
        (
            b"",
            b"Content-Type: \xff\xfe\r\n",
            b"Content-Type: " + b";" * 3000 + b"\r\n",
            b'Content-Type: multipart/form-data; boundary="\r\n',
            b"Expect: 100-continue\r\n",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n",
            b"Range: bytes=0-0,1-1,-9\r\n",
            b"If-Modified-Since: never\r\n",
            b"Cookie: " + b"a=b;" * 500 + b"\r\n",
            b"Accept-Encoding: \x80\r\n",
            b"X-Forwarded-For: \xf0, 1\r\nX-Forwarded-Proto: \xf0\r\n",
        )
    )
    request = method + b" " + path + b" HTTP/1.1\r\nHost: here\r\n" + header + b"Connection: close\r\n\r\n"
    session.record.tried["an odd request"] += 1
    connection = await Connection.open(session.port)
    try:
        await connection.send(request)
        if method == b"HEAD":
            head = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), TIMEOUT_SECONDS)
            status, body = int(head.split(b" ", 2)[1]), b""
        else:
            status, body = await connection.response()
        if (status >= 400 and body[:1] == b"{") or status >= 500:
            session.record.status("an odd request", status, body, (400, 404, 405, 413, 415, 422))
    except TimeoutError:
        session.record.lost[f"the odd request {request[:80]!r} was neither answered nor closed"] += 1
    finally:
        connection.reset()


async def hostile_image(session: LoadSession, rng: random.Random) -> None:
    content = rng.choice(session.images.hostile)
    await session.ask(
        "a hostile image", post(content, rng.choice((b"image/png", b"image/tiff", b"application/octet-stream"))), 422
    )
    hostile = rng.sample(session.images.hostile, 3)
    response = await session.ask(
        "hostile images among good ones",
        post(form([("a", session.images.good[0]), *(("b", content) for content in hostile)]), FORM),
        422,
    )
    if response and response[0] == 422 and not session.images.is_correct(0, json.loads(response[1])["predictions"][0]):
        session.record.lost["a good image among hostile ones got a wrong answer"] += 1


async def largest_image(session: LoadSession, rng: random.Random) -> None:
    """Send an image with as many pixels as are allowed; decoding it takes 0.6 GB."""
    await session.ask("an image of 49 megapixels", post(session.images.largest), 200)
    await asyncio.sleep(rng.uniform(1, 4))


async def pipelined(session: LoadSession, rng: random.Random) -> None:
    """Send many requests at once: as many responses must come, in order."""
    indices = [rng.randrange(len(session.images.good)) for _ in range(20)]
    session.record.tried["pipelined requests"] += len(indices)
    connection = await Connection.open(session.port)
    try:
        await connection.send(b"".join(post(session.images.good[index]) for index in indices))
        for index in indices:
            status, body = await connection.response()
            session.record.status("a pipelined request", status, body, (200,))
            if status == 200 and not session.images.is_correct(index, json.loads(body)["predictions"][0]):
                session.record.lost["a pipelined request got a wrong answer"] += 1
    finally:
        connection.reset()


async def crowd(session: LoadSession, rng: random.Random) -> None:
    """Open as many connections as the other clients leave of the server's 512; most of them send nothing."""
    session.record.tried["a connection in a crowd"] += 250
    results = await asyncio.gather(*(Connection.open(session.port) for _ in range(250)), return_exceptions=True)
    connections = [connection for connection in results if isinstance(connection, Connection)]
    for connection in connections[::3]:
        connection.writer.write(b"POST /predict HTTP/1.1\r\nContent-")
    await asyncio.sleep(2)
    for connection in connections:
        connection.reset()
    await asyncio.sleep(3)


# The number of concurrent clients of each kind; of slow clients there are many.
BAD_CLIENTS: list[tuple[Client, int]] = [
    (slow_head, 60),
    (slow_body, 20),
    (never_reads, 8),
    (goes_away, 4),
    (too_large, 1),
    (wrong_length, 2),
    (broken_form, 2),
    (broken_http, 2),
    (odd_request, 2),
    (hostile_image, 1),
    (largest_image, 1),
    (pipelined, 1),
    (crowd, 1),
]


async def repeat(client: Client, session: LoadSession, rng: random.Random) -> None:
    while not session.is_over():
        try:
            await client(session, rng)
        except TimeoutError:
            session.record.lost[f"a connection stood still ({client.__name__})"] += 1
        except CONNECTION_ERRORS:
            pass  # the server may close the connection of a bad client
        await asyncio.sleep(0.02)


async def run_clients(session: LoadSession) -> None:
    tasks = [asyncio.create_task(good_client(session, random.Random(k))) for k in range(NUM_GOOD_CLIENTS)]
    tasks += [
        asyncio.create_task(repeat(client, session, random.Random(f"{client.__name__} {k}")))
        for client, number in BAD_CLIENTS
        for k in range(number)
    ]
    await asyncio.gather(*tasks)


def monitor(port: int, process: int, record: Record, ended: threading.Event) -> None:
    """Request /health and measure the process twice a second; runs in its own thread, independent of the clients."""
    while not ended.wait(0.5):
        started = time.monotonic()
        record.tried["/health"] += 1
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", "/health")
            response = connection.getresponse()
            if response.status != 200 or response.read() != b'{"status":"ok"}':
                record.lost[f"/health was answered {response.status}"] += 1
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


def load_test(seconds: int) -> Outcome:
    """Run all clients against a server for this many seconds and return the outcome."""
    record, images = Record(), SampleImages()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    environment = os.environ | MEMORY_SETTINGS
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "stderr").open("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gingham", "serve", "--port", "0"], cwd=folder, stderr=stderr, env=environment
        )
        try:
            resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (1024, 1024))
            port = _port(process, Path(stderr.name))
            # Warm up: libraries are loaded, threads started and the training images processed.
            asyncio.run(warm_up(LoadSession(port, images, Record(), time.monotonic() + 4)))
            _wait_for_open_files(process.pid, 0)
            record.files_before = open_files(process.pid)
            ended = threading.Event()
            monitor_thread = threading.Thread(target=monitor, args=(port, process.pid, record, ended))
            monitor_thread.start()
            try:
                asyncio.run(run_clients(LoadSession(port, images, record, time.monotonic() + seconds)))
            finally:
                ended.set()
                monitor_thread.join()
            record.files_after = _wait_for_open_files(process.pid, record.files_before)
            process.send_signal(signal.SIGTERM)
            try:
                record.exit_code = process.wait(60)
            except subprocess.TimeoutExpired:
                record.exit_code = None
        finally:
            process.kill()
            process.wait()
        stderr.seek(0)
        record.stderr = stderr.read()
    early, late = (statistics.median(part or [0]) for part in quarters(record.memory))
    requests = sum(record.tried.values())
    return Outcome(
        requests,
        find_issues(record),
        f"{requests:,} requests, {record.tried['a good request']:,} of them good "
        f"({record.tried['a good request again']:,} asked again, {record.slowest:.0f} s at most), {early:,.0f} MB in "
        f"the second quarter, {late:,.0f} MB in the last, health at most {max(record.health, default=0):.1f} s",
    )


async def warm_up(session: LoadSession) -> None:
    kinds = (good_client, good_client, good_client, good_client, never_reads, largest_image, hostile_image, pipelined)
    await asyncio.gather(*(repeat(kind, session, random.Random(k)) for k, kind in enumerate(kinds)))


def _port(process: subprocess.Popen[bytes], stderr_file: Path) -> int:
    for _ in range(600):
        if match := re.search(r"http://127\.0\.0\.1:(\d+)/ ", stderr_file.read_text()):
            return int(match[1])
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {stderr_file.read_text()}")


def _wait_for_open_files(process: int, expected: int) -> int:
    """Return the number of open files of a process once it is stable or as low as expected."""
    previous, unchanged = -1, 0
    for _ in range(150):
        current = open_files(process)
        if current <= expected:
            return current
        unchanged = unchanged + 1 if current == previous else 0
        if unchanged > 20 and not expected:
            return current
        previous = current
        time.sleep(0.1)
    return previous


CHECKS = [Check("a server under load and abuse", load_test, short=10, long=180, unit="requests")]
