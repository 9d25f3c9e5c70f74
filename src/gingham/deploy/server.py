"""Serve a run over HTTP: an API that classifies images, and a page to try it."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from PIL import Image
from starlette.exceptions import HTTPException as StarletteHTTPException

from gingham._version import __version__
from gingham.data.decode import LARGE_PIXELS, read_size
from gingham.data.splits import Split
from gingham.deploy.api_schema import PREDICT_BODY, PREDICT_RESPONSES, Health
from gingham.deploy.page import model_metadata, served_page
from gingham.deploy.request_images import BODY_BYTES, MAX_IMAGES, ImageReader
from gingham.errors import DataError, GinghamError, format_message, one_line
from gingham.figures import png_url
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, NUM_NEIGHBOURS, Gallery, features, gallery
from gingham.inference.predict import ImagePrediction, preprocess, score_prepared, to_predictions
from gingham.inference.preprocess import PreparedPhoto, open_photo
from gingham.runs.run import Run

MAX_PIXELS = 50_000_000  # per image, which takes up to 0.6 GB while it is decoded
MAX_THREADS = 8  # more threads would wait for the GIL
MAX_BATCH = 128  # images, unless a single request has more
MAX_CONNECTIONS = 512  # requests over more connections get a 503
KEEP_ALIVE_SECONDS = 75  # for an idle connection: longer than in proxies, so that the proxy closes it
GRACE_SECONDS = 30  # for requests in progress at a shutdown


class RequestBatcher:
    """Predicts several requests in one batch: a free thread takes all waiting requests, up to MAX_BATCH images."""

    def __init__(self, run: Run, threads: int) -> None:
        self.run = run
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self.queue: deque[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = deque()

    async def predict(self, prepared: list[PreparedPhoto]) -> torch.Tensor:
        """Return the probabilities and the novelty score (N, K + 1) of prepared images."""
        future: Future[torch.Tensor] = Future()
        self.queue.append((prepared, future))
        self.pool.submit(self._run_batch)
        return await asyncio.wrap_future(future)

    def _run_batch(self) -> None:
        batch: list[tuple[list[PreparedPhoto], Future[torch.Tensor]]] = []
        with contextlib.suppress(IndexError):  # the queue is empty
            while sum(len(photos) for photos, _ in batch) < MAX_BATCH:
                photos, future = self.queue.popleft()
                if future.set_running_or_notify_cancel():
                    batch.append((photos, future))
        try:  # the batch may be empty: another thread took the requests
            scores = score_prepared(self.run.model, [photo for photos, _ in batch for photo in photos])
        except Exception as error:  # noqa: BLE001  # passed on to the waiting requests
            for _, future in batch:
                future.set_exception(error)
            return
        parts = torch.split(scores, [len(photos) for photos, _ in batch])
        for (_, future), part in zip(batch, parts, strict=True):
            future.set_result(part)


class _Service:
    """The state that requests share: the run, its threads, the images in memory, and the gallery of training images."""

    def __init__(self, run: Run, load_train: Callable[[], Split | None]) -> None:
        self.run, self.reader = run, ImageReader()
        run.model.eval()  # once, because threads that switch the mode would disturb each other
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(MAX_THREADS, cores)
        self.large_image_lock = threading.Lock()
        self.batcher = RequestBatcher(run, threads if run.model.mean.device.type == "cpu" else 1)
        self.preprocess_pool = ThreadPoolExecutor(threads, thread_name_prefix="preparation")
        # A separate pool, because an explanation takes a hundred times as long as a prediction.
        self.explain_pool = ThreadPoolExecutor(threads, thread_name_prefix="explanation")
        self.gallery: Gallery | None = None  # None until its thread has built it, and if there are no training images
        # Built in a separate thread, so that no request waits for it; a daemon, so that the process can end before.
        threading.Thread(target=self._build_gallery, args=(load_train,), name="gallery", daemon=True).start()

    def _build_gallery(self, load_train: Callable[[], Split | None]) -> None:
        try:
            self.gallery = gallery(self.run.model, load_train(), GALLERY_SIZE)
        except Exception as error:  # noqa: BLE001  # any error; requests are then answered without the nearest images
            with contextlib.suppress(OSError):
                print(f"gingham: explanations have no nearest training images ({one_line(error)})", file=sys.stderr)

    async def predict(self, request: Request, *, explain: bool) -> list[dict[str, Any]]:
        """Return the predictions for a request's images as JSON values."""
        loop = asyncio.get_running_loop()
        async with self.reader.read(request) as images:
            names = [name for name, _ in images]
            results = await loop.run_in_executor(self.preprocess_pool, self._preprocess, images)
            prepared = [result for result in results if isinstance(result, PreparedPhoto)]
            predictions = to_predictions(self.run.model, names, results, await self.batcher.predict(prepared))
            if not explain:
                return [prediction.to_dict() for prediction in predictions]
            return [
                await loop.run_in_executor(self.explain_pool, _explain, self.run, prediction, self.gallery)
                for prediction in predictions
            ]

    def _preprocess(self, images: list[tuple[str, bytes]]) -> list[PreparedPhoto | DataError]:
        return [self._preprocess_image(name, content) for name, content in images]

    def _preprocess_image(self, name: str, content: bytes) -> PreparedPhoto | DataError:
        width, height = read_size(content) or (0, 0)
        try:
            with self.large_image_lock if width * height > LARGE_PIXELS else contextlib.nullcontext():
                return preprocess(self.run, open_photo(content, name, MAX_PIXELS, self.run.grey_bits))
        except DataError as error:
            return error


