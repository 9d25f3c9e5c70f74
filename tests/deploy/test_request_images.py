import re

import pytest

from gingham.deploy import server as serving
from http_requests import BOUNDARY, FORM_HEADERS, encode_form, random_png

FORM_TYPE = FORM_HEADERS["content-type"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b"", "image/png", 422, "the request holds no picture; send a form with a file for each"),
        (b"x", "", 415, r"got the content type \(none\); allowed: multipart/form-data"),
        (b"{}", "application/json", 415, "got the content type application/json; allowed"),
        (b"x", "multipart/form-data", 422, "the form is broken"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500, 422, "the form is broken"),
        (b"nonsense", FORM_TYPE, 422, "the form is broken"),
        (encode_form([]), FORM_TYPE, 422, "the request holds no picture"),
        (encode_form([("a.png", random_png())])[:-40], FORM_TYPE, 422, "the form is broken"),
        (
            encode_form([("a.png", random_png())]).replace(b'; filename="a.png"', b""),
            FORM_TYPE,
            422,
            "the request holds no picture",
        ),
        (encode_form([("a.png", b"")] * 257), FORM_TYPE, 413, "the request holds 257 pictures; allowed: 256"),
        (
            f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 1001 + f"--{BOUNDARY}--\r\n".encode(),
            FORM_TYPE,
            413,
            "the form has more than 1,000 parts; allowed: 256 pictures; send them in several requests",
        ),
        (
            bytes(serving.BODY_BYTES + 1),
            "image/png",
            413,
            "the request has more than 32 MB, which is what is allowed; send fewer or smaller pictures",
        ),
    ],
)
def test_an_invalid_request_is_refused_with_a_reason(client, content, content_type, status, message):
    response = client.post("/predict", content=content, headers={"content-type": content_type})
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert re.match(message, response.json()["error"]), response.json()
