"""The server gives the predictions of `predict` or a one-line error, and finishes requests before it ends."""

import asyncio
import base64
import concurrent.futures
import contextlib
import gc
import hashlib
import http.client
import io
import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import gingham
from dataset_files import encode_heic
from gingham.data.decode import decode_images
from gingham.deploy import request_images
from gingham.deploy import server as serving
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import NUM_NEIGHBOURS, features, gallery
from gingham.inference.predict import preprocess
from gingham.inference.preprocess import open_photo
from helpers import draw_garment_photo
from http_requests import (
    FORM_HEADERS,
    HEALTH_REQUEST,
    PNG_HEADERS,
    PREDICT_HEAD,
    encode_form,
    encode_image,
    explain,
    explain_with_neighbours,
    predict_request,
    random_png,
    send_raw,
)


def rotated_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def assert_equal_prediction(entry, prediction):
    """Compare an entry of the server's response with a prediction of `predict`."""
    expected = prediction.to_dict()
    for name in ("label", "threshold", "unsure", "novel"):
        assert entry[name] == expected[name], name
    assert entry["novelty"] == pytest.approx(expected["novelty"], abs=0.02)
    assert [(step["step"], step["note"]) for step in entry["steps"]] == [
        (step["step"], step["note"]) for step in expected["steps"]
    ]
    for name, share in expected["probabilities"].items():
        assert entry["probabilities"][name] == pytest.approx(share, abs=1e-4)


