"""The server: the answers of `predict`, one sentence for whatever cannot be answered, and nothing lost at its end."""

import asyncio
import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

import gingham
import gingham.deploy
from gingham.deploy import connections
from gingham.deploy import server as serving
from gingham.inference.explain import occlusion
from gingham.inference.neighbours import GALLERY_SIZE, NUM_NEIGHBOURS, features, gallery
from gingham.inference.predict import preprocess
from helpers import drawn

BOUNDARY = "a-boundary"


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def small(seed=0):
    return encoded(Image.fromarray(np.random.RandomState(seed).randint(256, size=(28, 28)).astype(np.uint8)))


def form(files):
    """A form as browsers and curl send it."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in files
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FORM = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


@pytest.fixture(scope="module")
def client(packaged):
    with TestClient(serving.create_app(packaged)) as client:
        yield client


@pytest.fixture
def listening(packaged):
    """A server on a port of its own, for what only a real connection shows."""
    place = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serving.create_app(packaged), log_level="error", http=connections.Connection))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
    thread.start()
    yield place.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def process(tmp_path):
    """`gingham serve` as a user starts it, on a free port."""
    # Where the tests run in the background, Ctrl-C is ignored, and would be in there.
    heard = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_module('gingham', run_name='__main__')"
    started = subprocess.Popen(
        [sys.executable, "-c", heard, "serve", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    line = started.stderr.readline()
    yield started, int(re.search(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
    started.kill()
    started.wait()
    started.stderr.close()


def same(said, expected):
    """An entry of the server's against an answer of predict's."""
    wanted = expected.to_dict()
    assert (said["label"], said["unsure"]) == (wanted["label"], wanted["unsure"])
    assert [(step["step"], step["note"]) for step in said["steps"]] == [
        (step["step"], step["note"]) for step in wanted["steps"]
    ]
    for name, share in wanted["probabilities"].items():
        assert said["probabilities"][name] == pytest.approx(share, abs=1e-4)


def test_one_picture_and_many_are_answered_as_predict_does(client, packaged, tmp_path):
    photo, _ = drawn((40, 60, 120), (255, 255, 255), texture=4)
    files = {
        "coat.png": encoded(photo),
        "coat.jpg": encoded(photo, "JPEG"),
        "turned.jpg": encoded(photo, "JPEG", exif=turned()),
        "turned.webp": encoded(photo.rotate(90), "WEBP"),
        "small.png": small(),
        "one-colour.bmp": encoded(Image.new("RGB", (50, 60), "red"), "BMP"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = gingham.predict(packaged, [tmp_path / name for name in files])
    said = client.post("/predict", files=[("images", pair) for pair in files.items()])
    assert said.status_code == 200
    assert [entry["image"] for entry in said.json()["predictions"]] == list(files)
    for entry, answer in zip(said.json()["predictions"], expected, strict=True):
        same(entry, answer)
    alone = client.post("/predict", content=files["coat.jpg"], headers={"content-type": "image/jpeg"})
    (entry,) = alone.json()["predictions"]
    same(entry, expected[1])


def test_onnx_and_http_answer_alike(client, packaged, tmp_path, fashion_mnist):
    """The same pictures through PyTorch, ONNX Runtime and HTTP."""
    onnxruntime = pytest.importorskip("onnxruntime")
    images = fashion_mnist.train.images[:200].numpy()
    file = gingham.export(packaged, tmp_path / "model.onnx", fashion_mnist).file
    exported = onnxruntime.InferenceSession(str(file)).run(None, {"images": images})[0]
    served = client.post(
        "/predict",
        content=form([(f"{k}.png", encoded(Image.fromarray(image[0]))) for k, image in enumerate(images)]),
        headers=FORM,
    )
    over_http = np.array([list(entry["probabilities"].values()) for entry in served.json()["predictions"]])
    in_torch = packaged.model.predict(images).probabilities.numpy()
    for said in (exported, over_http):
        assert np.abs(said - in_torch).max() < 1e-4
        assert (said.argmax(1) == in_torch.argmax(1)).all()


TORN = encoded(drawn((40, 60, 120), (255, 255, 255))[0], "JPEG")[:3000]
LARGE, BOMB = encoded(Image.new("1", (9000, 6000))), encoded(Image.new("1", (40_000, 40_000)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "letter.txt",
            b"Dear Sir",
            r"cannot read letter.txt as a picture \(it is of no known format\); give a file of the formats PNG",
        ),
        ("empty.png", b"", r"cannot read empty.png as a picture \(it is empty\)"),
        ("torn.jpg", TORN, r"cannot read torn.jpg as a picture \(.*truncated"),
        ("large.png", LARGE, r"large.png has 9000x6000 pixels; allowed: 50,000,000 in all"),
        ("bomb.png", BOMB, r"bomb.png has far too many pixels; allowed: 50,000,000 in all"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot read drawing.svg as a picture"),
        ("../../etc/passwd", b"root", r"cannot read ../../etc/passwd as a picture"),
        ("page.ps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot read page.ps as a picture"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence_and_the_others_are_answered(client, name, content, said):
    answer = client.post(
        "/predict", content=form([("good.png", small()), (name, content), ("also.png", small(1))]), headers=FORM
    )
    assert answer.status_code == 422
    assert re.match(said, answer.json()["error"])
    first, bad, last = answer.json()["predictions"]
    assert first["label"]
    assert last["label"]
    assert set(bad) == {"image", "error"}
    alone = client.post("/predict", content=content, headers={"content-type": "image/png"})
    assert alone.status_code == 422
    assert "\n" not in alone.json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "code", "said"),
    [
        (b"", "image/png", 422, "the request holds no picture; send a form with a file for each"),
        (b"x", "", 415, r"got the content type \(none\); allowed: multipart/form-data"),
        (b"{}", "application/json", 415, "got the content type application/json; allowed"),
        (b"x", "multipart/form-data", 422, "the form is broken"),
        (b"x", "multipart/form-data; boundary=" + "b" * 500, 422, "the form is broken"),
        (b"nonsense", FORM["content-type"], 422, "the form is broken"),
        (form([]), FORM["content-type"], 422, "the request holds no picture"),
        (form([("a.png", small())])[:-40], FORM["content-type"], 422, "the form is broken"),
        (
            form([("a.png", small())]).replace(b'; filename="a.png"', b""),
            FORM["content-type"],
            422,
            "the request holds no picture",
        ),
        (form([("a.png", b"")] * 257), FORM["content-type"], 413, "the request holds 257 pictures; allowed: 256"),
        (
            f"--{BOUNDARY}\r\n\r\n\r\n".encode() * 1001 + f"--{BOUNDARY}--\r\n".encode(),
            FORM["content-type"],
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
def test_a_request_that_cannot_be_answered_says_why(client, content, kind, code, said):
    answer = client.post("/predict", content=content, headers={"content-type": kind})
    assert (answer.status_code, set(answer.json())) == (code, {"error"})
    assert re.match(said, answer.json()["error"]), answer.json()


def test_a_refusal_quotes_what_was_asked_on_one_line(client):
    odd = client.post("/predict", content=b"x", headers={"content-type": b"a\x01b"})
    assert odd.json()["error"].startswith("got the content type a\\x01b; allowed")
    assert client.get("/a%1B[2J").json()["error"].startswith("there is nothing at /a\\x1b[2J; POST")


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "1e9"])
def test_any_content_length_is_answered(packaged, length):
    """As some servers pass it on: the one that comes with gingham refuses most of these itself."""
    sent, waiting = [], [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": "/predict",
             "raw_path": b"/predict", "query_string": b"", "headers": [(b"content-length", length.encode("latin-1"))]}  # fmt: skip
    asyncio.run(serving.create_app(packaged)(scope, receive, send))
    assert sent[0]["status"] == (413 if length.isascii() and length.isdigit() else 415)


def test_other_addresses_and_methods_are_told_what_there_is(client):
    assert client.get("/nothing").json() == {
        "error": "there is nothing at /nothing; POST /predict, GET /model, /health, /docs and / are"
    }
    assert client.get("/predict").json() == {"error": "/predict does not take GET; /docs says what it takes"}
    answer = client.post("/predict?explain=perhaps", content=small(), headers={"content-type": "image/png"})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("explain got 'perhaps': ")


def test_it_says_that_it_is_well_and_what_it_is(client, packaged):
    assert client.get("/health").json() == {"status": "ok"}
    said = client.get("/model").json()
    assert said["classes"] == list(packaged.model.classes)
    assert said["threshold"] == float(packaged.model.threshold)
    assert (said["input_shape"], said["recipe"], said["parameters"]) == ([1, 28, 28], "photo", 450120)
    assert said["limits"] == {"request_bytes": 32 << 20, "pictures": 256, "pixels": 50_000_000}


def test_the_documentation_needs_no_other_host(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/model", "/health"}
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    page = client.get("/docs").text
    assert not re.findall(r"""(?:src|href)=["']https?://""", page)
    for place in re.findall(r"""(?:src|href)=["'](/[^"']+)""", page):
        assert client.get(place).status_code == 200


