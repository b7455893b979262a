"""What an answer has beside its status, whichever way it takes, and how it goes over the wire."""

from typing import NamedTuple

RawHeaders = list[tuple[bytes, bytes]]


class Content(NamedTuple):
    """The body of an answer, and the headers that describe it, their names in lower case."""

    headers: RawHeaders
    body: bytes


def message(status_line: bytes, headers: RawHeaders, body: bytes, *, closing: bool = False) -> bytes:
    """An answer as it goes over the wire; `Content-Length`, and `Connection` where it is `closing`, are added."""
    lines = [status_line]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"connection: close\r\n" if closing else b"")
    lines.append(b"content-length: %d\r\n\r\n" % len(body))
    lines.append(body)
    return b"".join(lines)