def test_responses_equal_predict_for_one_image_and_for_several(client, packaged, tmp_path):
    photo, _ = draw_garment_photo((40, 60, 120), (255, 255, 255), texture=4)
    files = {
        "coat.png": encode_image(photo),
        "coat.jpg": encode_image(photo, "JPEG"),
        "turned.jpg": encode_image(photo, "JPEG", exif=rotated_exif()),
        "turned.webp": encode_image(photo.rotate(90), "WEBP"),
        "coat.avif": encode_image(photo, "AVIF"),
        "coat.HEIC": encode_heic(photo),
        "heic.jpg": encode_heic(photo, exif=rotated_exif().tobytes()),
        "small.png": random_png(),
        "one-colour.bmp": encode_image(Image.new("RGB", (50, 60), "red"), "BMP"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = gingham.predict(packaged, [tmp_path / name for name in files])
    response = client.post("/predict", files=[("images", pair) for pair in files.items()])
    assert response.status_code == 200
    assert [entry["image"] for entry in response.json()["predictions"]] == list(files)
    for entry, prediction in zip(response.json()["predictions"], expected, strict=True):
        assert_equal_prediction(entry, prediction)
    response = client.post("/predict", content=files["coat.jpg"], headers={"content-type": "image/jpeg"})
    (entry,) = response.json()["predictions"]
    assert_equal_prediction(entry, expected[1])
    response = client.post("/predict", content=files["coat.HEIC"], headers={"content-type": "image/heic"})
    assert response.json()["predictions"][0]["label"] == expected[0].label


def test_pytorch_onnx_and_http_give_the_same_predictions(client, packaged, packaged_onnx, fashion_mnist):
    onnxruntime = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    # With a black border, so that they are used unchanged.
    noise = np.pad(random.integers(0, 256, (20, 1, 20, 20), dtype=np.uint8), ((0, 0), (0, 0), (4, 4), (4, 4)))
    images = np.concatenate([fashion_mnist.train.images[:200].numpy(), noise])
    session = onnxruntime.InferenceSession(str(packaged_onnx))
    onnx_probabilities, onnx_novelty = session.run(["probabilities", "novelty"], {"images": images})
    response = client.post(
        "/predict",
        content=encode_form([(f"{k}.png", encode_image(Image.fromarray(image[0]))) for k, image in enumerate(images)]),
        headers=FORM_HEADERS,
    )
    entries = response.json()["predictions"]
    http_probabilities = np.array([list(entry["probabilities"].values()) for entry in entries])
    predictions = packaged.model.predict(images)
    expected, novelty = predictions.probabilities.numpy(), predictions.novelty.numpy()
    for probabilities in (onnx_probabilities, http_probabilities):
        assert np.abs(probabilities - expected).max() < 1e-4
        assert (probabilities.argmax(1) == expected.argmax(1)).all()
    for scores in (onnx_novelty, np.array([entry["novelty"] for entry in entries])):
        assert np.abs(scores - novelty).max() < 0.02
    threshold = session.get_modelmeta().custom_metadata_map["novelty_threshold"]
    for flags in (onnx_novelty > json.loads(threshold), np.array([entry["novel"] for entry in entries])):
        assert (flags == predictions.novel.numpy()).all()
    assert predictions.novel[200:].float().mean() > 0.5
    assert predictions.novel[:200].float().mean() < 0.05


TRUNCATED = encode_image(draw_garment_photo((40, 60, 120), (255, 255, 255))[0], "JPEG")[:3000]
LARGE, BOMB = encode_image(Image.new("1", (9000, 6000))), encode_image(Image.new("1", (40_000, 40_000)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "letter.txt",
            b"Dear Sir",
            r"cannot read letter.txt as an image \(its format is unknown\); it is damaged, or none of PNG",
        ),
        ("empty.png", b"", r"cannot read empty.png as an image \(it is empty\)"),
        (
            "torn.heic",
            encode_heic(Image.new("RGB", (64, 64)))[:300],
            r"cannot read torn.heic as an image \(pi-heif cannot",
        ),
        ("torn.jpg", TRUNCATED, r"cannot read torn.jpg as an image \(.*truncated"),
        ("large.png", LARGE, r"large.png has 9000x6000 pixels; allowed: 50,000,000 in all"),
        ("bomb.png", BOMB, r"bomb.png has far too many pixels; allowed: 50,000,000 in all"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot read drawing.svg as an image"),
        ("../../etc/passwd", b"root", r"cannot read ../../etc/passwd as an image"),
        ("page.ps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot read page.ps as an image"),
    ],
)
def test_an_unreadable_file_is_an_error_and_the_others_are_predicted(client, name, content, message):
    form = encode_form([("good.png", random_png()), (name, content), ("also.png", random_png(1))])
    response = client.post("/predict", content=form, headers=FORM_HEADERS)
    assert response.status_code == 422
    assert re.match(message, response.json()["error"])
    first, unreadable, last = response.json()["predictions"]
    assert first["label"]
    assert last["label"]
    assert set(unreadable) == {"image", "error"}
    response = client.post("/predict", content=content, headers=PNG_HEADERS)
    assert response.status_code == 422
    assert "\n" not in response.json()["error"]


def test_errors_quote_the_request_on_one_line(client):
    response = client.post("/predict", content=b"x", headers={"content-type": b"a\x01b"})
    assert response.json()["error"].startswith("got the content type a\\x01b; allowed")
    assert client.get("/a%1B[2J").json()["error"].startswith("there is nothing at /a\\x1b[2J; allowed: POST")


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "1e9"])
def test_any_content_length_gets_a_response(packaged, length):
    """Other ASGI servers may pass on lengths that uvicorn refuses."""
    sent, received = [], [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return received.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict",
        "raw_path": b"/predict",
        "query_string": b"",
        "headers": [(b"content-length", length.encode("latin-1"))],
    }
    asyncio.run(serving.create_app(packaged)(scope, receive, send))
    assert sent[0]["status"] == 415


def test_unknown_paths_methods_and_values_are_errors(client):
    assert client.get("/nothing").json() == {
        "error": "there is nothing at /nothing; allowed: POST /predict, GET /model, /health, /docs and /"
    }
    assert client.get("/predict").json() == {"error": "/predict does not accept GET; see /docs for what it accepts"}
    response = client.post("/predict?explain=perhaps", content=random_png(), headers=PNG_HEADERS)
    assert response.status_code == 422
    assert response.json()["error"].startswith("explain got 'perhaps': ")


