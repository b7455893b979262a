"""Around every request, pure ASGI: request id, Server-Timing, the request's log line and metrics, and the last net.

Starlette's BaseHTTPMiddleware is not used: it hides the client's disconnect from the routes.
"""

import asyncio
import json
import logging

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import PROBLEM_JSON
from service.exchange import Exchange, request_id, speaks_inference_protocol
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.tracing import Tracing, trace_id, trace_response

CLASSIFICATION_PATHS = frozenset({"/classify", "/classify/batch"})


def _is_classification(scope: Scope) -> bool:
    path: str = scope["path"]
    classifies = path in CLASSIFICATION_PATHS or (path.startswith("/v2/models/") and path.endswith("/infer"))
    return classifies and scope["method"] == "POST"


class ExchangeMiddleware:
    """Opens an Exchange for each request and closes it with headers, one log line and the request's metrics."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other ASGI events pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(request_id(headers.get("x-request-id")))
        scope.setdefault("state", {})["exchange"] = exchange
        span = None
        if self._tracing is not None and _is_classification(scope):
            span = self._tracing.begin(scope["method"], scope["path"], headers)
            exchange.trace_id = trace_id(span)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(message, exchange)
                if span is not None:
                    message["headers"].append((b"traceresponse", trace_response(span).encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except (Exception, asyncio.CancelledError) as error:
            await self._answer_failure(error, exchange, scope, send_with_headers)
        finally:
            self._record(scope, exchange)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, exchange)

    def _add_headers(self, message: Message, exchange: Exchange) -> None:
        exchange.finish(message["status"])
        headers = message["headers"] = list(message.get("headers", ()))
        headers += exchange.headers()
        if self._lifecycle.draining:
            # Keep-alive connections must end while the listener is still open, or a request is lost on each.
            headers.append((b"connection", b"close"))

    async def _answer_failure(self, error: BaseException, exchange: Exchange, scope: Scope, send: Send) -> None:
        failure = exchange.unexpected(error, draining=self._lifecycle.draining)
        if exchange.status:
            raise error
        exchange.error_code = failure.code
        protocol = speaks_inference_protocol(scope["path"])
        body = json.dumps({"error": failure.detail} if protocol else failure.problem()).encode()
        headers = [
            (b"content-type", b"application/json" if protocol else PROBLEM_JSON.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if failure.retry_after is not None:
            headers.append((b"retry-after", str(failure.retry_after).encode()))
        await send({"type": "http.response.start", "status": failure.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _record(self, scope: Scope, exchange: Exchange) -> None:
        classification = _is_classification(scope)
        if classification:
            exchange.measure(self._metrics)
        exchange.log_line(logging.INFO if classification else logging.DEBUG, scope["method"], scope["path"])
