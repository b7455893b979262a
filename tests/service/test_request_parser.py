"""A wish to upgrade changes nothing: what is read is what httptools reads of the same bytes without the wish."""

from dataclasses import dataclass, field
from typing import Any

import httptools
from hypothesis import given, settings
from hypothesis import strategies as st

from service.request_parser import RequestParser

HEADERS = [
    b"Host: x",
    b"X:",
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade",
    b"Connection: close, Upgrade",
    b"connection: keep-alive, Upgrade, HTTP2-Settings",
    b"Proxy-Connection: close",
    b"Expect: 100-continue",
    b"Z: a\r\n b",
    b"Z:\xff\xfe",
    b"Upgraded: no",
]
WISHES = [b"Upgrade: h2c", b"UPGRADE:", b"Upgrade: websocket, h2c"]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;e=1\r\nhello\r\n0\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
]


@dataclass
class Read:
    """What was read: method, target, headers, version, whether the connection goes on, and the body."""

    messages: list[tuple[Any, ...]] = field(default_factory=list)
    refused: bool = False


class Reader:
    """Reads as a connection does."""

    def __init__(self, parser: type[httptools.HttpRequestParser]) -> None:
        self.url, self.body = b"", b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.head: tuple[Any, ...] = ()
        self.found = Read()
        self.parser = parser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            kept = [each for each in self.headers if each[0] != b"upgrade"]
            version, goes_on = self.parser.get_http_version(), self.parser.should_keep_alive()
            self.head, self.body = (self.parser.get_method(), self.url, kept, version, goes_on), b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self.found.messages.append((*self.head, self.body))

    def read(self, sent: bytes, cuts: list[int]) -> Read:
        """What is read of these bytes, cut at these places."""
        try:
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                self.parser.feed_data(sent[start:end])
        except httptools.HttpParserError:
            self.found.refused = True
        return self.found


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A few requests in a row, some of which wish for another protocol; and the same without the wishes."""
    wishing = plain = b""
    for _ in range(draw(st.integers(1, 3))):
        method = draw(st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD"]))
        version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
        start = method + b" " + draw(st.sampled_from([b"/", b"/a?b=c", b"http://h/x"])) + b" HTTP/" + version
        headers = draw(st.lists(st.sampled_from(HEADERS), max_size=5))
        body = draw(st.sampled_from(BODIES))
        plain += b"\r\n".join([start, *headers, b"", b""]) + body
        if draw(st.booleans()):
            headers.insert(draw(st.integers(0, len(headers))), draw(st.sampled_from(WISHES)))
        wishing += b"\r\n".join([start, *headers, b"", b""]) + body
    return wishing, plain


@settings(max_examples=500)
@given(sent=requests(), data=st.data())
def test_a_wish_to_upgrade_changes_nothing_that_is_read(sent: tuple[bytes, bytes], data: st.DataObject) -> None:
    wishing, plain = sent
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wishing) - 1), max_size=5)))
    assert Reader(RequestParser).read(wishing, cuts) == Reader(httptools.HttpRequestParser).read(plain, [])
