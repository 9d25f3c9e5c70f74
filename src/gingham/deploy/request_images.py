"""Read the images of an HTTP request, with limits on size and time."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

BODY_BYTES, HELD_BYTES = 32 << 20, 256 << 20  # of one request; of all requests in progress
STALL_SECONDS, BODY_SECONDS = 20, 120  # between two pieces of a body; for the whole body
MAX_IMAGES = 256  # per request
ALLOWED = "multipart/form-data with one file per image, or an image as the body with its own type, such as image/jpeg"


class _FormParser(MultiPartParser):
    """Starlette's form parser, limited to 1,000 files and 1,000 fields; `is_complete` is False for a truncated form."""

    spool_max_size = BODY_BYTES  # files stay in memory: nothing that is sent is written to a disk
    is_complete = False

    def on_end(self) -> None:
        self.is_complete = True

    def close(self) -> None:
        for file in self._files_to_close_on_error:  # all files, also those of a form that stalls or is too large
            file.close()


class ImageReader:
    """Reads the images of requests, and limits how many bytes all requests in progress hold in memory."""

    held_bytes = 0

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[list[tuple[str, bytes]]]:
        """Yield the images in a request's body as (name, content): the files of a form, or the body itself.

        The body counts towards the limit until the block ends. Its content type is multipart/form-data, image/... or
        application/octet-stream.

        Raises
            HTTPException: 408 for a body that is too slow, 413 for one that is too large or has more than 256 images,
            415 for another content type, 422 for a form that is malformed or has no files, 503 if all requests in
            progress have too many bytes.
        """
        received = 0

        async def pieces() -> AsyncGenerator[bytes, None]:
            nonlocal received
            stream = request.stream()
            while piece := await asyncio.wait_for(anext(stream, b""), STALL_SECONDS):
                received += len(piece)
                self.held_bytes += len(piece)
                if received > BODY_BYTES:
                    raise _body_too_large()
                if self.held_bytes > HELD_BYTES:
                    message = "too many large requests at once; try again in a second"
                    raise HTTPException(503, message, {"Retry-After": "1"})
                yield piece

        try:
            yield await _read_images(request, pieces())
        finally:
            self.held_bytes -= received


async def _read_images(request: Request, pieces: AsyncGenerator[bytes, None]) -> list[tuple[str, bytes]]:
    content_type = request.headers.get("content-type", "")
    media = content_type.partition(";")[0].strip().lower()
    with contextlib.suppress(ValueError):  # not a number; HTTP servers reject such a request
        if int(request.headers.get("content-length", 0)) > BODY_BYTES:
            raise _body_too_large()
    is_form = media == "multipart/form-data"
    if not (is_form or media == "application/octet-stream" or media.startswith("image/")):
        raise HTTPException(415, f"got the content type {content_type[:80] or '(none)'}; allowed: {ALLOWED}")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            if is_form:
                images = await _read_form(request, pieces)
            else:
                body = b"".join([piece async for piece in pieces])
                images = [("image 1", body)] if body else []
    except ClientDisconnect:  # nobody receives this error
        raise HTTPException(400, "the connection was closed before all of the body had arrived") from None
    except TimeoutError:
        message = f"the body is too slow; allowed: {STALL_SECONDS} s per piece, {BODY_SECONDS} s in all; send it again"
        raise HTTPException(408, message) from None
    if not images:
        message = "the request contains no image; send a form with one file per image, such as curl -F images=@coat.jpg"
        raise HTTPException(422, message)
    if len(images) > MAX_IMAGES:
        message = f"the request contains {len(images):,} images; allowed: {MAX_IMAGES}; send them in several requests"
        raise HTTPException(413, message)
    return images


async def _read_form(request: Request, pieces: AsyncGenerator[bytes, None]) -> list[tuple[str, bytes]]:
    with contextlib.closing(_FormParser(request.headers, pieces)) as parser:
        try:
            form = await parser.parse()
            if not parser.is_complete:
                raise MultiPartException("Its end is missing.")
        except (MultiPartException, ValueError) as error:  # a ValueError for a file name in the form's charset
            reason = str(error).rstrip(".")
            raise HTTPException(422, f"the form is malformed ({reason}); send it as multipart/form-data") from None
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        names = [(file.filename or f"image {number}")[:200] for number, file in enumerate(files, 1)]
        valid_names = [name.encode(errors="replace").decode() for name in names]  # JSON cannot have lone surrogates
        return [(name, await file.read()) for name, file in zip(valid_names, files, strict=True)]


def _body_too_large() -> HTTPException:
    return HTTPException(413, f"the request has more than {BODY_BYTES >> 20} MB; send fewer or smaller images")
