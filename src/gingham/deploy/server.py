"""Serve a run over HTTP: images in, predictions out, and a page to try it on."""

import asyncio
import base64
import contextlib
import ctypes
import io
import json
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi_offline import FastAPIOffline
from PIL import Image
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from gingham._version import __version__
from gingham.data.decode import LARGE, open_image, silence_pillow
from gingham.data.splits import Split
from gingham.deploy.api_schema import PREDICT_BODY, PREDICT_RESPONSES, Health
from gingham.deploy.connections import ACCEPTED, Connection
from gingham.deploy.page import model_metadata, served_page
from gingham.deploy.request_images import PICTURES, PIXELS, read_request_images
from gingham.errors import DataError, GinghamError, sentence
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, NUM_NEIGHBOURS, Gallery, features, gallery
from gingham.inference.predict import ImagePrediction, mean_probabilities, preprocess, to_predictions
from gingham.inference.preprocess import Bytes, PreparedPhoto, open_photo
from gingham.runs.run import Run

MEGABYTE = 1 << 20
BODY_BYTES, HELD_BYTES = 32 * MEGABYTE, 256 * MEGABYTE  # of one request; of all that are being received and answered
THREADS = 8  # at most: more would wait for Python's lock
STALL_SECONDS, BODY_SECONDS = 20, 120  # between two pieces of a body; for all of it
TOGETHER = 128  # pictures that the model answers at a time
KEPT_SECONDS = 75  # for a connection that asks nothing: longer than proxies keep theirs, so that it is they who close it
GRACE_SECONDS = 30  # for what is in flight when the server is told to end
GIVE_BACK_SECONDS = 20  # between the times that free memory goes back to the system
QUEUED, FILES = 2048, 1024  # connections that wait to be accepted; file descriptors that CONNECTIONS need