def test_health_and_model_describe_the_server(client, packaged):
    assert client.get("/health").json() == {"status": "ok"}
    metadata = client.get("/model").json()
    assert metadata["classes"] == list(packaged.model.classes)
    for prefix, thresholds in (
        ("", packaged.model.thresholds()),
        ("photo_", packaged.model.thresholds(for_photos=True)),
    ):
        assert (metadata[f"{prefix}threshold"], metadata[f"{prefix}novelty_threshold"]) == thresholds
    assert (metadata["input_shape"], metadata["recipe"], metadata["parameters"]) == ([1, 28, 28], "photo", 450120)
    assert metadata["limits"] == {"request_bytes": 32 << 20, "pictures": 256, "pixels": 50_000_000}


def test_the_documentation_needs_no_other_host(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/model", "/health"}
    content = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["required"] == ["images"]
    page = client.get("/docs").text
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)
    for path in re.findall(r"""(?:src|href)=["'](/[^"']+)""", page):
        assert client.get(path).status_code == 200


def test_the_page_may_run_only_its_own_script_and_contact_only_its_host(client):
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    script = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)[-1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert not re.findall(r"""(?:src|href|action)=["']?(?:https?:)?//""", response.text)
    assert "@import" not in response.text


def test_an_explanation_equals_that_of_the_library(packaged, fashion_mnist, monkeypatch):
    monkeypatch.setattr(serving, "GALLERY_SIZE", 300)
    photo, _ = draw_garment_photo((40, 60, 120), (255, 255, 255), texture=4)
    with TestClient(serving.create_app(packaged, lambda: fashion_mnist.train)) as client:
        entry = explain_with_neighbours(client, encode_image(photo))
    prepared = preprocess(packaged, photo)
    for step_json, step in zip(entry["steps"], prepared.steps, strict=True):
        png = base64.b64decode(step_json["picture"].partition(",")[2])
        assert (np.asarray(Image.open(io.BytesIO(png))) == step.image).all()
    image = torch.tensor(prepared.image)
    occlusion_map = occlusion(packaged.model, image, packaged.model.classes.index(entry["label"]), 5, 2)
    assert np.allclose(entry["explanation"]["moved"], occlusion_map.numpy(), atol=1e-4)
    candidates = gallery(packaged.model, fashion_mnist.train, 300)
    nearest = candidates.nearest(features(packaged.model, image[None])[0], NUM_NEIGHBOURS)
    labels = [neighbour["label"] for neighbour in entry["explanation"]["neighbours"]]
    assert labels == [candidates.labels[k] for k in nearest]
    assert entry["explanation"]["among"] == 300


def test_without_training_images_there_are_no_neighbours(client):
    assert explain(client, random_png())["explanation"]["neighbours"] == []


def test_requests_do_not_wait_for_the_training_images(packaged, fashion_mnist, monkeypatch):
    """Neither predictions nor explanations, even with a single thread for each."""
    monkeypatch.setattr(serving, "MAX_THREADS", 1)
    monkeypatch.setattr(serving, "GALLERY_SIZE", 100)
    resume = threading.Event()

    def load_slowly():
        assert resume.wait(60)
        return fashion_mnist.train

    with TestClient(serving.create_app(packaged, load_slowly)) as client:
        try:
            assert client.post("/predict", content=random_png(), headers=PNG_HEADERS).status_code == 200
            explanation = explain(client, random_png())["explanation"]
            assert (explanation["among"], explanation["neighbours"]) == (0, [])
            assert explanation["moved"]
        finally:
            resume.set()
        assert len(explain_with_neighbours(client, random_png())["explanation"]["neighbours"]) == NUM_NEIGHBOURS


def test_training_images_that_cannot_be_processed_are_one_sentence_and_no_failed_request(packaged, capfd):
    def fail():
        raise ValueError("the disk\nis gone")

    with TestClient(serving.create_app(packaged, fail)) as client:
        assert explain(client, random_png())["explanation"]["neighbours"] == []
        deadline, printed = time.monotonic() + 30, ""
        while not printed and time.monotonic() < deadline:
            printed = capfd.readouterr().err
        assert printed == "gingham: explanations have no nearest training images (the disk is gone)\n"
        assert explain(client, random_png())["explanation"]["neighbours"] == []


def test_the_end_of_the_process_does_not_wait_for_the_training_images(tmp_path):
    script = (
        "import time, gingham\n"
        "from gingham.deploy.server import create_app\n"
        "create_app(gingham.load_packaged(), lambda: time.sleep(300))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, timeout=60, check=True)


def test_each_request_gets_its_own_predictions_under_load(port, packaged):
    """A batch may combine images of several requests."""
    images = [random_png(seed) for seed in range(60)]
    expected = gingham.predict(packaged, [open_photo(image) for image in images])

    def send_request(number):
        indices = [(number + k) % 60 for k in range(1 + number % 5)]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/predict", encode_form([(f"{k}.png", images[k]) for k in indices]), FORM_HEADERS)
        response = connection.getresponse()
        entries = json.loads(response.read())["predictions"]
        connection.close()
        return response.status == 200 and all(
            entry["image"] == f"{k}.png"
            and np.allclose(list(entry["probabilities"].values()), list(expected[k].probabilities.values()), atol=1e-4)
            and abs(entry["novelty"] - expected[k].novelty) < 0.02
            for k, entry in zip(indices, entries, strict=True)
        )

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert all(pool.map(send_request, range(240)))


def test_threads_that_answer_change_no_setting_of_the_process(port, packaged, tmp_path):
    """Neither temporarily, which other threads would notice, nor permanently."""
    settings = {
        "filters": lambda: list(warnings.filters),
        "level of Pillow's logger": lambda: logging.getLogger("PIL").level,
        "TF32": lambda: torch.backends.cudnn.allow_tf32,
    }
    file = tmp_path / "photo.jpg"
    draw_garment_photo((40, 60, 120), (255, 255, 255))[0].save(file)
    content = file.read_bytes()

    def ask(_):
        assert send_raw(port, predict_request(content).replace(b"/predict", b"/predict?explain=true"))[0] == 200
        assert gingham.predict(packaged, [file] * 3)[0].label
        assert not decode_images([file] * 3, np.zeros((3, 3, 28, 28), np.uint8), "").issues

    before = {name: read() for name, read in settings.items()}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, number) for number in range(8)]
        while not all(future.done() for future in futures):
            assert {name: read() for name, read in settings.items()} == before
        for future in futures:
            future.result()
    assert {name: read() for name, read in settings.items()} == before


