"""How much does `gingham serve` stand? The server and the programs that ask it share this machine.

    python benchmarks/serve.py                        # the packaged model
    python benchmarks/serve.py packaged runs/fast-0

Pictures are Fashion-MNIST's validation pictures as PNG files, asked in forms as a browser or curl would. Five loads, each with a server just
started and warm: single pictures, arriving at random 200 times a second, each latency counted from when the request was due, so that a
queue counts; 64 pictures a request from two clients that ask again at once; 10,000 requests of one picture from 64 clients that ask again at
once, with /health asked beside them; photographs of 640x480, one a request, from four; PNGs of 50 megapixels from eight, for the memory they
take (with MALLOC_MMAP_THRESHOLD_ set as docs/deploy.md has it). Writes benchmarks/results/serve-<hardware>-<date>.md.
"""

import argparse
import asyncio
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import gingham
import records
from gingham.device import describe_environment

BOUNDARY = "benchmark"


@dataclass
class Load:
    """What a load came to: seconds a request, how many were answered otherwise than with 200, and how long it all took."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0

    def at(self, share: float) -> float:
        """The latency in milliseconds below which that share of the requests lies."""
        return 1000 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Client:
    """One connection that is kept, and asks one thing after the other."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, load: Load, due: float | None = None) -> bytes:
        started = time.perf_counter() if due is None else due
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
            reader, writer = self.streams
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
            body = await reader.readexactly(length)
            load.errors += not head.startswith(b"HTTP/1.1 200")
        except (OSError, asyncio.IncompleteReadError, TypeError):
            load.errors += 1
            self.streams, body = None, b""
        load.latencies.append(time.perf_counter() - started)
        return body


def form(files: list[bytes]) -> bytes:
    """A request for the answers to some pictures, as curl -F sends it."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{k}.png"\r\nContent-Type: image/png\r\n\r\n'.encode()
        + content + b"\r\n"
        for k, content in enumerate(files)
    ]  # fmt: skip
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@contextmanager
def server(run: str) -> Iterator[tuple[int, int]]:
    """A server of a run on a free port: the port and its process."""
    named = [] if run == "packaged" else ["--run", run]
    command = [sys.executable, "-m", "gingham", "serve", "--port", "0", *named]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "16000000"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1]), process.pid  # type: ignore[index]
    finally:
        process.terminate()
        process.wait()


def most(process: int) -> float:
    """The most memory a process has held, in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) * 1024 / 1e6  # type: ignore[index]


