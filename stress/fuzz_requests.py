"""Fuzzed requests to the application of `gingham serve`: forms, bodies, headers and queries."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st

import gingham
from gingham.data.registry import REGISTRY
from gingham.deploy.server import create_app
from gingham.models.registry import build_classifier
from gingham.runs.run import Run
from stress.fuzz_images import EXAMPLES, png, valid_files
from stress.mutations import mutate
from stress.verdicts import Judge, message_problem

Case = Callable[[], object]
Headers = Sequence[tuple[bytes, bytes]]
BOUNDARY = b"a-boundary"
FORM = b"multipart/form-data; boundary=" + BOUNDARY
PAGES = ("/", "/model", "/health", "/docs", "/openapi.json")


def form(parts: Sequence[tuple[Headers, bytes]], boundary: bytes = BOUNDARY, end: bytes = b"--\r\n") -> bytes:
    body = b"".join(
        b"--"
        + boundary
        + b"\r\n"
        + b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        + b"\r\n"
        + content
        + b"\r\n"
        for headers, content in parts
    )
    return body + b"--" + boundary + end


def file_headers(name: bytes) -> Headers:
    return [(b"Content-Disposition", b'form-data; name="images"; filename="' + name + b'"')]


def single_line(value: bytes) -> bytes:
    """Return a header's value without line breaks, which the server does not let through."""
    return bytes(byte for byte in value if byte not in b"\r\n\0")


