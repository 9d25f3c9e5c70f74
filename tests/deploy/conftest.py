"""Shared fixtures: the packaged model, and its server as an app, on a port, and as a process."""

import re
import subprocess
import sys
import threading

import pytest
import uvicorn
from fastapi.testclient import TestClient

import gingham
from gingham.deploy import server as serving


@pytest.fixture(scope="module")
def packaged():
    return gingham.load_packaged()


@pytest.fixture(scope="session")
def packaged_onnx(tmp_path_factory, fashion_mnist):
    """The file of the packaged model, exported once."""
    return gingham.export(gingham.load_packaged(), tmp_path_factory.mktemp("onnx") / "model.onnx", fashion_mnist).file


@pytest.fixture(scope="module")
def client(packaged):
    with TestClient(serving.create_app(packaged)) as client:
        yield client


@pytest.fixture
def port(packaged):
    """The port of a server in this process, for tests that need a real connection."""
    listener = serving.listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(serving.create_app(packaged), http="h11", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture
def process(tmp_path):
    """`gingham serve` as a user starts it, and its port."""
    # Restore Ctrl-C: if the tests run in the background, it is ignored, and child processes inherit this.
    script = (
        "import signal, runpy\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('gingham', run_name='__main__')"
    )
    started = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    line = started.stderr.readline()
    yield started, int(re.search(r"http://127\.0\.0\.1:(\d+)/ ", line)[1])
    started.kill()
    started.wait()
    started.stderr.close()
