"""The head of a plain request: the body comes in one piece, and what is asked of it fits a target and headers.

Two take such requests by a short way: a connection of the server (`routes/short_way.py`), which has the head in pieces
from uvicorn's parser, and a worker process (`http_worker.py`), which has it in bytes and takes only the simplest ones:
for the labels of one image, and for what a tensor of one image gives.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Self
from urllib.parse import parse_qsl

import httptools
from pydantic import ValidationError

from service.artifact import ModelCard
from service.content import RawHeaders
from service.folder import VERSION_DIGITS
from service.image import PROMPT, Bounds, is_within
from service.inference_rest import HEADER_LENGTH
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.uploads import is_form, is_image

METHOD, PATH = "POST", "/classify"
_METHOD, _TARGET = METHOD.encode(), PATH.encode()
# A name with other characters, or a query, is for the frameworks to decode.
_INFER_TARGET = re.compile(rf"/v2/models/([A-Za-z0-9._-]+)(?:/versions/([0-9]{{1,{VERSION_DIGITS}}}))?/infer")
# What one parameter or header says is asked again and again; what a caller varies at will must not fill the memory.
REMEMBERED = 256
# A longer head, target or header is not worth remembering.
MOST_HEAD_BYTES = 2**12
MOST_TARGET_BYTES = 2**9
MOST_VALUE_BYTES = 2**8
HEAD_END = b"\r\n\r\n"
# What HTTP/1.0 may say of its connection; of several words httptools takes the wrong one.
_OLD_CONNECTIONS = (b"close", b"keep-alive")
# Of these each needs more than to read a body and answer.
_NOT_PLAIN = (b"transfer-encoding", b"expect", b"upgrade")
# To these a worker has no answer of its own; nor to the parameters of a tensor.
_NOT_SIMPLE = (b"x-priority", b"x-canary-key", b"content-encoding")
_NOT_SIMPLE_PARAMETERS = (b'"timeout"', b'"priority"')
# Longer JSON than of a tensor whose bytes are behind it.
MOST_JSON_BYTES = 2**12
# To find and to write more of them takes longer than to decode a photograph.
MOST_LABELS = 2**9


class NotSimple(Exception):
    """Not a request that a worker answers, or not one alone."""


class MostBytes(NamedTuple):
    """How long the body of a simple request may be."""

    image: int
    tensor: int

    @classmethod
    def of(cls, max_image_bytes: int, max_request_bytes: int) -> Self:
        """As the settings allow, and no more than is soon read."""
        return cls(min(PROMPT.bytes, max_image_bytes), min(PROMPT.bytes, max_request_bytes))


class SimpleHead(NamedTuple):
    """What a simple request to `path` asks of the model called so, "" for the one there is.

    The body has `length` bytes. They are an encoded image, or a form with one, of which `top_k` labels are asked, None
    for the usual number; or a tensor, behind JSON of `json_length`. `headers` are what came with it, and its connection
    goes on after the answer where it is to `keep_alive`.
    """

    path: str
    model: str
    top_k: int | None
    json_length: int | None
    length: int
    request_id: str | None
    headers: Mapping[str, str]
    http_version: str
    keep_alive: bool

    @property
    def content_type(self) -> str:
        """Of the body."""
        return self.headers.get("content-type", "")

    @property
    def is_form(self) -> bool:
        """Whether the image is in a form."""
        return self.json_length is None and is_form(self.content_type)


class SimpleRequest(NamedTuple):
    """One request: its head, and what has arrived of its body."""

    head: SimpleHead
    body: bytes

    @property
    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return len(self.body) == self.head.length

    def is_within(self, bounds: Bounds, card: ModelCard) -> bool:
        """Whether it has one image for the model of this card, which can be preprocessed within these bounds, as far as
        can be seen of what has arrived, and without reading a form."""
        if self.head.length > bounds.bytes:
            return False
        if self.head.json_length is not None:
            return self.head.length - self.head.json_length == card.input.bytes
        return self.head.is_form or not self.complete or is_within(bounds, self.body, card.preprocessing)


class InferTarget(NamedTuple):
    """What the target of a request to a model's `infer` says."""

    path: str
    model: str
    version: int | None


