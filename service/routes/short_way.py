"""The short way for the plain case: `POST /classify` with the image itself as the body.

FastAPI's routing, dependencies and validation, and ASGI's messages between them, take longer than a small network takes
to answer. Here the same models of query and headers are used, and the same functions order and answer, from and to the
bytes of the connection; whatever is not plain (a form, an explanation, a parameter to complain of, a body that is large
or comes in chunks) is left to the documented route before a byte of the body is read.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING, NamedTuple

import orjson
from starlette.datastructures import Headers

from service.errors import PROBLEM_JSON, ServiceError
from service.exchange import Exchange, request_id
from service.hang_up import OnHangUp
from service.intake import Share
from service.plain_head import METHOD, PATH, RawHeaders, plain_length, read_headers, read_query
from service.routes.dependencies import Parts
from service.routes.orders import answer_body, asked_model, last_byte, order_for
from service.routes.problems import problem_headers, told
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.tracing import trace_id, trace_response

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# A body that is refused is read to its end all the same, which a larger one is not worth.
MOST_BYTES = 2**20


class Reply(NamedTuple):
    """What goes back to the caller; `Content-Length` and what concerns the connection are for the connection to add."""

    status: int
    headers: RawHeaders
    body: bytes


class PlainRequest:
    """A plain request whose body is arriving: what it asks, what of it is there, and its share of the intake."""

    __slots__ = ("_chunks", "_error", "exchange", "headers", "query", "share", "span")

    def __init__(self, query: ClassifyQuery, headers: ClassifyHeaders, exchange: Exchange, share: Share) -> None:
        self.query = query
        self.headers = headers
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

    def __init__(self, service: Parts) -> None:
        self._service = service

    @property
    def draining(self) -> bool:
        """Whether connections are to end with their answers."""
        return self._service.lifecycle.draining

    def plain(self, method: bytes, target: bytes, headers: RawHeaders) -> PlainRequest | None:
        """A request of which the head has arrived, or None if it has to go the documented way."""
        query = read_query(method, target)
        if query is None:
            return None
        sent = dict(headers)
        stated = read_headers(sent)
        most = min(MOST_BYTES, self._service.settings.max_image_bytes)
        if stated is None or plain_length(headers, sent, most) is None or not self._is_authorised(headers):
            return None
        sent_id = sent.get(b"x-request-id")
        exchange = Exchange(request_id(sent_id.decode("latin-1") if sent_id else None))
        request = PlainRequest(query, stated, exchange, self._service.intake.open())
        if self._service.tracing is not None:
            request.span = self._service.tracing.begin(METHOD, PATH, Headers(raw=headers))
            exchange.trace_id = trace_id(request.span)
        return request

    def seconds_left(self, request: PlainRequest) -> float:
        """How long its body may still take to arrive."""
        return last_byte(request.query, request.exchange, self._service) - time.monotonic()

    async def answer(self, request: PlainRequest, on_hang_up: OnHangUp) -> Reply:
        """Answer a request whose body is complete, or never will be. To be followed by `record`."""
        try:
            with request.share:
                body = await self._classify(request, on_hang_up)
        except ServiceError as error:
            return _refusal(request, error)
        except (Exception, asyncio.CancelledError) as error:
            return _refusal(request, request.exchange.unexpected(error, draining=self.draining))
        return _reply(request, 200, [(b"content-type", b"application/json")], body)

    def record(self, request: PlainRequest) -> None:
        """Count the request and write its log line, once the answer is on its way."""
        request.exchange.measure(self._service.metrics)
        request.exchange.log_line(logging.INFO, METHOD, PATH)
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

    async def _classify(self, request: PlainRequest, on_hang_up: OnHangUp) -> bytes:
        service, exchange = self._service, request.exchange
        model = asked_model(request.query, request.headers, exchange, service)
        encoded = request.body()
        with model.held():
            order = order_for(model, request.query, request.headers, exchange, service, on_hang_up)
            answer = await service.pipeline.classify(encoded, order)
        exchange.stages = answer.stages
        return orjson.dumps(answer_body(order, answer))


def _refusal(request: PlainRequest, error: ServiceError) -> Reply:
    told(request.exchange, error)
    headers = [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    headers.append((b"content-type", PROBLEM_JSON.encode()))
    return _reply(request, error.status, headers, orjson.dumps(error.problem()))


def _reply(request: PlainRequest, status: int, headers: RawHeaders, body: bytes) -> Reply:
    exchange = request.exchange
    exchange.finish(status)
    headers.append((b"x-request-id", exchange.request_id.encode()))
    headers.append((b"server-timing", exchange.server_timing().encode()))
    if request.span is not None:
        headers.append((b"traceresponse", trace_response(request.span).encode()))
    return Reply(status, headers, body)
