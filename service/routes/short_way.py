"""The short way for plain requests: a body in one piece, of moderate length, to `/classify` or to a model's `infer`.

FastAPI's routing, dependencies and validation, and ASGI's messages between them, take longer than a small network takes
to answer. Here the same functions order and answer, from and to the bytes of the connection; whatever is not plain (an
explanation, a parameter to complain of, a body that is large or comes in chunks) is left to the documented route before
a byte of the body is read. `short_classify.py` and `short_infer.py` tell what each can be asked.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from starlette.datastructures import Headers

from service.content import Content, RawHeaders
from service.errors import ServiceError
from service.exchange import Exchange, request_id
from service.hang_up import OnHangUp
from service.intake import Share
from service.plain_head import METHOD, plain_length
from service.routes.dependencies import Parts
from service.routes.problems import problem_headers, told
from service.tracing import trace_id, trace_response

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# A body that is refused is read to its end all the same, which a larger one is not worth.
MOST_BYTES = 2**20
_METHOD = METHOD.encode()


class Asked(Protocol):
    """What the head of a plain request asks."""

    @property
    def path(self) -> str:
        """Of the route that documents it."""

    @property
    def most_bytes(self) -> int:
        """How long its body may be."""

    def last_byte(self, exchange: Exchange) -> float:
        """Until when its body has to be there, in seconds of `time.monotonic()`."""

    async def answer(self, body: Callable[[], bytes], exchange: Exchange, on_hang_up: OnHangUp) -> Content:
        """The answer to a request with this body; ServiceError says why there is none."""

    def problem(self, error: ServiceError) -> Content:
        """How its callers are told of an error."""


# What a target and the headers, by name, ask; None where the request is for another route, or to be complained of.
Reader = Callable[[bytes, dict[bytes, bytes], Parts], Asked | None]


class Reply(NamedTuple):
    """What goes back to the caller; `Content-Length` and what concerns the connection are for the connection to add."""

    status: int
    headers: RawHeaders
    body: bytes


class PlainRequest:
    """A plain request whose body is arriving: what it asks, what of it is there, and its share of the intake."""

    __slots__ = ("_chunks", "_error", "asked", "exchange", "share", "span")

    def __init__(self, asked: Asked, exchange: Exchange, share: Share) -> None:
        self.asked = asked
        self.exchange = exchange
        self.share = share
        self.span: Span | None = None
        self._chunks: list[bytes] = []
        self._error: ServiceError | None = None

    def take(self, chunk: bytes) -> None:
        """Keep a chunk of the body, while there is memory for it."""
        if self._error is None:
            try:
                self.share.take(len(chunk))
                self._chunks.append(chunk)
            except ServiceError as error:
                self.fail(error)

    def fail(self, error: ServiceError) -> None:
        """Answer with this error, whatever else arrives."""
        self._error = error
        self._chunks.clear()

    def body(self) -> bytes:
        """The whole body, once; raises what is wrong with it."""
        if self._error is not None:
            raise self._error
        chunks, self._chunks = self._chunks, []  # the connection remembers the request till the next one
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class ShortWay:
    """Tells which requests are plain, and answers them."""

    def __init__(self, service: Parts, *readers: Reader) -> None:
        self._service = service
        self._readers = readers

    @property
    def draining(self) -> bool:
        """Whether connections are to end with their answers."""
        return self._service.lifecycle.draining

    def plain(
        self, method: bytes, target: bytes, headers: RawHeaders, since: float | None = None
    ) -> PlainRequest | None:
        """A request of which the head has arrived, or None if it has to go the documented way.

        It began at `since`, in seconds of `time.monotonic()`; now if that is None.
        """
        if method != _METHOD:
            return None
        sent = dict(headers)
        for read in self._readers:
            if (asked := read(target, sent, self._service)) is not None:
                break
        else:
            return None
        if plain_length(headers, sent, asked.most_bytes) is None or not self._is_authorised(headers):
            return None
        sent_id = sent.get(b"x-request-id")
        started = time.monotonic() if since is None else since
        exchange = Exchange(request_id(sent_id.decode("latin-1") if sent_id else None), started)
        request = PlainRequest(asked, exchange, self._service.intake.open())
        if self._service.tracing is not None:
            request.span = self._service.tracing.begin(METHOD, asked.path, Headers(raw=headers))
            exchange.trace_id = trace_id(request.span)
        return request

    def seconds_left(self, request: PlainRequest) -> float:
        """How long its body may still take to arrive."""
        return request.asked.last_byte(request.exchange) - time.monotonic()

    async def answer(self, request: PlainRequest, on_hang_up: OnHangUp) -> Reply:
        """Answer a request whose body is complete, or never will be. To be followed by `record`."""
        try:
            with request.share:
                content = await request.asked.answer(request.body, request.exchange, on_hang_up)
        except ServiceError as error:
            return _refusal(request, error)
        except (Exception, asyncio.CancelledError) as error:
            failure = request.exchange.unexpected(error, draining=self.draining)  # which logs it
            request.exchange.error_code = failure.code
            return _refused(request, failure)
        return _reply(request, 200, content)

    def record(self, request: PlainRequest) -> None:
        """Count the request and write its log line, once the answer is on its way."""
        request.exchange.measure(self._service.metrics)
        request.exchange.log_line(logging.INFO, METHOD, request.asked.path)
        if request.span is not None and self._service.tracing is not None:
            self._service.tracing.end(request.span, request.exchange)

    def _is_authorised(self, headers: RawHeaders) -> bool:
        if not self._service.keys:
            return True
        try:
            self._service.keys.check(Headers(raw=headers))
        except ServiceError:
            return False
        return True


def _refusal(request: PlainRequest, error: ServiceError) -> Reply:
    told(request.exchange, error)
    return _refused(request, error)


def _refused(request: PlainRequest, error: ServiceError) -> Reply:
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    content = request.asked.problem(error)
    return _reply(request, error.status, Content(headers + content.headers, content.body))


def _reply(request: PlainRequest, status: int, content: Content) -> Reply:
    exchange = request.exchange
    exchange.finish(status)
    headers = content.headers + exchange.headers()
    if request.span is not None:
        headers.append((b"traceresponse", trace_response(request.span).encode()))
    return Reply(status, headers, content.body)