def test_a_body_that_is_too_large_is_refused_while_it_arrives(port):
    status, body = send_raw(port, PREDICT_HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert status == 413
    assert body["error"].startswith("the request has more than 32 MB")
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    status, _ = send_raw(port, PREDICT_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 33)
    assert status == 413


def test_a_body_that_stalls_is_refused_without_delaying_others(port, monkeypatch):
    monkeypatch.setattr(request_images, "STALL_SECONDS", 0.5)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send_raw, port, PREDICT_HEAD + b"Content-Length: 100\r\n\r\nabc")
        status, _ = send_raw(port, predict_request(random_png()))
        assert status == 200
        status, body = slow.result()
    assert status == 408
    assert body["error"].startswith("the body is too slow; allowed: 0.5 s per piece, 120 s in all")


def test_a_body_may_arrive_in_small_pieces(port):
    content = random_png()
    pieces = [content[k : k + 100] for k in range(0, len(content), 100)]
    status, body = send_raw(
        port, PREDICT_HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode(), *pieces, pause=0.01
    )
    assert status == 200
    assert body["predictions"][0]["label"]


def test_connections_have_no_nagle_delay():
    with serving.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_slow_and_broken_clients_do_not_delay_others(port):
    """The server does not disconnect them, which is left to the proxy."""
    with contextlib.ExitStack() as stack:
        for content in (b"", b"G", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 500, b"Dear Sir\r\n\r\n") * 10:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(content)
        assert send_raw(port, predict_request(random_png()))[0] == 200


