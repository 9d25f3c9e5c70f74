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
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from gingham._version import __version__
from gingham.data.decode import LARGE_PIXELS, open_image, silence_pillow
from gingham.data.splits import Split
from gingham.deploy.api_schema import PREDICT_BODY, PREDICT_RESPONSES, Health
from gingham.deploy.connections import MAX_ACCEPTED, Connection
from gingham.deploy.page import model_metadata, served_page
from gingham.deploy.request_images import MAX_IMAGES, MAX_PIXELS, read_request_images
from gingham.errors import DataError, GinghamError, format_message
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, NUM_NEIGHBOURS, Gallery, features, gallery
from gingham.inference.predict import ImagePrediction, mean_probabilities, preprocess, to_predictions
from gingham.inference.preprocess import ImageArray, PreparedPhoto, open_photo
from gingham.runs.run import Run

MEGABYTE = 1 << 20
BODY_BYTES, HELD_BYTES = 32 * MEGABYTE, 256 * MEGABYTE  # of one request; of all requests in progress
MAX_THREADS = 8  # more would wait for the GIL
STALL_SECONDS, BODY_SECONDS = 20, 120  # between two pieces of a body; for the whole body
MAX_BATCH = 128  # images, unless a single request has more
KEEP_ALIVE_SECONDS = 75  # for an idle connection: longer than in proxies, so that the proxy closes it
GRACE_SECONDS = 30  # for requests in progress at a shutdown
TRIM_SECONDS = 20  # between two returns of free memory to the system
BACKLOG, FILES = 2048, 1024  # connections that wait to be accepted; file descriptors that MAX_CONNECTIONS need


