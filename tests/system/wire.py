"""Plain requests and their answers as bytes on a connection, for tests that decide when each byte is sent."""

import socket
from http.client import HTTPResponse
from io import BytesIO

from tests.system.server import Server


def connected(server: Server) -> socket.socket:
    """A new connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def request(body: bytes, *headers: str, target: str = "/classify") -> bytes:
    """A plain request: the image is its body."""
    head = [f"POST {target} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


class _Received:
    """What http.client needs of a socket."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)

    def makefile(self, _: str) -> BytesIO:
        return self._file


def answers(connection: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of so many answers, and nothing after them."""
    received = b""
    found: list[tuple[int, dict[str, str], bytes]] = []
    while len(found) < count:
        data = connection.recv(2**16)
        assert data, f"closed after {len(found)} of {count} answers"
        received += data
        while b"\r\n\r\n" in received:
            response = HTTPResponse(_Received(received))  # type: ignore[arg-type]
            response.begin()
            length, head = int(response.headers["content-length"]), received.index(b"\r\n\r\n") + 4
            if len(received) < head + length:
                break
            headers = {name.lower(): value for name, value in response.headers.items()}
            found.append((response.status, headers, received[head : head + length]))
            received = received[head + length :]
    assert not received
    return found


def is_closed(connection: socket.socket, within: float) -> bool:
    """Whether the server closes it, in so many seconds."""
    connection.settimeout(within)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
