"""HTTP connections of the server, with time limits and a limit on their number."""

import asyncio
import contextlib
import json
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 512  # at once, each with a file descriptor, of which many systems allow a process 1,024
ACCEPTED = 128  # at most before they are counted; three times as many may be on their way
HEAD_SECONDS = 20  # for all of a request's head, from its first byte
UNREAD_SECONDS, ANSWER_SECONDS = 20, 120  # while a client reads nothing of an answer; for it to read all of it
LOOK_SECONDS = 1.0


class Connection(H11Protocol):
    """Speaks HTTP with a client, and leaves one that keeps it waiting.

    Uvicorn waits without end for a head to be complete and for an answer to be read, and accepts connections until there are no file
    descriptors. Here who is over the time is left; where `CONNECTIONS` are open, a new one takes the place of that which has
    kept the server waiting longest, and is told 503 if every other is being answered.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        place = transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError):  # a socket of another kind
            # asyncio sets this for sockets that name their protocol, which those that are accepted do not. Without it an answer's body waits for the
            # client to confirm its head: 44 ms a request on a connection that is kept.
            place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Of an answer the system would take megabytes at a time, and a slow reader look for long as if it read nothing.
            place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1 << 16)
        self.since = self.loop.time()  # that it has been waiting for a request
        self.begun: float | None = None  # that the first byte of its head came
        self.unread, self.read_at, self.unread_since, self.answers = 0, 0.0, 0.0, 0
        self.looking = self.loop.call_later(LOOK_SECONDS, self._look)
        if len(self.connections) > CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.begun is None and not self.asked():
            self.begun = self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.since, self.begun = self.loop.time(), None
        self.answers += 1
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; uvicorn's own sentence is neither JSON nor says what to do."""
        said = "the request is not whole HTTP/1.1, or its head is too long; /docs says what is answered"
        self._say(400, "Bad Request", said)

    def asked(self) -> bool:
        """Whether a request is being received or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def waits(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a request, or to read."""
        return not self.asked() or self.cycle.more_body or self.transport.get_write_buffer_size() > 0

    def _make_room(self) -> None:
        others: set[Any] = {*self.connections} - {self}
        waiting = [other for other in others if other.waits() and not other.transport.is_closing()]
        if waiting:
            min(waiting, key=lambda other: other.since).transport.abort()
        else:
            self._say(503, "Service Unavailable", "too many requests at once; try again in a second", "Retry-After: 1\r\n")

    def _say(self, status: int, reason: str, said: str, more: str = "") -> None:
        body = json.dumps({"error": said})
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{more}Connection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()

    def _look(self) -> None:
        """Leave a client that is over its time; else look again in a second."""
        now = self.loop.time()
        unread = self.transport.get_write_buffer_size()
        if unread < self.unread or not self.unread or self.answers:
            self.read_at = now
        if not self.unread or self.answers:
            self.unread_since = now
        self.unread, self.answers = unread, 0
        if unread:
            late = now - self.read_at > UNREAD_SECONDS or now - self.unread_since > ANSWER_SECONDS
        elif self.asked():
            late = False  # the body has limits of its own, and the answer takes what it takes
        elif self.begun is None:
            late = now - self.since > self.timeout_keep_alive
        else:
            late = now - self.begun > HEAD_SECONDS
        if late:
            self.transport.abort()
        else:
            self.looking = self.loop.call_later(LOOK_SECONDS, self._look)