def health_status(connection):
    connection.sendall(HEALTH_REQUEST)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status


def test_too_many_connections_get_a_503_and_clients_may_disconnect_before_their_body_is_complete(process):
    started, port = process
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(PREDICT_HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert send_raw(port, predict_request(random_png()))[0] == 200
    with contextlib.ExitStack() as stack:
        for _ in range(serving.MAX_CONNECTIONS):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert health_status(connection) == 503
    status, deadline = 503, time.monotonic() + 30
    while status == 503 and time.monotonic() < deadline:  # until the server has detected that they are closed
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            status = health_status(connection)
    assert status == 200
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert started.stderr.read() == "", "nothing is logged"


@pytest.mark.parametrize("end", [None, -30, 100])
def test_the_files_of_a_form_are_closed(client, end):
    """Also those of a truncated form; otherwise Python warns about each."""
    form = encode_form([("a.png", random_png()), ("b.png", random_png(1))])[:end]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        assert client.post("/predict", content=form, headers=FORM_HEADERS).status_code == (200 if end is None else 422)
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]


def test_too_many_bytes_at_once_get_a_503(client, monkeypatch):
    monkeypatch.setattr(request_images, "HELD_BYTES", 1000)
    response = client.post("/predict", content=bytes(2000), headers=PNG_HEADERS)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    assert client.post("/predict", content=random_png(), headers=PNG_HEADERS).status_code == 200


def test_predictions_do_not_wait_for_explanations(port, monkeypatch):
    explaining, resume = threading.Semaphore(0), threading.Event()
    explain_at_once = serving._explain

    def explain_slowly(*arguments):
        explaining.release()
        resume.wait(30)
        return explain_at_once(*arguments)

    monkeypatch.setattr(serving, "_explain", explain_slowly)
    request = predict_request(random_png())
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        explanations = [
            pool.submit(send_raw, port, request.replace(b"/predict", b"/predict?explain=true")) for _ in range(20)
        ]
        assert explaining.acquire(timeout=30)
        assert send_raw(port, request)[0] == 200
        resume.set()
        assert all(future.result()[0] == 200 for future in explanations)


def test_a_cancelled_request_does_not_affect_others_in_its_batch(packaged):
    batcher = serving.RequestBatcher(packaged, 1)
    resume = threading.Event()
    batcher.pool.submit(resume.wait)
    (prepared,) = [preprocess(packaged, Image.open(io.BytesIO(random_png())))]

    async def cancel_one_of_two():
        cancelled, other = (asyncio.create_task(batcher.predict([prepared])) for _ in range(2))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        await asyncio.sleep(0.1)
        resume.set()
        return await asyncio.wait_for(other, 30)

    assert asyncio.run(cancel_one_of_two()).shape == (1, 10 + 1), "probabilities and the novelty score"


def test_a_run_of_own_data_is_served_with_the_predictions_of_predict(small_run, tmp_path):
    run, data = small_run
    image = Image.fromarray(np.random.RandomState(3).randint(256, size=(60, 40, 3)).astype(np.uint8))
    image.save(tmp_path / "own.png")
    (expected,) = gingham.predict(run, [tmp_path / "own.png"])
    with TestClient(serving.create_app(run)) as client:
        (entry,) = client.post("/predict", content=encode_image(image), headers=PNG_HEADERS).json()["predictions"]
        assert "What is this?" in client.get("/").text
    assert_equal_prediction(entry, expected)
    with TestClient(serving.create_app(run, lambda: data.train)) as client:
        explanation = explain_with_neighbours(client, encode_image(image))["explanation"]
        assert explanation["among"] == len(data.train), "all of a small training split"


