"""The connections of a worker: what arrives on each, what is sent, and which of them its server gets back, and why."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from service.handover import Channel, Kind, Returned

RECEIVE_BYTES = 2**16
# The rest of a request that has begun to arrive is waited for so long; to wait longer is for the server.
REST_SECONDS = 0.1
# An idle connection goes back after so long: workers have places for a limited number, and the server closes it.
IDLE_SECONDS = 5.0


@dataclass(eq=False, slots=True)
class Connection:
    """`since` is when the first byte of what is unanswered came, or the last answer went. One that is `asking` has a
    request that is whole and not answered, whose image may be at a `place` for the server to run."""

    socket: socket.socket
    since: float
    received: bytes = b""
    asking: bool = False
    place: int | None = None

    @property
    def gone(self) -> bool:
        """It is closed, or somebody else has it."""
        return self.socket.fileno() < 0


class Connections:
    """All that a worker has. Whoever hears of what has arrived sets `asking`, or gives the connection back."""

    def __init__(self, channel: Channel, on_received: Callable[[Connection], None]) -> None:
        """`on_received` hears of a connection each time more of a request has arrived on it."""
        self._channel = channel
        self._on_received = on_received
        self._open: dict[int, Connection] = {}
        self._to_spare = 0
        self._looked_at = time.monotonic()
        self._poll = select.epoll()
        self._poll.register(channel.fileno(), select.EPOLLIN)

    def wait(self, seconds: float) -> set[int]:
        """The file descriptors on which something has arrived within so long, the channel's among them."""
        return {descriptor for descriptor, _ in self._poll.poll(seconds)}

    def take(self, connection: socket.socket, received: bytes) -> None:
        """Look after one more, on which this has arrived already."""
        taken = Connection(connection, time.monotonic(), received)
        self._open[connection.fileno()] = taken
        self._poll.register(connection.fileno(), select.EPOLLIN)
        if received:
            self._on_received(taken)

    def read(self, descriptors: set[int]) -> None:
        """Take what has come on these."""
        for descriptor in descriptors & self._open.keys():
            self._read(self._open[descriptor])

    def answer(self, connection: Connection, whole: bytes, *, last: bool) -> None:
        """Send an answer, after which the connection goes on unless it is the last one."""
        connection.received, connection.since, connection.asking = b"", time.monotonic(), False
        try:
            sent = connection.socket.send(whole)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent < len(whole):  # its caller has no room for more at the moment, which the server can wait for
            self.give_back(connection, whole[sent:], ends=last)
        elif last:
            with suppress(OSError):  # closed with bytes that nobody read, it would be reset, and the answer lost
                connection.socket.recv(RECEIVE_BYTES)
            self._close(connection)

    def give_back(self, connection: Connection, unsent: bytes = b"", *, ends: bool = False) -> None:
        """To the server, with what has arrived, and with what could not be sent, after which it may end."""
        self._forget(connection)
        content = Returned(connection.since, connection.received, unsent, ends).to_bytes()
        self._channel.send(Kind.BACK, content, connection.socket.fileno())
        connection.socket.close()

    def give_all_back(self) -> None:
        """No more are to spare then."""
        self._to_spare = 0
        for connection in list(self._open.values()):
            self.give_back(connection)

    def want_back(self, count: int) -> None:
        """So many are to spare, each as soon as its request is answered."""
        self._to_spare = count

    def spare(self) -> None:
        """Give back those that are to spare and have nothing to answer."""
        if self._to_spare:
            idle = [connection for connection in self._open.values() if not connection.received]
            for connection in idle[: self._to_spare]:
                self.give_back(connection)
                self._to_spare -= 1

    def look_after(self) -> None:
        """Give back those on which a request comes slowly, and those that are idle."""
        now = time.monotonic()
        if now < self._looked_at + REST_SECONDS:
            return
        self._looked_at = now
        for connection in [each for each in self._open.values() if not each.asking]:
            if now - connection.since < (REST_SECONDS if connection.received else IDLE_SECONDS):
                continue
            self._read(connection)  # its rest may have come in the meantime
            if not connection.gone and not connection.asking:
                self.give_back(connection)

    def _read(self, connection: Connection) -> None:
        """Take what has come, up to a whole request."""
        while True:
            try:
                data = connection.socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            self._receive(connection, data)
            if connection.gone or connection.asking:
                return

    def _receive(self, connection: Connection, data: bytes) -> None:
        if data:
            connection.since = connection.since if connection.received else time.monotonic()
            connection.received += data
            self._on_received(connection)
        elif connection.received:
            self.give_back(connection)  # to be counted as a caller who left
        else:
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self._forget(connection)
        connection.socket.close()
        self._to_spare = max(0, self._to_spare - 1)
        self._channel.send(Kind.CLOSED)

    def _forget(self, connection: Connection) -> None:
        if connection.place is not None:
            self._channel.send(Kind.DROP, b"%d" % connection.place)
        del self._open[connection.socket.fileno()]
        self._poll.unregister(connection.socket.fileno())