class Requests:
    """Each response is 200, or a status below 500 or 503 with an error message in JSON."""

    def __init__(self, judge: Judge) -> None:
        torch.manual_seed(0)
        recipe = gingham.RECIPES["fast"].replace(network="tiny")
        self.loop = asyncio.new_event_loop()
        self.classes, self.applications = [], []
        random = torch.Generator().manual_seed(0)
        for names, shape in (
            (("cat", "dog", "hen"), (3, 8, 8)),
            (tuple(sorted(REGISTRY["fashion-mnist"].classes)), (1, 28, 28)),
        ):
            run = Run(build_classifier("tiny", names, shape, (0.5,), (0.5,), "flip"), recipe.replace(mean=0.5, std=0.5))
            images = torch.randint(256, (len(names), *shape), generator=random, dtype=torch.uint8)
            train = gingham.Split("train", images, torch.arange(len(names)), names, "pets", "f")
            self.classes.append(names)
            self.applications.append(create_app(run, lambda train=train: train))
        images = [files[0] for files in valid_files().values()] + [valid_files()["PNG"][4], valid_files()["JPEG"][3]]
        self.bodies = [
            (FORM, form([(file_headers(b"a.png"), images[0])])),
            (
                FORM,
                form(
                    [
                        (file_headers(b"a.png"), images[0]),
                        (file_headers(b"b.jpg"), images[1]),
                        ([(b"Content-Disposition", b'form-data; name="x"')], b"1"),
                    ]
                ),
            ),
            *((b"image/png", image) for image in images),
            (b"application/octet-stream", images[3]),
        ]
        small = st.binary(max_size=30)
        types = st.sampled_from(
            (
                FORM,
                FORM,
                FORM,
                b"image/png",
                b"image/jpeg",
                b"application/octet-stream",
                b"application/json",
                b"",
                b"multipart/form-data",
                b"multipart/form-data; boundary=",
                b"multipart/form-data; boundary=" + b"x" * 300,
                b'multipart/form-data; boundary="a b"',
                b"multipart/form-data; boundary*=utf-8''%ff",
                b"multipart/form-data; boundary*0=a; boundary*1=b",
                b"image/;;;=",
                b"\xff\xfe",
                b"image/png; q=\xff",
                b"MULTIPART/FORM-DATA; BOUNDARY=a-boundary",
                b"x" * 3000,
            )
        ) | small.map(lambda data: b"multipart/form-data; " + data)
        names = st.sampled_from(
            (
                b"a.png",
                b"",
                b"../../etc/passwd",
                b"a\nb",
                b"\x1b[2J.png",
                b"\xff.png",
                b"x" * 3000,
                b"%0a",
                b'a"b',
                b"a\\",
                b"\xe2\x80\xa8",
            )
        )
        disposition = (
            names.map(lambda name: file_headers(name)[0][1])
            | st.sampled_from(
                (
                    b"form-data",
                    b"form-data; filename",
                    b"form-data; filename*=utf-8''%ff%0a",
                    b"form-data; filename*=x",
                    b"; filename=a",
                    b"attachment",
                    b"form-data; filename*0=a; filename*1=b",
                )
            )
            | small
        )
        part = st.tuples(
            st.lists(
                st.tuples(
                    st.sampled_from((b"Content-Disposition",) * 4 + (b"content-type", b"", b"x" * 300, b"a b")),
                    disposition,
                ),
                max_size=2,
            ),
            st.sampled_from(images) | small | EXAMPLES.map(png_or_text),
        )
        self.examples = st.tuples(
            st.sampled_from(("POST",) * 12 + ("GET", "PUT", "HEAD", "OPTIONS", "DELETE", "x")),
            st.sampled_from(
                ("/predict",) * 20
                + (
                    *PAGES,
                    "/predict/",
                    "//",
                    "/../etc/passwd",
                    "/a\nb\x1b",
                    "/" + "x" * 3000,
                    "/static-offline-docs/../../x",
                )
            )
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map("/".__add__),
            st.sampled_from(
                (
                    b"",
                    b"",
                    b"explain=true",
                    b"explain=perhaps",
                    b"explain=1&explain=0",
                    b"explain[]=",
                    b"explain=%ff%00",
                    b"&&&=",
                    b"x=" + b"y" * 3000,
                )
            ),
            types,
            st.lists(part, max_size=3),
            st.sampled_from((1,) * 30 + (100, 400)),  # repetitions of the parts
            st.sampled_from((b"--\r\n", b"--\r\n", b"--\r\n", b"--", b"", b"\r\n", b"--\r\nepilogue", b"-")),
            st.lists(
                st.tuples(
                    st.sampled_from(
                        (
                            b"content-length",
                            b"host",
                            b"range",
                            b"accept",
                            b"if-none-match",
                            b"expect",
                            b"transfer-encoding",
                            b"cookie",
                        )
                    ),
                    st.sampled_from(
                        (b"0", b"10", b"-1", b"\xb2", b"9" * 20, b"9" * 5000, b"1e9", b"\xff", b"bytes=0-1", b"chunked")
                    ),
                ),
                max_size=2,
            ),
            st.integers(0, 6),
        )

    def mutated_case(self, random: Random) -> Case:
        kind, body = random.choice(self.bodies)
        plain = [body, body, *(other for _, other in self.bodies)]
        headers = [(b"content-type", kind)]
        chance = random.random()
        if chance < 0.8:
            body = mutate(random, plain)
        if chance > 0.7:
            headers = [(b"content-type", single_line(mutate(random, [kind, FORM])))]
        query = (
            b"explain=true"
            if random.random() < 0.1
            else single_line(mutate(random, [b"explain=true&x=1"]))
            if random.random() < 0.1
            else b""
        )
        num_pieces = random.choice((1, 1, 1, 3, 9))
        index = int(random.random() < 0.15)
        return lambda: self.send_request(index, "POST", "/predict", query, headers, split_body(body, num_pieces))

    def generated_case(self, example: Any) -> Case:
        method, path, query, kind, parts, times, end, others, num_pieces = example
        media = kind.lower()
        body = form(parts * times, BOUNDARY, end) if media.startswith(b"multipart") or not parts else parts[0][1]
        headers = [(b"content-type", single_line(kind)), *((name, single_line(value)) for name, value in others)]
        return lambda: self.send_request(
            int(num_pieces == 1), method, path, query, headers, split_body(body, num_pieces), disconnect=num_pieces == 6
        )

    def send_request(
        self,
        index: int,
        method: str,
        path: str,
        query: bytes,
        headers: Headers,
        body: list[bytes],
        *,
        disconnect: bool = False,
    ) -> None:
        incoming = [{"type": "http.request", "body": piece, "more_body": True} for piece in body]
        incoming.append(
            {"type": "http.disconnect"} if disconnect else {"type": "http.request", "body": b"", "more_body": False}
        )
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0) if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "root_path": "",
            "headers": list(headers),
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        self.loop.run_until_complete(self.applications[index](scope, receive, send))
        status = sent[0]["status"]
        response_type = dict(sent[0]["headers"]).get(b"content-type", b"")
        content = b"".join(message.get("body", b"") for message in sent[1:])
        if status == 307:
            assert path.endswith("/"), "sent elsewhere"
            return
        if status != 200:
            assert 400 <= status < 500 or status == 503, f"status {status}"
            assert response_type == b"application/json", f"{status} in {response_type!r}: {content[:200]!r}"
            response = json.loads(content)
            assert set(response) <= {"error", "predictions"}
            assert (problem := message_problem(response["error"])) is None, problem
        elif path == "/predict":
            response = json.loads(content)
            assert response["predictions"]
        else:
            assert path in PAGES or response_type.startswith((b"text/", b"image/", b"application/")), path
            return
        for entry in response.get("predictions", []):
            if "error" in entry:
                assert message_problem(entry["error"]) is None
                continue
            assert entry["label"] in self.classes[index]
            assert set(entry["probabilities"]) == set(self.classes[index])
            assert all(math.isfinite(share) and 0 <= share <= 1 for share in entry["probabilities"].values())
            assert abs(sum(entry["probabilities"].values()) - 1) < 1e-3


def split_body(body: bytes, num_pieces: int) -> list[bytes]:
    size = max(1, -(-len(body) // max(1, num_pieces)))
    return [body[start : start + size] for start in range(0, len(body), size)]


def png_or_text(example: Any) -> bytes:
    """Return the PNG of an example for images, or bytes that are no image."""
    kind, values = example
    return png(values) if kind == "PNG" and values[0] < 2**32 and values[1] < 2**32 else b"no picture"