def read_query(target: bytes) -> ClassifyQuery | None:
    """What the query says, where the target is `/classify`; None where it is not, or long, or to be complained of."""
    path, _, query_string = target.partition(b"?")
    if path != _TARGET or b"#" in query_string or len(target) > MOST_TARGET_BYTES:
        return None
    return _query(query_string)


def read_infer_target(target: bytes) -> InferTarget | None:
    """What the target says, where it is a model's `infer`; None where it is not, or long, or to be decoded first."""
    return _infer_target(target) if len(target) <= MOST_TARGET_BYTES else None


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


def is_plain_version(http_version: str, headers: RawHeaders) -> bool:
    """Whether it is clear from the version and the headers if the connection goes on after the answer."""
    if http_version != "1.0":
        return http_version == "1.1"
    return all(value.lower() in _OLD_CONNECTIONS for name, value in headers if name == b"connection")


def upload_type(sent: dict[bytes, bytes]) -> str | None:
    """The Content-Type, by the headers by name, of a body that is an image or a form; None for every other."""
    content_type = sent.get(b"content-type", b"").decode("latin-1")
    return content_type if is_image(content_type) or is_form(content_type) else None


def simple_request(received: bytes, most: MostBytes) -> SimpleRequest | None:
    """The one request that was received; None while some of its head is missing.

    Args:
        received: from a request's first byte on.
        most: how long it may be.

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
    if head is None or len(received) > end + head.length:
        raise NotSimple
    if head.length > (most.image if head.json_length is None else most.tensor):
        raise NotSimple
    about_the_tensor = received[end : end + (head.json_length or 0)]
    if any(each in about_the_tensor for each in _NOT_SIMPLE_PARAMETERS):
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
    length = plain_length(parsed.headers, sent, PROMPT.bytes)
    if parser.get_method() != _METHOD or length is None or any(name in sent for name in _NOT_SIMPLE):
        return None
    http_version = parser.get_http_version()
    if not is_plain_version(http_version, parsed.headers):
        return None
    asked = _asked_of_an_image(parsed.target, sent) or _asked_of_a_tensor(parsed.target, sent, length)
    if asked is None:
        return None
    request_id = sent.get(b"x-request-id")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in parsed.headers}
    return SimpleHead(
        *asked,
        length,
        request_id.decode("latin-1") if request_id else None,
        headers,
        http_version,
        keep_alive=parser.should_keep_alive(),
    )


# The path, the model, the number of labels, and the length of the JSON.
_Asked = tuple[str, str, int | None, int | None]


def _asked_of_an_image(target: bytes, sent: dict[bytes, bytes]) -> _Asked | None:
    query = read_query(target)
    if query is None or upload_type(sent) is None or query.version is not None or query.timeout_ms is not None:
        return None
    if query.top_k is not None and query.top_k > MOST_LABELS:
        return None
    return PATH, query.model or "", query.top_k, None


def _asked_of_a_tensor(target: bytes, sent: dict[bytes, bytes], length: int) -> _Asked | None:
    asked, json_length = read_infer_target(target), sent.get(HEADER_LENGTH.encode(), b"")
    known = json_length.isdigit() and len(json_length) <= len(str(MOST_JSON_BYTES))
    if asked is None or asked.version is not None or not known:
        return None
    if int(json_length) > min(MOST_JSON_BYTES, length):
        return None
    return asked.path, asked.model, None, int(json_length)


@lru_cache(REMEMBERED)
def _infer_target(target: bytes) -> InferTarget | None:
    path = target.decode("latin-1")
    found = _INFER_TARGET.fullmatch(path)
    return InferTarget(path, found[1], int(found[2]) if found[2] else None) if found else None


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