def test_the_page_runs_its_own_script_alone_and_asks_no_other_host(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    script = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)[-1]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert not re.findall(r"""(?:src|href|action)=["']?(?:https?:)?//""", answer.text)
    assert "@import" not in answer.text


def test_an_explanation_shows_what_predict_draws(packaged, fashion_mnist):
    photo, _ = drawn((40, 60, 120), (255, 255, 255), texture=4)
    with TestClient(serving.create_app(packaged, lambda: fashion_mnist.train)) as client:
        said = client.post("/predict?explain=true", content=encoded(photo), headers={"content-type": "image/png"})
    (entry,) = said.json()["predictions"]
    prepared = preprocess(packaged, photo)
    for shown, step in zip(entry["steps"], prepared.steps, strict=True):
        assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["picture"].partition(",")[2])))) == step.image).all()
    picture = torch.tensor(prepared.image)
    moved = occlusion(packaged.model, picture, packaged.model.classes.index(entry["label"]), 5, 2)
    assert np.allclose(entry["explanation"]["moved"], moved.numpy(), atol=1e-4)
    some = gallery(packaged.model, fashion_mnist.train, GALLERY_SIZE)
    like = some.nearest(features(packaged.model, picture[None])[0], NUM_NEIGHBOURS)
    assert [one["label"] for one in entry["explanation"]["neighbours"]] == [some.labels[k] for k in like]
    assert entry["explanation"]["among"] == GALLERY_SIZE


