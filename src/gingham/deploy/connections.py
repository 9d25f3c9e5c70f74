"""HTTP connections of the server, with time limits and a limit on their number."""

import asyncio
import contextlib
import json
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512  # each takes a file descriptor, of which many systems allow a process 1,024
MAX_ACCEPTED = 128  # per event loop step, before they are counted; three times as many may be pending
HEAD_SECONDS = 20  # for the whole head of a request, from its first byte
UNREAD_SECONDS, RESPONSE_SECONDS = 20, 120  # for a client to read anything of a response; to read all of it
CHECK_SECONDS = 1.0  # between two checks of the limits


class Connection(H11Protocol):
    """An HTTP connection that is closed if its client is too slow.

    Uvicorn has no time limit for receiving a request head or sending a response, and accepts connections until there
    are no file descriptors. This class closes connections that exceed a limit. If more than `MAX_CONNECTIONS` are open,
    a new connection replaces the one that has waited longest for its client; if all others are being answered, the new
    one gets a 503.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        client_socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # not a TCP socket
            # asyncio sets this only for sockets that name their protocol, which accepted sockets do not. Without it a
            # response's body waits until the client acknowledges its head: 44 ms per request on a kept-alive
            # connection.
            client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Otherwise the system buffers megabytes of a response, and a slow reader seems to read nothing for a long
            # time.
            client_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1 << 16)
        self.waiting_since = self.loop.time()  # when it started to wait for a request
        self.head_since: float | None = None  # when the first byte of the head arrived
        self.unread, self.read_at, self.unread_since, self.responses = 0, 0.0, 0.0, 0
        self.check_timer = self.loop.call_later(CHECK_SECONDS, self._check_limits)
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room_or_refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        self.check_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.head_since is None and not self.is_busy():
            self.head_since = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.waiting_since, self.head_since = self.loop.time(), None
        self.responses += 1
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not valid HTTP with a JSON error that says what to do, which uvicorn's own does not."""
        message = "the request is not whole HTTP/1.1, or its head is too long; /docs says what is answered"
        self._refuse(400, "Bad Request", message)

    def is_busy(self) -> bool:
        """Return whether a request is being received or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def waits_for_client(self) -> bool:
        """Return whether the client must act next: send a request or the rest of one, or read a response."""
        return not self.is_busy() or self.cycle.more_body or self.transport.get_write_buffer_size() > 0

    def _make_room_or_refuse(self) -> None:
        others: set[Any] = {*self.connections} - {self}
        waiting = [other for other in others if other.waits_for_client() and not other.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda other: other.waiting_since).transport.abort()
        else:
            self._refuse(
                503, "Service Unavailable", "too many requests at once; try again in a second", "Retry-After: 1\r\n"
            )

    def _refuse(self, status: int, reason: str, message: str, headers: str = "") -> None:
        body = json.dumps({"error": message})
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{headers}Connection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _check_limits(self) -> None:
        """Close the connection if its client exceeds a time limit; otherwise schedule the next check."""
        now = self.loop.time()
        unread = self.transport.get_write_buffer_size()
        if unread < self.unread or not self.unread or self.responses:
            self.read_at = now
        if not self.unread or self.responses:
            self.unread_since = now
        self.unread, self.responses = unread, 0
        if unread:
            late = now - self.read_at > UNREAD_SECONDS or now - self.unread_since > RESPONSE_SECONDS
        elif self.is_busy():
            late = False  # the server limits the time for the body, and computing a response has no limit
        elif self.head_since is None:
            late = now - self.waiting_since > self.timeout_keep_alive
        else:
            late = now - self.head_since > HEAD_SECONDS
        if late:
            self.transport.abort()
        else:
            self.check_timer = self.loop.call_later(CHECK_SECONDS, self._check_limits)
