"""Read the images of an HTTP request."""

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

MAX_IMAGES, MAX_PIXELS = 256, 50_000_000  # per request; per image, which takes up to 0.6 GB while it is decoded
MAX_PARTS = 1000  # per form, which may have other fields beside its images


def read_request_images(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Return the images in a request's body as (name, content): the files of a form, or the body itself.

    `content_type` is multipart/form-data, image/... or application/octet-stream.

    Raises
        HTTPException: 415 for another type, 422 for a form that is broken or has no files, 413 for more than 256.
    """
    media, options = parse_options_header(content_type)
    if media == b"multipart/form-data":
        images = _form_files(body, options.get(b"boundary", b""))
    elif media.startswith(b"image/") or media == b"application/octet-stream":
        images = [("picture 1", body)] if body else []
    else:
        raise HTTPException(
            415,
            f"got the content type {content_type[:80] or '(none)'}; allowed: multipart/form-data with a file a "
            "picture, or a picture as the body with its own type, such as image/jpeg",
        )
    if not images:
        raise HTTPException(
            422, "the request holds no picture; send a form with a file for each, such as curl -F images=@coat.jpg"
        )
    if len(images) > MAX_IMAGES:
        raise HTTPException(
            413, f"the request holds {len(images):,} pictures; allowed: {MAX_IMAGES}; send them in several requests"
        )
    return images


def _form_files(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """Return the files of a form as (name, content), parsed in memory: no request is ever written to disk."""
    parts: list[tuple[dict[bytes, bytes], list[bytes]]] = []
    header, ends = [b"", b""], []

    def on_part_begin() -> None:
        if len(parts) == MAX_PARTS:  # an empty part takes ten bytes in the body and hundreds in memory
            raise HTTPException(
                413,
                f"the form has more than {MAX_PARTS:,} parts; allowed: {MAX_IMAGES} pictures; send them in several "
                "requests",
            )
        parts.append(({}, []))

    def on_header_end() -> None:
        if header[0].lower() == b"content-disposition":  # ignore other headers, of which a part may have millions
            parts[-1][0][b"content-disposition"] = header[1]
        header[:] = [b"", b""]

    def on_header_field(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def on_header_value(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": on_part_begin,
                "on_header_field": on_header_field,
                "on_header_value": on_header_value,
                "on_header_end": on_header_end,
                "on_part_data": lambda data, start, end: parts[-1][1].append(data[start:end]),
                "on_end": lambda: ends.append(True),
            },
        )
        parser.write(body)
        if not ends:
            raise FormParserError("its end is missing")
    except FormParserError as error:
        raise HTTPException(422, f"the form is broken ({error}); send it again as multipart/form-data") from None
    files: list[tuple[str, bytes]] = []
    for headers, content in parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        if b"filename" in options:
            name = options[b"filename"].decode("utf-8", "replace")[:200] or f"picture {len(files) + 1}"
            files.append((name, b"".join(content)))
    return files
