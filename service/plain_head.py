"""The head of a plain request: the body comes in one piece, and what is asked of it fits a target and headers.

Two take such requests by a short way: a connection of the server (`routes/short_way.py`), which has the head in pieces
from uvicorn's parser, and a worker process (`http_worker.py`), which has it in bytes and takes only the simplest ones
for labels.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qsl

import httptools
from pydantic import ValidationError

from service.artifact import Preprocessing
from service.content import RawHeaders
from service.image import PROMPT, Bounds, is_within
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.uploads import is_image

METHOD, PATH = "POST", "/classify"
_METHOD, _TARGET = METHOD.encode(), PATH.encode()
# What one parameter or header says is asked again and again; what a caller varies at will must not fill the memory.
REMEMBERED = 256
# A longer head, target or header is not worth remembering.
MOST_HEAD_BYTES = 2**12
MOST_TARGET_BYTES = 2**9
MOST_VALUE_BYTES = 2**8
HEAD_END = b"\r\n\r\n"
# Of these each needs more than to read a body and answer.
_NOT_PLAIN = (b"transfer-encoding", b"expect", b"upgrade")
# To these a worker has no answer of its own.
_NOT_SIMPLE = (b"x-priority", b"x-canary-key")


class NotSimple(Exception):
    """Not a request that a worker answers, or not one alone."""


class SimpleHead(NamedTuple):
    """What a simple request asks: of the model called so, "" for the one there is; so many labels, None for the usual
    number. Its body has `length` bytes. `headers` are what came with it."""

    model: str
    top_k: int | None
    length: int
    request_id: str | None
    headers: Mapping[str, str]


class SimpleRequest(NamedTuple):
    """One request: its head, and what has arrived of the encoded image."""

    head: SimpleHead
    encoded: bytes

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return len(self.encoded) == self.head.length

    def is_within(self, bounds: Bounds, recipe: Preprocessing) -> bool:
        """Whether its image can be preprocessed within these bounds, as far as can be seen of what has arrived."""
        small = self.head.length <= bounds.bytes
        return small and (not self.complete or is_within(bounds, self.encoded, recipe))


def read_query(target: bytes) -> ClassifyQuery | None:
    """What the query says, where the target is `/classify`; None where it is not, or long, or to be complained of."""
    path, _, query_string = target.partition(b"?")
    if path != _TARGET or b"#" in query_string or len(target) > MOST_TARGET_BYTES:
        return None
    return _query(query_string)


def read_headers(sent: dict[bytes, bytes]) -> ClassifyHeaders | None:
    """What the headers say; None where they are long, or to be complained of."""
    priority, canary_key = sent.get(b"x-priority"), sent.get(b"x-canary-key")
    if any(len(value) > MOST_VALUE_BYTES for value in (priority, canary_key) if value is not None):
        return None
    return _headers(priority, canary_key)


def plain_length(headers: RawHeaders, sent: dict[bytes, bytes], most: int) -> int | None:
    """How long the body is, where it comes in one piece of at most so many bytes; None otherwise.

    `sent` are the headers by name.
    """
    length = sent.get(b"content-length", b"")
    plain = (
        len(sent) == len(headers)  # which of a repeated header counts is for the frameworks to say
        and length.isdigit()
        and len(length) <= len(str(most))
        and 0 < int(length) <= most
        and not any(name in sent for name in _NOT_PLAIN)
    )
    return int(length) if plain else None


def is_plain_image(sent: dict[bytes, bytes]) -> bool:
    """Whether the headers, by name, say that the body is the image itself."""
    return is_image(sent.get(b"content-type", b"").decode("latin-1"))


def simple_request(received: bytes, most: int) -> SimpleRequest | None:
    """The one request that was received; None while some of its head is missing.

    Args:
        received: from a request's first byte on.
        most: bytes that the image may have.

    Raises:
        NotSimple: a worker does not answer it, or more follows.
    """
    end = received.find(HEAD_END)
    if end < 0:
        if len(received) > MOST_HEAD_BYTES:
            raise NotSimple
        return None
    end += len(HEAD_END)
    head = _simple_head(received[:end]) if end <= MOST_HEAD_BYTES else None
    if head is None or head.length > most or len(received) > end + head.length:
        raise NotSimple
    return SimpleRequest(head, received[end:])


class _Parsed:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


@lru_cache(REMEMBERED)
def _simple_head(head: bytes) -> SimpleHead | None:
    parsed = _Parsed()
    parser = httptools.HttpRequestParser(parsed)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    sent = dict(parsed.headers)
    query = read_query(parsed.target) if parser.get_method() == _METHOD else None
    length = plain_length(parsed.headers, sent, PROMPT.bytes)
    if query is None or length is None or not is_plain_image(sent) or any(name in sent for name in _NOT_SIMPLE):
        return None
    if parser.get_http_version() != "1.1" or not parser.should_keep_alive():
        return None
    if query.version is not None or query.timeout_ms is not None:
        return None
    request_id = sent.get(b"x-request-id")
    return SimpleHead(
        query.model or "",
        query.top_k,
        length,
        request_id.decode("latin-1") if request_id else None,
        {name.decode("latin-1"): value.decode("latin-1") for name, value in parsed.headers},
    )


@lru_cache(REMEMBERED)
def _query(query_string: bytes) -> ClassifyQuery | None:
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    if len(dict(pairs)) != len(pairs):
        return None
    try:
        return ClassifyQuery.model_validate(dict(pairs))
    except ValidationError:
        return None


@lru_cache(REMEMBERED)
def _headers(priority: bytes | None, canary_key: bytes | None) -> ClassifyHeaders | None:
    sent = {"x_priority": priority, "x_canary_key": canary_key}
    try:
        return ClassifyHeaders.model_validate(
            {name: value.decode("latin-1") for name, value in sent.items() if value is not None}
        )
    except ValidationError:
        return None
