"""Measure the throughput and latency of `gingham serve`. The server and its clients share this machine.

    python benchmarks/serve.py                        # the packaged model
    python benchmarks/serve.py packaged runs/fast-0

The images are Fashion-MNIST's validation images as PNG files, sent in forms as a browser or curl does. There are five
loads on a fresh, warm server: single images that arrive at random, 200 per second, with latencies that include the time
in a queue; 64 images per request from two clients, each sending the next request after the last response; 10,000
requests of one image from 64 such clients, with /health requested beside them; photos of 640x480, one per request, from
four; and PNGs of 50 megapixels from eight, for their memory (with the variables of docs/deploy.md). Writes
benchmarks/results/serve-<hardware>-<date>.md.
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
    """The result of a load: seconds per request, the number of responses other than 200, and the total seconds."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0

    def percentile(self, share: float) -> float:
        """Return the latency in milliseconds that this share of the requests stays below."""
        return 1000 * sorted(self.latencies)[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


class Client:
    """A persistent connection that sends one request after the other."""

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
    """Return a request for the predictions of some images, as curl -F sends it."""
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
    """Start a server of a run on a free port; yield the port and the process id."""
    run_options = [] if run == "packaged" else ["--run", run]
    command = [sys.executable, "-m", "gingham", "serve", "--port", "0", *run_options]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "16000000", "MALLOC_ARENA_MAX": "2"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stderr.readline())[1]), process.pid  # type: ignore[index]
    finally:
        process.terminate()
        process.wait()


def peak_memory(process: int) -> float:
    """Return the peak memory of a process in MB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) * 1024 / 1e6  # type: ignore[index]


def memory(process: int) -> float:
    """Return the memory of a process in MB."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 1e6


async def load_at_rate(port: int, requests: list[bytes], rate: float, seconds: float) -> Load:
    """Send requests at random times with a mean rate per second, without waiting for responses."""
    load, idle, tasks = Load(), [Client(port) for _ in range(8)], list[asyncio.Task[None]]()
    arrivals, started = random.Random(0), time.perf_counter()  # noqa: S311
    due = started

    async def send(request: bytes, due: float) -> None:
        client = idle.pop() if idle else Client(port)
        await client.ask(request, load, due)
        idle.append(client)

    while due < started + seconds:
        due += arrivals.expovariate(rate)
        await asyncio.sleep(max(0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(requests[len(tasks) % len(requests)], due)))
    await asyncio.gather(*tasks)
    load.seconds = time.perf_counter() - started
    return load


async def load_concurrently(port: int, requests: list[bytes], clients: int, total: int) -> tuple[Load, Load]:
    """Send requests from concurrent clients, each after the last response, and /health ten times a second."""
    load, health, numbers = Load(), Load(), iter(range(total))
    started = time.perf_counter()

    async def send_requests() -> None:
        client = Client(port)
        for number in numbers:
            await client.ask(requests[number % len(requests)], load)

    async def send_health() -> None:
        client = Client(port)
        while True:
            await client.ask(HEALTH, health)
            await asyncio.sleep(0.1)

    health_task = asyncio.create_task(send_health())
    await asyncio.gather(*(send_requests() for _ in range(clients)))
    load.seconds = time.perf_counter() - started
    health_task.cancel()
    return load, health


async def loads(port: int, process: int, images: list[bytes], photo: bytes, seconds: float) -> list[str]:
    singles, many = (
        [form([image]) for image in images],
        [form(images[k : k + 64]) for k in range(0, len(images) - 63, 64)],
    )
    await load_concurrently(port, singles, 4, 400)
    await load_concurrently(port, many, 2, 20)
    rows = []

    def row(what: str, load: Load, num_images: int, more: str = "") -> None:
        rate = len(load.latencies) / load.seconds
        rows.append(
            f"{what} | {len(load.latencies):,} | {load.errors} | {rate:,.0f} | {rate * num_images:,.0f} | "
            f"{load.percentile(0.5):.1f} | {load.percentile(0.99):.1f} | {more} |"
        )

    row("1 image, 200 per second", await load_at_rate(port, singles, 200, seconds), 1)
    # The first requests tell how many fill the time.
    probe, _ = await load_concurrently(port, many, 2, 40)
    row(
        "64 images, 2 clients",
        (await load_concurrently(port, many, 2, max(40, int(40 / probe.seconds * seconds))))[0],
        64,
    )
    before = memory(process)
    load, health = await load_concurrently(port, singles, 64, 10_000)
    row("1 image, 64 "
        "clients", load, 1, f"/health: {health.errors} errors of {len(health.latencies)}, p99 {health.percentile(0.99):.0f} ms; memory "
        f"{before:.0f} to {memory(process):.0f} MB")  # fmt: skip
    row("1 photo, 4 clients", (await load_concurrently(port, [form([photo])], 4, 200))[0], 1)
    huge = np.zeros((7000, 7000, 4), np.uint8)
    huge[..., 3], huge[2000:5000, 2500:4500, 0], huge[:9, :, 3] = 255, 90, 0
    file, before = io.BytesIO(), memory(process)
    Image.fromarray(huge).save(file, "PNG", compress_level=1)
    load = (await load_concurrently(port, [form([file.getvalue()])], 8, 16))[0]
    row(
        "1 PNG of 49 megapixels, 8 clients",
        load,
        1,
        f"memory {before:.0f} to {memory(process):.0f} MB, at most {peak_memory(process):.0f} MB",
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="*", default=["packaged"])
    parser.add_argument("--seconds", type=float, default=20, help="duration of each of the first two loads")
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
                time.sleep(4)  # the server processes its training images first
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
            "Each repeat has its own server, and the runs take turns. Latencies are in milliseconds.",
            "",
            "| run | load | requests | errors | requests/s | images/s | p50 | p99 | |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
            *(f"| {name} | {row}" for name, repeats in table.items() for row in repeats),
            "",
            "Medians of the repeats:",
            "",
            "| run | load | images/s | p50 | p99 |",
            "| --- | --- | ---: | ---: | ---: |",
            *(f"| {name} | {column_median(rows, 3):,.0f} | {column_median(rows, 4):.1f} | {column_median(rows, 5):.1f} "
              "|" for name, rows in table.items()),
            "",
        ]
    )  # fmt: skip
    print(text)
    print("written:", records.write_result("serve", environment, text))


def column_median(rows: list[str], column: int) -> float:
    """Return the median of a column of rows."""
    return statistics.median(float(row.split(" | ")[column].replace(",", "")) for row in rows)


if __name__ == "__main__":
    records.run(main)