def test_digits_are_served_with_the_predictions_of_predict(digit_run, digit_files):
    run, _ = digit_run
    expected = {prediction.image: prediction for prediction in gingham.predict(run, digit_files)}
    with TestClient(serving.create_app(run)) as own:
        for file in digit_files:
            response = own.post("/predict", content=file.read_bytes(), headers=PNG_HEADERS)
            (entry,) = response.json()["predictions"]
            assert_equal_prediction(entry, expected[str(file)])
    novel = {Path(name).stem for name, prediction in expected.items() if prediction.novel}
    assert {"noise", "stripes", "blank", "white", "shirt"} <= novel
    assert not {"own-0", "negative-0", "small-0", "small-1", "small-4", "small-7", "white-on-dark"} & novel


def test_without_a_novelty_score_no_image_is_novel_and_the_responses_are_valid_json(small_run):
    run, _ = small_run
    run.model.novelty = None
    with TestClient(serving.create_app(run)) as own:
        metadata = own.get("/model").json()
        page = own.get("/").text
        (entry,) = own.post("/predict", content=random_png(), headers=PNG_HEADERS).json()["predictions"]
    assert (entry["novel"], entry["novelty"]) == (False, 0)
    for values in (
        metadata,
        json.loads(re.search(r'id="metadata">(.*?)</script>', page)[1], parse_constant=pytest.fail),
    ):
        assert (values["novelty_threshold"], values["photo_novelty_threshold"]) == (None, None)


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signals_end_the_server_after_the_requests_in_progress(process, signal_number, code):
    started, port = process
    request = predict_request(random_png())
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request[:-100])
        time.sleep(1)
        started.send_signal(signal_number)
        time.sleep(1)
        assert started.poll() is None, "it waits for the request"
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(request[-100:])
        response = http.client.HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert json.loads(response.read())["predictions"][0]["label"]
    assert started.wait(timeout=60) == code
    assert "Traceback" not in started.stderr.read()


@pytest.mark.slow
def test_a_request_that_exceeds_the_grace_period_gets_an_error(tmp_path):
    script = "import gingham.deploy.server as s\ns.GRACE_SECONDS = 1\nfrom gingham.cli.app import run\nrun()"
    command = [sys.executable, "-c", script, "serve", "--port", "0"]
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)/ ", started.stderr.readline())[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(PREDICT_HEAD + b"Content-Length: 100\r\n\r\nabc")
        time.sleep(1)
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=30) == 0
        assert b"the server is shutting down" in connection.recv(10_000)
    assert "Traceback" not in started.stderr.read()
    started.stderr.close()


def test_large_images_are_decoded_one_at_a_time(port, monkeypatch):
    """Each takes hundreds of megabytes, so threads must not decode several at once."""
    decoding, counts = [], []

    def open_slowly(*arguments):
        decoding.append(1)
        counts.append(len(decoding))
        time.sleep(0.2)
        decoding.pop()
        raise gingham.DataError("unreadable")

    monkeypatch.setattr(serving, "open_photo", open_slowly)
    request = predict_request(encode_image(Image.new("1", (4001, 4000))))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert [status for status, _ in pool.map(lambda _: send_raw(port, request), range(6))] == [422] * 6
    assert counts == [1] * 6


def test_16_bit_images_are_scaled_as_those_of_the_run(small_run, tmp_path):
    run, data = small_run
    run.data["grey_bits"] = 12
    file = tmp_path / "deep.png"
    Image.fromarray(data.train.images[0, 0].numpy().astype(np.uint16) << 4).save(file)
    (expected,) = gingham.predict(run, [file])
    assert np.array_equal(expected.prepared.image, data.train.images[0].numpy())
    with TestClient(serving.create_app(run)) as own:
        response = own.post("/predict", content=file.read_bytes(), headers=PNG_HEADERS)
    (entry,) = response.json()["predictions"]
    assert_equal_prediction(entry, expected)
