"""Plain requests and their answers as bytes on a connection, for tests that decide when each byte is sent."""

import json
import socket
import time
from http.client import HTTPResponse
from io import BytesIO
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.system.server import Server


def connected(server: Server) -> socket.socket:
    """A new connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def request(body: bytes, *headers: str, target: str = "/classify") -> bytes:
    """A plain request: the image is its body."""
    head = [f"POST {target} HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def form_request(*parts: tuple[str, bytes], headers: tuple[str, ...] = (), end: bytes = b"--\r\n") -> bytes:
    """A request with a form of these parts, by name; `end` is what follows the last boundary."""
    written = b"".join(
        b'--XX\r\nContent-Disposition: form-data; name="%s"; filename="a"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in parts
    )
    typed = request(written + b"--XX" + end, *headers)
    return typed.replace(b"image/png", b"multipart/form-data; boundary=XX", 1)


# As Java's HttpClient sends it with each request.
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
INFER = "/v2/models/digits/infer"


def tensor_request(
    *headers: str,
    pixels: bytes = bytes(3072),
    target: str = INFER,
    name: str = "images",
    side: int = 32,
    **asked: Any,
) -> bytes:
    """A request of the Open Inference Protocol, plain but for what is `asked` beside: images in binary form, a blank
    one by default."""
    tensor = {"name": name, "datatype": "UINT8", "shape": [len(pixels) // (side * side * 3), side, side, 3]}
    inputs = [tensor | {"parameters": {"binary_data_size": len(pixels)}}]
    head = json.dumps({"inputs": inputs} | asked).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return request(head + pixels, length, *headers, target=target)


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


class Mixed(NamedTuple):
    """Requests of several kinds, one after the other, and where their bytes are cut."""

    kinds: list[str]
    sent: bytes
    cuts: list[int]

    def exchange(self, connection: socket.socket, pause: float) -> None:
        """Send the pieces, so many seconds apart; every answer has to come whole, right and in order."""
        for start, end in zip([0, *self.cuts], [*self.cuts, len(self.sent)], strict=True):
            connection.sendall(self.sent[start:end])
            time.sleep(pause)
        found = answers(connection, len(self.kinds))
        assert [headers["x-request-id"] for _, headers, _ in found] == [str(number) for number in range(len(found))]
        assert [status for status, _, _ in found] == [400 if kind == "bad" else 200 for kind in self.kinds]
        images = ("plain", "form", "documented", "upgrade")
        assert [b"seven" in body for _, _, body in found] == [kind in images for kind in self.kinds]
        assert [b"logits" in body for _, _, body in found] == [kind == "tensor" for kind in self.kinds]


@st.composite
def mixed(draw: st.DrawFn, image: bytes) -> Mixed:
    """One to six requests, plain or not, some of them bad, cut in up to six pieces; `image` is of a seven."""
    known = ["plain", "form", "documented", "upgrade", "tensor", "bad", "probe"]
    kinds = draw(st.lists(st.sampled_from(known), min_size=1, max_size=6))
    sent = b"".join(
        {
            "plain": request(image, f"X-Request-Id: {number}"),
            "form": form_request(("file", image), headers=(f"X-Request-Id: {number}",)),
            "documented": request(image, f"X-Request-Id: {number}", target="/classify?explain=cam"),
            "upgrade": request(image, f"X-Request-Id: {number}", *UPGRADE),
            "tensor": tensor_request(f"X-Request-Id: {number}"),
            "bad": request(b"nothing", f"X-Request-Id: {number}"),
            "probe": b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n" % number,
        }[kind]
        for number, kind in enumerate(kinds)
    )
    return Mixed(kinds, sent, sorted(draw(st.sets(st.integers(1, len(sent) - 1), max_size=5))))


def is_closed(connection: socket.socket, within: float = 8.0) -> bool:
    """Whether the server closes it, in so many seconds: less than it gives a request to arrive."""
    connection.settimeout(within)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
