"""Encode images and requests for the tests of the HTTP server, and send requests over a real connection."""

import http.client
import io
import json
import socket
import time

import numpy as np
from PIL import Image

BOUNDARY = "a-boundary"
FORM_HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
PNG_HEADERS = {"content-type": "image/png"}
PREDICT_HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"
HEALTH_REQUEST = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"


def encode_image(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def explain(client, content):
    """Return the entry of one image with its explanation."""
    response = client.post("/predict?explain=true", content=content, headers=PNG_HEADERS)
    assert response.status_code == 200
    (entry,) = response.json()["predictions"]
    return entry


def explain_with_neighbours(client, content):
    """Explain an image again and again until the server has processed its training images."""
    deadline = time.monotonic() + 120
    while not (entry := explain(client, content))["explanation"]["among"]:
        assert time.monotonic() < deadline
    return entry


def random_png(seed=0):
    return encode_image(Image.fromarray(np.random.RandomState(seed).randint(256, size=(28, 28)).astype(np.uint8)))


def encode_form(files):
    """Encode (name, content) pairs as browsers and curl do."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def predict_request(content):
    """Return the bytes of a whole request for /predict."""
    return PREDICT_HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content


def send_raw(port, *parts, pause=0.0):
    """Send the parts of a raw request one after the other, and return the status and the JSON value of the response."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())
