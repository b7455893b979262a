"""httptools' parser of requests, for a server that speaks HTTP/1.1 and nothing else.

A server may ignore a wish to upgrade (RFC 9110 section 7.8), and then has to read the request as any other. Clients
that would rather speak HTTP/2 send that wish with every request: Java's `HttpClient`, curl with `--http2`. httptools
takes it for granted instead: the message ends with its head, and what is left on the connection is another protocol's.
Read on, the body would be the next request.
"""

from typing import Protocol

import httptools


class Parsed(Protocol):
    """What is known of the head that was read last, and what is called while one is read."""

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_url(self, url: bytes) -> None: ...

    def on_header(self, name: bytes, value: bytes) -> None: ...


class RequestParser(httptools.HttpRequestParser):
    """Reads a head that wishes for an upgrade once more without it.

    The callbacks come twice then. While they come for the first time `should_upgrade` is true, and those for the end of
    the head and of the message are to do nothing.
    """

    def __init__(self, parsed: Parsed) -> None:
        """`parsed` keeps names of headers in small letters."""
        self._parsed = parsed
        self._begin()

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """As httptools has it, but there is no HttpParserUpgrade; CONNECT, which is nothing else, is not taken.

        Raises:
            httptools.HttpParserError: what was sent is no request.
        """
        while True:
            try:
                super().feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("this is no proxy") from upgrade
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._begin()
            else:
                return

    def _begin(self) -> None:
        """Anew: behind a head whose connection is to end, httptools would take in nothing more."""
        super().__init__(self._parsed)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    def _head_without_upgrade(self) -> bytes:
        start = b"%s %s HTTP/%s\r\n" % (self.get_method(), self._parsed.url, self.get_http_version().encode())
        kept = [b"%s: %s\r\n" % each for each in self._parsed.headers if each[0] != b"upgrade"]
        return b"".join([start, *kept, b"\r\n"])