class RequestBatcher:
    """Answers pictures of many requests together: whoever is waiting when a thread is free goes into its next batch."""

    def __init__(self, run: Run, threads: int) -> None:
        self.run = run
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self.waiting: deque[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = deque()

    async def answer(self, prepared: list[PreparedPhoto]) -> torch.Tensor:
        """Return the probabilities (N, K) of prepared pictures."""
        if not prepared:
            return mean_probabilities(self.run.model, [])
        said: Future[torch.Tensor] = Future()
        self.waiting.append((prepared, said))
        self.pool.submit(self._next)
        return await asyncio.wrap_future(said)

    def _next(self) -> None:
        taken: list[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = []
        while sum(len(prepared) for prepared, _ in taken) < TOGETHER:
            try:
                taken.append(self.waiting.popleft())
            except IndexError:
                break
        taken = [(prepared, future) for prepared, future in taken if future.set_running_or_notify_cancel()]
        if not taken:  # another thread has taken them along, or nobody waits for them any more
            return
        try:
            said = mean_probabilities(self.run.model, [one for prepared, _ in taken for one in prepared])
            for (_, future), part in zip(taken, torch.split(said, [len(prepared) for prepared, _ in taken]), strict=True):
                future.set_result(part)
        except Exception as error:  # noqa: BLE001  # whoever waits must hear of it
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)


class _Service:
    """What the requests share: the run, its threads, the pictures to compare with, and how much is being held."""

    def __init__(self, run: Run, train: Callable[[], Split | None]) -> None:
        self.run, self.held = run, 0
        run.model.eval()  # once and for all: threads that switch it to and fro would answer in each other's mode
        cores = min(THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self.large = threading.Lock()
        self.batches = RequestBatcher(run, cores if run.model.mean.device.type == "cpu" else 1)
        self.preparing = ThreadPoolExecutor(cores, thread_name_prefix="preparation")
        # Apart from the answers: one takes a hundred times as long, and who asks for none would wait for those of others.
        self.explaining = ThreadPoolExecutor(cores, thread_name_prefix="explanation")
        self.gallery: Future[Gallery | None] = self.batches.pool.submit(self._gallery, train)

    def _gallery(self, train: Callable[[], Split | None]) -> Gallery | None:
        split = train()
        return None if split is None else gallery(self.run.model, split, GALLERY_SIZE)

    async def receive(self, request: Request) -> bytes:
        """Return a request's body; what is too large, or too slow, is refused before it is all there."""
        declared = request.headers.get("content-length", "").lstrip("0")
        # Digits of other scripts are none here, and int() takes no more than some thousands.
        if declared.isascii() and declared.isdigit() and (len(declared) > 12 or int(declared) > BODY_BYTES):
            raise _too_large()
        received = 0
        parts = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                stream = request.stream()
                while part := await asyncio.wait_for(anext(stream, b""), STALL_SECONDS):
                    received += len(part)
                    self.held += len(part)
                    parts.append(part)
                    if received > BODY_BYTES:
                        raise _too_large()
                    if self.held > HELD_BYTES:
                        raise HTTPException(503, "too many large requests at once; try again in a second", {"Retry-After": "1"})
            return b"".join(parts)
        except ClientDisconnect:
            raise HTTPException(400, "the connection was closed before the body was all there") from None  # nobody reads it
        except TimeoutError:
            raise HTTPException(
                408, f"the body did not arrive within {STALL_SECONDS} s a piece and {BODY_SECONDS} s in all; send it again"
            ) from None
        finally:
            self.held -= received

    async def answer(self, request: Request, *, explain: bool) -> list[dict[str, Any]]:
        """Return the answers to a request's pictures as JSON values."""
        body = await self.receive(request)
        self.held += len(body)
        try:
            loop = asyncio.get_running_loop()
            kind = request.headers.get("content-type", "")
            names, results = await loop.run_in_executor(self.preparing, self.prepare, body, kind)
            read = [result for result in results if isinstance(result, PreparedPhoto)]
            found = to_predictions(self.run.model, names, results, await self.batches.answer(read))
            if not explain:
                return [answer.to_dict() for answer in found]
            nearby = await asyncio.wrap_future(self.gallery)
            return [await loop.run_in_executor(self.explaining, _explained, self.run, answer, nearby) for answer in found]
        finally:
            self.held -= len(body)

    def prepare(self, body: bytes, kind: str) -> tuple[list[str], list[PreparedPhoto | DataError]]:
        """Return the names of the pictures in a body, and each prepared, or why it cannot be."""
        pictures = read_request_images(body, kind)
        with silence_pillow():
            return [name for name, _ in pictures], [self._prepare(name, content) for name, content in pictures]

    def _prepare(self, name: str, content: bytes) -> PreparedPhoto | DataError:
        try:
            with self.large if _pixels(content) > LARGE else contextlib.nullcontext():
                return preprocess(self.run, open_photo(content, name, PIXELS))
        except DataError as error:
            return error


def _pixels(content: bytes) -> int:
    """How many pixels a picture says it has, before any is read; 0 for what is no picture."""
    try:
        with open_image(content) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001  # in a damaged file Pillow meets errors of nearly any type
        return 0


def _too_large() -> HTTPException:
    return HTTPException(
        413,
        f"the request has more than {BODY_BYTES // MEGABYTE} MB, which is what is allowed; send fewer or smaller pictures",
    )


def _explained(run: Run, answer: ImagePrediction, nearby: Gallery | None) -> dict[str, Any]:
    """An answer as JSON values with its reasons, and the picture after each step."""
    entry = answer.to_dict()
    if answer.prepared is None:
        return entry
    for step, shown in zip(answer.prepared.steps, entry["steps"], strict=True):
        shown["picture"] = _png(step.image)
    picture = torch.tensor(answer.prepared.image)
    stride = max(1, max(picture.shape[1:]) // 14)
    moved = occlusion(run.model, picture, run.model.classes.index(answer.label), max(5, 2 * stride + 1), stride)
    why: dict[str, Any] = {
        "moved": [[round(value, 4) for value in row] for row in moved.tolist()],
        "among": 0,
        "neighbours": [],
    }
    if nearby is not None:
        why["among"] = len(nearby.labels)
        for k in nearby.nearest(features(run.model, picture[None])[0], NUM_NEIGHBOURS):
            why["neighbours"].append({"label": nearby.labels[k], "picture": _png(nearby.images[k].numpy())})
    return entry | {"explanation": why}


def _png(pixels: Bytes) -> str:
    """Pixels (H, W, 3) or (C, H, W) as a data URL."""
    if pixels.shape[0] in (1, 3) and pixels.shape[-1] != 3:
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def create_app(run: Run, train: Callable[[], Split | None] = lambda: None) -> FastAPI:
    """Return the web application of a run: `POST /predict`, `GET /model`, `GET /health`, `GET /` (the page), `GET /docs`.

    `train` gives the training pictures that `explain` finds the nearest of, where there are some; it is called once, on another thread.

        app = gingham.deploy.server.create_app(gingham.load_packaged())
    """
    app = FastAPIOffline(
        title="Gingham",
        version=__version__,
        description=f"Names what is in pictures: {', '.join(run.model.classes[:20])}.",
        redoc_url=None,
    )
    service = _Service(run, train)
    html, policy = served_page(run)
    metadata = model_metadata(run) | {
        "limits": {"request_bytes": BODY_BYTES, "pictures": PICTURES, "pixels": PIXELS},
        "gingham": __version__,
    }

    @app.post("/predict", responses=PREDICT_RESPONSES, openapi_extra=PREDICT_BODY, response_class=Response, tags=["answers"])
    async def predict(request: Request, explain: bool = False) -> Response:
        """Name what is in one picture or many: a form with a file for each, or one picture as the body.

        `explain` adds the picture after each step, what moved the decision, and the training pictures most like it.
        """
        try:
            entries = await service.answer(request, explain=explain)
        except asyncio.CancelledError:  # its time to end in is over
            raise HTTPException(503, "the server is ending; ask again in a while") from None
        errors = [entry["error"] for entry in entries if "error" in entry]
        if errors:
            more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
            return _json({"error": f"{errors[0]}{more}", "predictions": entries}, 422)
        return _json({"predictions": entries})

    @app.get("/model", tags=["about"])
    async def model() -> dict[str, Any]:
        """What answers: its classes, the shape of its pictures, its threshold for "not sure", how it was trained and measured."""
        return metadata

    @app.get("/health", response_model=Health, tags=["about"])
    async def health() -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        return HTMLResponse(html, headers=headers)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        said = error.detail
        if error.status_code == 404:
            said = f"there is nothing at {request.url.path[:80]}; POST /predict, GET /model, /health, /docs and / are"
        elif error.status_code == 405:
            said = f"{request.url.path[:80]} does not take {request.method}; /docs says what it takes"
        return _json({"error": sentence(str(said))}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        said = f"{first['loc'][-1]} got {str(first.get('input'))[:80]!r}: {first['msg']}; /docs says what is allowed"
        return _json({"error": sentence(said)}, 422)

    return app


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, headers, "application/json")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes any that is free.

    Raises
        GinghamError: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=QUEUED)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0  # below 0 where a name was not found
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise GinghamError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port, or 127.0.0.1 as --host"
        ) from None


def serve(run: Run, listening: socket.socket, train: Callable[[], Split | None] = lambda: None) -> None:
    """Answer requests until the process is told to end by SIGTERM or Ctrl-C; what is in flight then is answered first.

    `listening` is what `listen` gives. At the end the signal is passed on to whoever handled it before.
    """
    # A thread a core, each answering a batch of its own: sharing each batch among the cores answers a sixth fewer (records/LOG.md).
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # whoever sent a broken form is told
    config = uvicorn.Config(
        create_app(run, train),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEPT_SECONDS,
        backlog=ACCEPTED,
        http=Connection,
        ws="none",
    )
    _raise_file_limit()
    threading.Thread(target=_trim_memory, name="memory", daemon=True).start()
    _Server(config).run(sockets=[listening])


class _Server(uvicorn.Server):
    """Uvicorn's, which queues more connections than it accepts at a time: asyncio takes one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for place in sockets or []:
            place.listen(QUEUED)


def _trim_memory() -> None:
    """Give the system the memory that is free, now and then: glibc keeps what lies between blocks in use, more each minute under load."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    while hasattr(libc, "malloc_trim"):
        time.sleep(GIVE_BACK_SECONDS)
        libc.malloc_trim(0)


def _raise_file_limit() -> None:
    """Ask for as many file descriptors as the connections need, where the system gives a process fewer unless asked."""
    import resource  # not on Windows, where gingham does not run yet

    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES and (most == resource.RLIM_INFINITY or most > soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if most == resource.RLIM_INFINITY else min(FILES, most), most))
