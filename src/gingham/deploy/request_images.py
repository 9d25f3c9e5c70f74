"""Read the images of an HTTP request."""

from fastapi import HTTPException
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

PICTURES, PIXELS = 256, 50_000_000  # of one request; of one picture, which takes up to 0.6 GB while it is read
PARTS = 1000  # of a form, which may have other fields beside its pictures


def read_request_images(body: bytes, kind: str) -> list[tuple[str, bytes]]:
    """Return the pictures in a request's body, by name: the files of a form, or the body itself.

    `kind` is the Content-Type: multipart/form-data, image/... or application/octet-stream.

    Raises
        HTTPException: 415 for another type, 422 for a form that is broken or holds no file, 413 for more than 256.
    """
    media, options = parse_options_header(kind)
    if media == b"multipart/form-data":
        found = _files(body, options.get(b"boundary", b""))
    elif media.startswith(b"image/") or media == b"application/octet-stream":
        found = [("picture 1", body)] if body else []
    else:
        raise HTTPException(
            415,
            f"got the content type {kind[:80] or '(none)'}; allowed: multipart/form-data with a file a picture, or a picture as the body "
            "with its own type, such as image/jpeg",
        )
    if not found:
        raise HTTPException(
            422, "the request holds no picture; send a form with a file for each, such as curl -F images=@coat.jpg"
        )
    if len(found) > PICTURES:
        raise HTTPException(
            413, f"the request holds {len(found):,} pictures; allowed: {PICTURES}; send them in several requests"
        )
    return found


def _files(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """The files of a form, in memory: nothing that someone sends is ever written to a disk."""
    parts: list[tuple[dict[bytes, bytes], list[bytes]]] = []
    header, ends = [b"", b""], []

    def begun() -> None:
        if len(parts) == PARTS:  # a part of no bytes takes ten in the body and hundreds in memory
            raise HTTPException(
                413, f"the form has more than {PARTS:,} parts; allowed: {PICTURES} pictures; send them in several requests"
            )
        parts.append(({}, []))

    def ended() -> None:
        if header[0].lower() == b"content-disposition":  # a part may have millions of others
            parts[-1][0][b"content-disposition"] = header[1]
        header[:] = [b"", b""]

    def field(data: bytes, start: int, end: int) -> None:
        header[0] += data[start:end]

    def value(data: bytes, start: int, end: int) -> None:
        header[1] += data[start:end]

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begun,
                "on_header_field": field,
                "on_header_value": value,
                "on_header_end": ended,
                "on_part_data": lambda data, start, end: parts[-1][1].append(data[start:end]),
                "on_end": lambda: ends.append(True),
            },
        )
        parser.write(body)
        if not ends:
            raise FormParserError("its end is missing")
    except FormParserError as error:
        raise HTTPException(422, f"the form is broken ({error}); send it again as multipart/form-data") from None
    found: list[tuple[str, bytes]] = []
    for headers, content in parts:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        if b"filename" in options:
            name = options[b"filename"].decode("utf-8", "replace")[:200] or f"picture {len(found) + 1}"
            found.append((name, b"".join(content)))
    return found
