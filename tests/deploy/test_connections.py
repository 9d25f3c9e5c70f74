"""Connections with a server in this process: time limits, and a limit on their number."""

import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import threading
import time

import pytest

import gingham
from gingham.deploy import connections
from gingham.deploy import server as serving
from http_requests import HEALTH_REQUEST, predict_request, random_png, send_raw


def test_accepted_sockets_have_no_nagle_delay(port, monkeypatch):
    values = []
    connection_made = connections.Connection.connection_made

    def record_option(self, transport):
        connection_made(self, transport)
        values.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(connections.Connection, "connection_made", record_option)
    assert send_raw(port, HEALTH_REQUEST)[0] == 200
    assert values == [1]


def test_a_malformed_request_gets_a_json_error(port):
    status, body = send_raw(port, b"Dear Sir\r\n\r\n")
    assert status == 400
    assert body == {"error": "the request is not whole HTTP/1.1, or its head is too long; /docs says what is answered"}


def read_until_closed(connection):
    """Return the bytes that arrive until the server closes the connection."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            content += part
    return content


def test_clients_that_are_too_slow_are_disconnected(port, monkeypatch):
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 0.5)
    page = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    with socket.socket() as unread, socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.settimeout(30)
        unread.connect(("127.0.0.1", port))
        unread.sendall(page * 500)
        for _ in range(20):  # sending a byte now and then must not extend the time
            with contextlib.suppress(ConnectionError):
                slow.sendall(b"G")
            time.sleep(0.1)
        assert read_until_closed(slow) == b""
        assert read_until_closed(unread).count(b"HTTP/1.1 200") < 500
    assert send_raw(port, HEALTH_REQUEST) == (200, {"status": "ok"})


@pytest.mark.slow
def test_responses_that_are_read_slowly_arrive_completely(port, monkeypatch):
    monkeypatch.setattr(connections, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr(connections, "UNREAD_SECONDS", 1)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        connection.sendall(
            b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 99 + b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        )
        content = b""
        started = time.monotonic()
        while part := connection.recv(1 << 16):
            content += part
            if time.monotonic() - started < 3:
                time.sleep(0.01)
        assert content.count(b"HTTP/1.1 200") == 100


def health_status(connection):
    """Return the status of /health, requested over a connection that stays open."""
    connection.sendall(HEALTH_REQUEST)
    response = http.client.HTTPResponse(connection)
    response.begin()
    assert json.loads(response.read()) == {"status": "ok"}
    return response.status


def test_a_new_connection_replaces_the_one_that_waited_longest(port, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(10)]
        for connection in idle:
            assert health_status(connection) == 200
        assert send_raw(port, HEALTH_REQUEST) == (200, {"status": "ok"})
        assert read_until_closed(idle[0]) == b""
        assert health_status(idle[1]) == 200, "the others stay open"


def test_a_new_connection_gets_a_503_if_all_others_are_busy(port, monkeypatch):
    opening, resume = threading.Semaphore(0), threading.Event()

    def open_slowly(*arguments):
        opening.release()
        resume.wait(30)
        raise gingham.DataError("unreadable")

    monkeypatch.setattr(serving, "open_photo", open_slowly)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 1)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        busy = pool.submit(send_raw, port, predict_request(random_png()))
        assert opening.acquire(timeout=30)
        status, body = send_raw(port, b"")
        assert (status, body["error"]) == (503, "too many requests at once; try again in a second")
        resume.set()
        assert busy.result()[0] == 422


def test_more_connections_than_file_descriptors_do_no_harm(process):
    resource = pytest.importorskip("resource")
    started, port = process
    resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4096)), hard))
    with contextlib.ExitStack() as stack:
        for _ in range(1200):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert send_raw(port, HEALTH_REQUEST) == (200, {"status": "ok"})
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert started.stderr.read() == ""