def _explain(run: Run, prediction: ImagePrediction, candidates: Gallery | None) -> dict[str, Any]:
    """Return a prediction as JSON values with its explanation and the image after each step."""
    entry = prediction.to_dict()
    if prediction.prepared is None:
        return entry
    for step, step_json in zip(prediction.prepared.steps, entry["steps"], strict=True):
        step_json["picture"] = png_url(Image.fromarray(step.image))
    image = torch.tensor(prediction.prepared.image)
    stride = max(1, max(image.shape[1:]) // 14)
    label = run.model.classes.index(prediction.label)
    drops = occlusion(run.model, image, label, max(5, 2 * stride + 1), stride)
    neighbours = []
    if candidates is not None:
        nearest = candidates.nearest(features(run.model, image[None])[0], NUM_NEIGHBOURS)
        pixels = candidates.images.permute(0, 2, 3, 1).squeeze(3).numpy()
        neighbours = [{"label": candidates.labels[k], "picture": png_url(Image.fromarray(pixels[k]))} for k in nearest]
    moved = [[round(value, 4) for value in row] for row in drops.tolist()]
    among = len(candidates.labels) if candidates else 0
    return entry | {"explanation": {"moved": moved, "among": among, "neighbours": neighbours}}


def create_app(run: Run, load_train: Callable[[], Split | None] = lambda: None) -> FastAPI:
    """Return the web app of a run: `POST /predict`, `GET /model`, `GET /health`, `GET /` (the page), `GET /docs`.

    `load_train` returns the training split, in which `explain` finds the nearest images, or None; it is called once, in
    a thread. Until that thread is done, and if it fails, explanations have no nearest images.

        app = gingham.deploy.server.create_app(gingham.load_packaged())
    """
    description = f"Classifies images into: {', '.join(run.model.classes[:20])}."
    app = FastAPIOffline(title="Gingham", version=__version__, description=description, redoc_url=None)
    service = _Service(run, load_train)
    html, policy = served_page(run)
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    limits = {"request_bytes": BODY_BYTES, "pictures": MAX_IMAGES, "pixels": MAX_PIXELS}
    metadata = model_metadata(run) | {"limits": limits, "gingham": __version__}

    @app.post("/predict", responses=PREDICT_RESPONSES, openapi_extra=PREDICT_BODY, tags=["predictions"])
    async def predict(request: Request, explain: bool = False) -> JSONResponse:
        """Classify images: send a form with one file per image, or a single image as the body.

        `explain` adds the image after each step, an occlusion map, and the most similar training images.
        """
        try:
            entries = await service.predict(request, explain=explain)
        except asyncio.CancelledError:  # the grace period is over
            raise HTTPException(503, "the server is shutting down; try again later") from None
        errors = [entry["error"] for entry in entries if "error" in entry]
        if errors:
            more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
            return JSONResponse({"error": f"{errors[0]}{more}", "predictions": entries}, 422)
        return JSONResponse({"predictions": entries})

    @app.get("/model", tags=["about"])
    async def model() -> dict[str, Any]:
        """Describe the model: classes, image shape, thresholds, training, accuracy, request limits."""
        return metadata

    @app.get("/health", response_model=Health, tags=["about"])
    async def health() -> dict[str, str]:
        """Report that the server is running."""
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @app.exception_handler(StarletteHTTPException)
    async def handle_http_error(request: Request, error: StarletteHTTPException) -> JSONResponse:
        message = error.detail
        path = request.scope["path"][:80]  # unlike request.url, it works for a query of any bytes
        if error.status_code == 404:
            message = f"there is nothing at {path}; allowed: POST /predict, GET /model, /health, /docs and /"
        elif error.status_code == 405:
            message = f"{path} does not accept {request.method}; see /docs for what it accepts"
        return JSONResponse({"error": format_message(message)}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        message = f"{first['loc'][-1]} got {str(first.get('input'))[:80]!r}: {first['msg']}; see /docs for what to send"
        return JSONResponse({"error": format_message(message)}, 422)

    return app


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 chooses a free port.

    Raises
        GinghamError: the port is in use, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        remedy = "choose another --host, such as 127.0.0.1"
        if error.errno == errno.EADDRINUSE or isinstance(error, PermissionError):
            remedy = "choose another port, or --port 0 for any free port"
        raise GinghamError(f"cannot listen on {host} port {port} ({reason}); {remedy}") from None
    # Connections inherit both options. Without the first, the body of a response waits until the client acknowledges
    # its head: 44 ms per request on a connection that is kept alive. Without the second, the system buffers megabytes
    # of responses to a client that never reads, and each of them has to be computed.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    return listener


def serve(run: Run, listener: socket.socket, load_train: Callable[[], Split | None] = lambda: None) -> None:
    """Answer requests until SIGTERM or Ctrl-C, and finish the requests in progress before returning.

    `listener` is the socket from `listen`. At the end, the signal is raised again for the handler that was set before.
    """
    # One thread per core, each with its own batch, serves more requests than all cores on each batch (records/LOG.md).
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a malformed form is the client's error
    config = uvicorn.Config(
        create_app(run, load_train),
        http="h11",
        ws="none",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])