def resident(process: int) -> float:
    """The memory a process holds, in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 1e6


async def at_a_rate(port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    """Requests that arrive at random, so many a second, whether or not the ones before have been answered."""
    load, idle, tasks = Load(), [Client(port) for _ in range(8)], list[asyncio.Task[None]]()
    arrivals, started = random.Random(0), time.perf_counter()  # noqa: S311
    due = started

    async def one(request: bytes, due: float) -> None:
        client = idle.pop() if idle else Client(port)
        await client.ask(request, load, due)
        idle.append(client)

    while due < started + seconds:
        due += arrivals.expovariate(rate)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(requests[len(tasks) % len(requests)], due)))
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    return load


async def at_once(port: int, requests: list[bytes], clients: int, total: int) -> tuple[Load, Load]:
    """So many clients that ask again as soon as they are answered, and /health ten times a second beside them."""
    load, health, left = Load(), Load(), iter(range(total))
    started = time.perf_counter()

    async def one() -> None:
        client = Client(port)
        for number in left:
            await client.ask(requests[number % len(requests)], load)

    async def probe() -> None:
        client = Client(port)
        while True:
            await client.ask(HEALTH, health)
            await asyncio.sleep(0.1)

    probing = asyncio.create_task(probe())
    await asyncio.gather(*(one() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    probing.cancel()
    return load, health


async def loads(port: int, process: int, pictures: list[bytes], photograph: bytes, seconds: float) -> list[str]:
    singles, many = [form([one]) for one in pictures], [form(pictures[k : k + 64]) for k in range(0, len(pictures) - 63, 64)]
    await at_once(port, singles, 4, 400)
    await at_once(port, many, 2, 20)
    rows = []

    def row(what: str, load: Load, pictures: int, more: str = "") -> None:
        rate = len(load.latencies) / load.seconds
        rows.append(
            f"{what} | {len(load.latencies):,} | {load.errors} | {rate:,.0f} | {rate * pictures:,.0f} | {load.at(0.5):.1f} | {load.at(0.99):.1f} | "
            f"{more} |"
        )

    row("1 picture, 200 a second", await at_a_rate(port, singles, 200, seconds), 1)
    # As many as fill the time: how many that is, a first second says.
    trial, _ = await at_once(port, many, 2, 40)
    row("64 pictures, 2 clients", (await at_once(port, many, 2, max(40, int(40 / trial.seconds * seconds))))[0], 64)
    before = resident(process)
    load, health = await at_once(port, singles, 64, 10_000)
    row("1 picture, 64 clients", load, 1, f"/health: {health.errors} errors of {len(health.latencies)}, p99 {health.at(0.99):.0f} ms; memory "
        f"{before:.0f} to {resident(process):.0f} MB")  # fmt: skip
    row("1 photograph, 4 clients", (await at_once(port, [form([photograph])], 4, 200))[0], 1)
    huge = np.zeros((7000, 7000, 4), np.uint8)
    huge[..., 3], huge[2000:5000, 2500:4500, 0], huge[:9, :, 3] = 255, 90, 0
    file, before = io.BytesIO(), resident(process)
    Image.fromarray(huge).save(file, "PNG", compress_level=1)
    load = (await at_once(port, [form([file.getvalue()])], 8, 16))[0]
    row(
        "1 PNG of 49 megapixels, 8 clients",
        load,
        1,
        f"memory {before:.0f} to {resident(process):.0f} MB, at most {most(process):.0f} MB",
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["packaged"])
    parser.add_argument("--seconds", type=float, default=20, help="of each of the first two loads")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    commit = records.clean_commit()
    validation = gingham.load_data("fashion-mnist").validation
    assert validation is not None
    files = []
    for image in validation.images[:512]:
        file = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(file, "PNG")
        files.append(file.getvalue())
    large = Image.new("RGB", (640, 480), (246, 244, 240))
    garment = Image.fromarray(validation.images[0, 0].numpy()).resize((420, 420))
    large.paste((60, 70, 110), (110, 30), garment.point(lambda value: 255 if value > 20 else 0))
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    table: dict[str, list[str]] = {}
    for _ in range(arguments.repeats):
        for run in arguments.runs:
            with server(run) as (port, process):
                time.sleep(4)  # it goes through its training pictures first
                for row in asyncio.run(loads(port, process, files, file.getvalue(), arguments.seconds)):
                    table.setdefault(f"{run} | {row.partition(' |')[0]}", []).append(row.partition("| ")[2])
                    print(run, "|", row, flush=True)
    environment = describe_environment(torch.device("cpu"))
    packages = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    versions = {entry["name"]: entry["version"] for entry in json.loads(packages.stdout)}
    command = f"{' '.join(arguments.runs)} --seconds {arguments.seconds:g} --repeats {arguments.repeats}"
    text = "\n".join(
        [
            "# Serving",
            "",
            f"Command: `python benchmarks/serve.py {command}`, commit {commit[:12]}.",
            f"Hardware: {environment['hardware']}, shared by the server and its clients; torch {environment['torch']}, "
            + ", ".join(f"{name} {versions[name]}" for name in ("fastapi", "uvicorn")) + ".",
            "Each repeat has a server of its own, the runs taking turns. Latencies in milliseconds.",
            "",
            "| run | load | requests | errors | requests/s | pictures/s | p50 | p99 | |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
            *(f"| {name} | {row}" for name, repeats in table.items() for row in repeats),
            "",
            "Medians of the repeats:",
            "",
            "| run | load | pictures/s | p50 | p99 |",
            "| --- | --- | ---: | ---: | ---: |",
            *(f"| {name} | {middle(rows, 3):,.0f} | {middle(rows, 4):.1f} | {middle(rows, 5):.1f} |" for name, rows in table.items()),
            "",
        ]
    )  # fmt: skip
    print(text)
    print("written:", records.write_result("serve", environment, text))


def middle(rows: list[str], column: int) -> float:
    """The median of a column of rows that are alike."""
    return statistics.median(float(row.split(" | ")[column].replace(",", "")) for row in rows)


if __name__ == "__main__":
    main()
