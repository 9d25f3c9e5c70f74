import re
import tempfile

import pytest
from PIL import Image

from gingham.deploy.request_images import BODY_BYTES
from http_requests import BOUNDARY, FORM_HEADERS, encode_form, encode_image, random_png

FORM_TYPE = FORM_HEADERS["content-type"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b"", "image/png", 422, "the request contains no image; send a form with one file per image"),
        (b"x", "", 415, r"got the content type \(none\); allowed: multipart/form-data"),
        (b"{}", "application/json", 415, "got the content type application/json; allowed"),
        (b"x", "multipart/form-data", 422, "the form is malformed"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500, 422, "the form is malformed"),
        (b"nonsense", FORM_TYPE, 422, "the form is malformed"),
        (encode_form([]), FORM_TYPE, 422, "the request contains no image"),
        (
            encode_form([("a.png", random_png())]).replace(b'; filename="a.png"', b""),
            FORM_TYPE,
            422,
            "the request contains no image",
        ),
        (encode_form([("a.png", b"")] * 257), FORM_TYPE, 413, "the request contains 257 images; allowed: 256"),
        (encode_form([("a.png", b"")] * 1001), FORM_TYPE, 422, r"the form is malformed \(Too many files"),
        (
            encode_form([("a.png", b"")] * 1001).replace(b'; filename="a.png"', b""),
            FORM_TYPE,
            422,
            r"the form is malformed \(Too many fields",
        ),
        (
            f"--{BOUNDARY}\r\n\r\n\r\n--{BOUNDARY}--\r\n".encode(),
            FORM_TYPE,
            422,
            r"the form is malformed \(The Content-D",
        ),
        (
            encode_form([("a.png", random_png()), ("b.png", random_png())])[:-40],
            FORM_TYPE,
            422,
            r"the form is malformed \(Its end is missing\)",
        ),
        (
            bytes(BODY_BYTES + 1),
            "image/png",
            413,
            "the request has more than 32 MB; send fewer or smaller images",
        ),
    ],
)
def test_an_invalid_request_is_refused_with_a_reason(client, content, content_type, status, message):
    response = client.post("/predict", content=content, headers={"content-type": content_type})
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert re.match(message, response.json()["error"]), response.json()


def test_files_of_a_form_are_never_written_to_disk(client, monkeypatch):
    def roll_over(_):
        raise AssertionError("a file was written to disk")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", roll_over)
    large = encode_image(Image.effect_noise((1800, 1800), 90))
    assert len(large) > 2 << 20
    response = client.post("/predict", content=encode_form([("large.png", large)] * 2), headers=FORM_HEADERS)
    assert [entry["image"] for entry in response.json()["predictions"]] == ["large.png"] * 2


@pytest.mark.parametrize(
    ("charset", "name"),
    [("utf-8", b"\xff"), ("unicode_escape", b"\\ud800"), ("idna", b"xn--\xff"), ("none", b"\xff"), ("zlib", b"a")],
)
def test_file_names_in_any_charset_get_a_response(client, charset, name):
    content = encode_form([("a.png", random_png())]).replace(b"a.png", name)
    response = client.post("/predict", content=content, headers={"content-type": f"{FORM_TYPE}; charset={charset}"})
    assert response.status_code == 200 or response.json()["error"].startswith("the form is malformed")


def test_files_without_a_name_are_numbered(client):
    content = encode_form([("", random_png()), ("b.png", random_png(1)), ("", random_png(2))])
    response = client.post("/predict", content=content, headers=FORM_HEADERS)
    assert [entry["image"] for entry in response.json()["predictions"]] == ["image 1", "b.png", "image 3"]