def test_without_training_pictures_there_are_no_neighbours(client):
    said = client.post("/predict?explain=true", content=small(), headers={"content-type": "image/png"}).json()
    assert said["predictions"][0]["explanation"]["neighbours"] == []


def test_everyone_gets_their_own_answer_under_load(listening, packaged):
    """Batches are made across requests, of one picture and of several: nobody may get another's."""
    pictures = [small(seed) for seed in range(60)]
    wanted = packaged.model.predict(np.stack([np.asarray(Image.open(io.BytesIO(one)))[None] for one in pictures]))

    def ask(number):
        places = [(number + k) % 60 for k in range(1 + number % 5)]
        connection = http.client.HTTPConnection("127.0.0.1", listening, timeout=60)
        connection.request("POST", "/predict", form([(f"{k}.png", pictures[k]) for k in places]), FORM)
        answer = connection.getresponse()
        said = json.loads(answer.read())["predictions"]
        connection.close()
        return answer.status == 200 and all(
            entry["image"] == f"{k}.png"
            and np.allclose(list(entry["probabilities"].values()), wanted.probabilities[k], atol=1e-4)
            for k, entry in zip(places, said, strict=True)
        )

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert all(pool.map(ask, range(240)))


def answered(port, *parts, pause=0.0):
    """What a raw request is answered, its parts sent one after the other."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        for part in parts:
            line.sendall(part)
            time.sleep(pause)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        return answer.status, json.loads(answer.read())


HEAD = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Type: image/png\r\n"


def test_a_body_is_refused_before_it_is_all_there(listening):
    status, said = answered(listening, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert status == 413
    assert said["error"].startswith("the request has more than 32 MB")
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    status, _ = answered(listening, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 33)
    assert status == 413


def test_a_body_that_stalls_is_refused_and_others_are_answered_meanwhile(listening, monkeypatch):
    monkeypatch.setattr(serving, "STALL_SECONDS", 0.5)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = pool.submit(answered, listening, HEAD + b"Content-Length: 100\r\n\r\nabc")
        content = small()
        status, _ = answered(listening, HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert status == 200
        status, said = slow.result()
    assert status == 408
    assert said["error"].startswith("the body did not arrive within")


def test_an_answer_does_not_wait_for_its_head_to_be_confirmed(listening, monkeypatch):
    seen = []
    made = connections.Connection.connection_made

    def look(self, transport):
        made(self, transport)
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(connections.Connection, "connection_made", look)
    assert answered(listening, HEALTH)[0] == 200
    assert seen == [1]


def test_a_body_in_small_pieces_is_answered(listening):
    content = small()
    pieces = [content[k : k + 100] for k in range(0, len(content), 100)]
    status, said = answered(listening, HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode(), *pieces, pause=0.01)
    assert status == 200
    assert said["predictions"][0]["label"]


def test_whoever_goes_away_does_no_harm(process):
    started, port = process
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            line.sendall(HEAD + b"Content-Length: 1000\r\n\r\nabc")
    content = small()
    assert answered(port, HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content)[0] == 200
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert started.stderr.read() == "", "and leaves no trace in the log"


def test_what_is_no_http_is_told_so(listening):
    status, said = answered(listening, b"Dear Sir\r\n\r\n")
    assert status == 400
    assert said == {"error": "the request is not whole HTTP/1.1, or its head is too long; /docs says what is answered"}


def left(line):
    """What is still read from a connection that the other end leaves."""
    read = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 16):
            read += piece
    return read


def test_a_client_that_keeps_the_server_waiting_is_left(listening, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    page = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    with socket.socket() as unread, socket.create_connection(("127.0.0.1", listening), timeout=30) as slow:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.settimeout(30)
        unread.connect(("127.0.0.1", listening))
        unread.sendall(page * 500)
        for _ in range(20):  # it is not enough that something comes now and then
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"G")
            time.sleep(0.1)
        assert left(slow) == b""
        assert left(unread).count(b"HTTP/1.1 200") < 500
    assert answered(listening, HEALTH) == (200, {"status": "ok"})


HEALTH = b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.mark.slow
def test_an_answer_that_is_read_slowly_is_read_to_its_end(listening, monkeypatch):
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1)
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(30)
        line.connect(("127.0.0.1", listening))
        line.sendall(
            b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 99 + b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        )
        read = b""
        started = time.monotonic()
        while piece := line.recv(1 << 16):
            read += piece
            if time.monotonic() - started < 3:
                time.sleep(0.01)
        assert read.count(b"HTTP/1.1 200") == 100


def asked(line):
    """The status that /health is answered with on a connection that stays."""
    line.sendall(HEALTH)
    answer = http.client.HTTPResponse(line)
    answer.begin()
    assert json.loads(answer.read()) == {"status": "ok"}
    return answer.status


def test_who_has_waited_longest_makes_room_for_who_comes(listening, monkeypatch):
    monkeypatch.setattr(connections, "CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", listening), timeout=30)) for _ in range(10)]
        for line in silent:
            assert asked(line) == 200
        assert answered(listening, HEALTH) == (200, {"status": "ok"})
        assert left(silent[0]) == b""
        assert asked(silent[1]) == 200, "the others stay"


def test_where_everyone_is_being_answered_a_new_one_is_put_off(listening, monkeypatch):
    reading, go_on = threading.Semaphore(0), threading.Event()

    def open_slowly(*arguments):
        reading.release()
        go_on.wait(30)
        raise gingham.DataError("enough seen")

    monkeypatch.setattr(serving, "open_photo", open_slowly)
    monkeypatch.setattr(connections, "CONNECTIONS", 1)
    content = small()
    request = HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(answered, listening, request)
        assert reading.acquire(timeout=30)
        status, said = answered(listening, b"")
        assert (status, said["error"]) == (503, "too many requests at once; try again in a second")
        go_on.set()
        assert busy.result()[0] == 422


def test_more_connections_than_files_do_no_harm(process):
    resource = pytest.importorskip("resource")
    started, port = process
    resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(soft, 4096)), most))
    with contextlib.ExitStack() as stack:
        for _ in range(1200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert answered(port, HEALTH) == (200, {"status": "ok"})
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert started.stderr.read() == ""


def test_too_much_at_once_is_put_off(client, monkeypatch):
    monkeypatch.setattr(serving, "HELD_BYTES", 1000)
    answer = client.post("/predict", content=bytes(2000), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    monkeypatch.undo()
    assert client.post("/predict", content=small(), headers={"content-type": "image/png"}).status_code == 200


def test_answers_do_not_wait_for_explanations(listening, monkeypatch):
    explaining, go_on = threading.Semaphore(0), threading.Event()
    explained = serving._explained

    def explain_slowly(*arguments):
        explaining.release()
        go_on.wait(30)
        return explained(*arguments)

    monkeypatch.setattr(serving, "_explained", explain_slowly)
    content = small()
    request = HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        asking = [pool.submit(answered, listening, request.replace(b"/predict", b"/predict?explain=true")) for _ in range(20)]
        assert explaining.acquire(timeout=30)
        assert answered(listening, request)[0] == 200
        go_on.set()
        assert all(one.result()[0] == 200 for one in asking)


def test_who_waits_no_more_costs_nobody_their_answer(packaged):
    """Of those that are answered together one has been told that the server ends."""
    batches = serving.RequestBatcher(packaged, 1)
    go_on = threading.Event()
    batches.pool.submit(go_on.wait)
    (prepared,) = [preprocess(packaged, Image.open(io.BytesIO(small())))]

    async def ask():
        gone, stays = (asyncio.create_task(batches.answer([prepared])) for _ in range(2))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0.1)
        go_on.set()
        return await asyncio.wait_for(stays, 30)

    assert asyncio.run(ask()).shape == (1, 10)


def test_a_run_of_own_data_is_served_as_predict_answers(small_run, tmp_path):
    run, data = small_run
    picture = Image.fromarray(np.random.RandomState(3).randint(256, size=(60, 40, 3)).astype(np.uint8))
    picture.save(tmp_path / "own.png")
    (expected,) = gingham.predict(run, [tmp_path / "own.png"])
    with TestClient(serving.create_app(run)) as client:
        (entry,) = client.post("/predict", content=encoded(picture), headers={"content-type": "image/png"}).json()[
            "predictions"
        ]
        assert "What is this?" in client.get("/").text
    same(entry, expected)
    with TestClient(serving.create_app(run, lambda: data.train)) as client:
        said = client.post("/predict?explain=true", content=encoded(picture), headers={"content-type": "image/png"}).json()
        assert said["predictions"][0]["explanation"]["among"] == len(data.train), "all there are, where they are few"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_told_to_end_it_answers_what_is_in_flight(process, sent, code):
    started, port = process
    content = small()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content[:100])
        time.sleep(1)
        started.send_signal(sent)
        time.sleep(1)
        assert started.poll() is None, "it waits for the request"
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        line.sendall(content[100:])
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert answer.status == 200
        assert json.loads(answer.read())["predictions"][0]["label"]
    assert started.wait(timeout=60) == code
    assert "Traceback" not in started.stderr.read()


@pytest.mark.slow
def test_what_does_not_end_in_time_is_told_so(tmp_path):
    script = "import gingham.deploy.server as s; s.GRACE_SECONDS = 1; from gingham.cli.app import main; main(['serve', '--port', '0'])"
    started = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    port = int(re.search(r":(\d+)/ ", started.stderr.readline())[1])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(HEAD + b"Content-Length: 100\r\n\r\nabc")
        time.sleep(1)
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=30) == 0
        assert b"the server is ending" in line.recv(10_000)
    assert "Traceback" not in started.stderr.read()
    started.stderr.close()


def test_large_pictures_are_read_one_at_a_time(listening, monkeypatch):
    """Whatever the number of threads: each takes hundreds of megabytes."""
    reading, most = [], []

    def open_slowly(*arguments):
        reading.append(1)
        most.append(len(reading))
        time.sleep(0.2)
        reading.pop()
        raise gingham.DataError("enough seen")

    monkeypatch.setattr(serving, "open_photo", open_slowly)
    content = encoded(Image.new("1", (4001, 4000)))
    request = HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode() + content
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert [status for status, _ in pool.map(lambda _: answered(listening, request), range(6))] == [422] * 6
    assert most == [1] * 6


def test_what_serve_cannot_do_it_says(command, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = command("serve", "--port", port, code=2).stderr
    assert said.startswith(f"gingham: cannot listen on 127.0.0.1 port {port} (Address already in use); choose another --port")
    assert "cannot listen on nowhere.invalid port 8000" in command("serve", "--host", "nowhere.invalid", code=2).stderr
    assert "there is no folder nowhere" in command("serve", "--run", "nowhere", code=2).stderr
    monkeypatch.delitem(sys.modules, "gingham.deploy.server")
    monkeypatch.delattr(gingham.deploy, "server")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert command("serve", code=2).stderr == "gingham: serving needs the package fastapi; pip install 'gingham[serve]'\n"