class RequestBatcher:
    """Predicts images of several requests in one batch: a free thread takes all waiting requests, up to MAX_BATCH images."""

    def __init__(self, run: Run, threads: int) -> None:
        self.run = run
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self.queue: deque[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = deque()

    async def predict(self, prepared: list[PreparedPhoto]) -> torch.Tensor:
        """Return the probabilities (N, K) of prepared images."""
        if not prepared:
            return mean_probabilities(self.run.model, [])
        future: Future[torch.Tensor] = Future()
        self.queue.append((prepared, future))
        self.pool.submit(self._run_batch)
        return await asyncio.wrap_future(future)

    def _run_batch(self) -> None:
        batch: list[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = []
        while sum(len(photos) for photos, _ in batch) < MAX_BATCH:
            try:
                batch.append(self.queue.popleft())
            except IndexError:
                break
        batch = [(photos, future) for photos, future in batch if future.set_running_or_notify_cancel()]
        if not batch:  # another thread took the requests, or they were cancelled
            return
        try:
            probabilities = mean_probabilities(self.run.model, [photo for photos, _ in batch for photo in photos])
            for (_, future), part in zip(
                batch, torch.split(probabilities, [len(photos) for photos, _ in batch]), strict=True
            ):
                future.set_result(part)
        except Exception as error:  # noqa: BLE001  # passed on to the waiting requests
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)


class _Service:
    """The state that requests share: the run, its threads, the gallery of training images, and the size of all bodies in memory."""

    def __init__(self, run: Run, load_train: Callable[[], Split | None]) -> None:
        self.run, self.held_bytes = run, 0
        run.model.eval()  # once, because threads that switched the mode would disturb each other
        cores = min(
            MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self.large_image_lock = threading.Lock()
        self.batcher = RequestBatcher(run, cores if run.model.mean.device.type == "cpu" else 1)
        self.preprocess_pool = ThreadPoolExecutor(cores, thread_name_prefix="preparation")
        # A separate pool, because an explanation takes a hundred times as long as a prediction.
        self.explain_pool = ThreadPoolExecutor(cores, thread_name_prefix="explanation")
        self.gallery: Future[Gallery | None] = self.batcher.pool.submit(self._load_gallery, load_train)

    def _load_gallery(self, load_train: Callable[[], Split | None]) -> Gallery | None:
        train = load_train()
        return None if train is None else gallery(self.run.model, train, GALLERY_SIZE)

    async def read_body(self, request: Request) -> bytes:
        """Return a request's body; a body that is too large or too slow is refused while it arrives."""
        declared = request.headers.get("content-length", "").lstrip("0")
        # isdigit() accepts digits of other scripts, and int() refuses thousands of digits.
        if declared.isascii() and declared.isdigit() and (len(declared) > 12 or int(declared) > BODY_BYTES):
            raise _body_too_large()
        received = 0
        parts = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                stream = request.stream()
                while part := await asyncio.wait_for(anext(stream, b""), STALL_SECONDS):
                    received += len(part)
                    self.held_bytes += len(part)
                    parts.append(part)
                    if received > BODY_BYTES:
                        raise _body_too_large()
                    if self.held_bytes > HELD_BYTES:
                        raise HTTPException(
                            503, "too many large requests at once; try again in a second", {"Retry-After": "1"}
                        )
            return b"".join(parts)
        except ClientDisconnect:
            raise HTTPException(
                400, "the connection was closed before the body was all there"
            ) from None  # never received
        except TimeoutError:
            raise HTTPException(
                408,
                f"the body did not arrive within {STALL_SECONDS} s a piece and {BODY_SECONDS} s in all; send it again",
            ) from None
        finally:
            self.held_bytes -= received

    async def predict(self, request: Request, *, explain: bool) -> list[dict[str, Any]]:
        """Return the predictions for a request's images as JSON values."""
        body = await self.read_body(request)
        self.held_bytes += len(body)
        try:
            loop = asyncio.get_running_loop()
            content_type = request.headers.get("content-type", "")
            names, results = await loop.run_in_executor(
                self.preprocess_pool, self.preprocess_images, body, content_type
            )
            prepared = [result for result in results if isinstance(result, PreparedPhoto)]
            predictions = to_predictions(self.run.model, names, results, await self.batcher.predict(prepared))
            if not explain:
                return [prediction.to_dict() for prediction in predictions]
            candidates = await asyncio.wrap_future(self.gallery)
            return [
                await loop.run_in_executor(self.explain_pool, _explain, self.run, item, candidates)
                for item in predictions
            ]
        finally:
            self.held_bytes -= len(body)

    def preprocess_images(self, body: bytes, content_type: str) -> tuple[list[str], list[PreparedPhoto | DataError]]:
        """Return the names of the images in a body, and each image prepared or the error of its file."""
        images = read_request_images(body, content_type)
        with silence_pillow():
            return [name for name, _ in images], [self._preprocess_image(name, content) for name, content in images]

    def _preprocess_image(self, name: str, content: bytes) -> PreparedPhoto | DataError:
        try:
            with self.large_image_lock if _count_pixels(content) > LARGE_PIXELS else contextlib.nullcontext():
                return preprocess(self.run, open_photo(content, name, MAX_PIXELS))
        except DataError as error:
            return error


def _count_pixels(content: bytes) -> int:
    """Return the number of pixels in an image's header, or 0 if it cannot be read."""
    try:
        with open_image(content) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001  # for damaged files Pillow raises errors of nearly any type
        return 0


def _body_too_large() -> HTTPException:
    return HTTPException(
        413,
        f"the request has more than {BODY_BYTES // MEGABYTE} MB, which is what is allowed; send fewer or smaller "
        "pictures",
    )


def _explain(run: Run, prediction: ImagePrediction, candidates: Gallery | None) -> dict[str, Any]:
    """Return a prediction as JSON values with its explanation and the image after each step."""
    entry = prediction.to_dict()
    if prediction.prepared is None:
        return entry
    for step, step_json in zip(prediction.prepared.steps, entry["steps"], strict=True):
        step_json["picture"] = _png_url(step.image)
    image = torch.tensor(prediction.prepared.image)
    stride = max(1, max(image.shape[1:]) // 14)
    occlusion_map = occlusion(
        run.model, image, run.model.classes.index(prediction.label), max(5, 2 * stride + 1), stride
    )
    explanation: dict[str, Any] = {
        "moved": [[round(value, 4) for value in row] for row in occlusion_map.tolist()],
        "among": 0,
        "neighbours": [],
    }
    if candidates is not None:
        explanation["among"] = len(candidates.labels)
        for k in candidates.nearest(features(run.model, image[None])[0], NUM_NEIGHBOURS):
            explanation["neighbours"].append(
                {"label": candidates.labels[k], "picture": _png_url(candidates.images[k].numpy())}
            )
    return entry | {"explanation": explanation}


def _png_url(pixels: ImageArray) -> str:
    """Return pixels (H, W, 3) or (C, H, W) as a PNG in a data URL."""
    if pixels.shape[0] in (1, 3) and pixels.shape[-1] != 3:
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def create_app(run: Run, load_train: Callable[[], Split | None] = lambda: None) -> FastAPI:
    """Return the web app of a run: `POST /predict`, `GET /model`, `GET /health`, `GET /` (the page), `GET /docs`.

    `load_train` returns the training split, in which `explain` finds the nearest images, or None; it is called once, in
    a thread.

        app = gingham.deploy.server.create_app(gingham.load_packaged())
    """
    app = FastAPIOffline(
        title="Gingham",
        version=__version__,
        description=f"Names what is in pictures: {', '.join(run.model.classes[:20])}.",
        redoc_url=None,
    )
    service = _Service(run, load_train)
    html, policy = served_page(run)
    metadata = model_metadata(run) | {
        "limits": {"request_bytes": BODY_BYTES, "pictures": MAX_IMAGES, "pixels": MAX_PIXELS},
        "gingham": __version__,
    }

    @app.post(
        "/predict", responses=PREDICT_RESPONSES, openapi_extra=PREDICT_BODY, response_class=Response, tags=["answers"]
    )
    async def predict(request: Request, explain: bool = False) -> Response:
        """Name what is in one picture or many: a form with a file for each, or one picture as the body.

        `explain` adds the picture after each step, what moved the decision, and the training pictures most like it.
        """
        try:
            entries = await service.predict(request, explain=explain)
        except asyncio.CancelledError:  # the grace period is over
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
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(html, headers=headers)

    @app.exception_handler(StarletteHTTPException)
    async def handle_http_error(request: Request, error: StarletteHTTPException) -> Response:
        message = error.detail
        if error.status_code == 404:
            message = (
                f"there is nothing at {request.url.path[:80]}; POST /predict, GET /model, /health, /docs and / are"
            )
        elif error.status_code == 405:
            message = f"{request.url.path[:80]} does not take {request.method}; /docs says what it takes"
        return _json({"error": format_message(str(message))}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        message = f"{first['loc'][-1]} got {str(first.get('input'))[:80]!r}: {first['msg']}; /docs says what is allowed"
        return _json({"error": format_message(message)}, 422)

    return app


def _json(value: Any, status: int = 200, headers: Any = None) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, headers, "application/json")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 chooses a free port.

    Raises
        GinghamError: the port is in use, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        code = getattr(error, "errno", None) or 0  # negative for a host name that was not found
        reason = os.strerror(code) if code > 0 else getattr(error, "strerror", None) or str(error)
        raise GinghamError(
            f"cannot listen on {host} port {port} ({reason}); choose another --port, or 127.0.0.1 as --host"
        ) from None


def serve(run: Run, listener: socket.socket, load_train: Callable[[], Split | None] = lambda: None) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and finish the requests in progress before returning.

    `listener` is the socket from `listen`. At the end the signal is raised again for its previous handler.
    """
    # One thread per core, each with its own batch, serves more requests than all cores on each batch (records/LOG.md).
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a broken form is the client's error
    config = uvicorn.Config(
        create_app(run, load_train),
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=MAX_ACCEPTED,
        http=Connection,
        ws="none",
    )
    _raise_file_limit()
    threading.Thread(target=_trim_memory, name="memory", daemon=True).start()
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """A uvicorn server that queues more connections than it accepts at a time; asyncio uses one number for both."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)


def _trim_memory() -> None:
    """Return free memory to the system from time to time: under load glibc keeps more and more of it between used blocks."""
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    while hasattr(libc, "malloc_trim"):
        time.sleep(TRIM_SECONDS)
        libc.malloc_trim(0)


def _raise_file_limit() -> None:
    """Raise the soft limit of file descriptors to what the connections need, as far as the hard limit allows."""
    import resource  # not available on Windows, where gingham does not run yet

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES and (hard == resource.RLIM_INFINITY or hard > soft):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard)
        )
