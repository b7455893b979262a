"""What an answer has beside its status, whichever way it takes, and how it goes over the wire."""

from typing import NamedTuple

RawHeaders = list[tuple[bytes, bytes]]


class Content(NamedTuple):
    """The body of an answer, and the headers that describe it, their names in lower case."""

    headers: RawHeaders
    body: bytes


def said_of_connection(http_version: str, *, keep_alive: bool) -> bytes:
    """What an answer's `Connection` says, if anything: HTTP/1.1 keeps a connection unless it is told not to, HTTP/1.0
    does so only where it is told (RFC 9112, section 9.3)."""
    if not keep_alive:
        return b"close"
    return b"keep-alive" if http_version == "1.0" else b""


def message(status_line: bytes, headers: RawHeaders, body: bytes, *, connection: bytes = b"") -> bytes:
    """An answer as it goes over the wire; `Content-Length` is added, and `Connection` where it is to say something."""
    lines = [status_line]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines.append(b"connection: %s\r\n" % connection if connection else b"")
    lines.append(b"content-length: %d\r\n\r\n" % len(body))
    lines.append(body)
    return b"".join(lines)
