"""The short way for the plain case: `POST /classify` with the image itself as the body.

Routing, dependencies and validation take FastAPI longer than a small network takes to answer. Here the same models of
query and headers are used, and the same functions order and answer; whatever is not plain (a form, an explanation, a
parameter to complain of) is left to the documented route before a byte of the body is read.
"""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl

import orjson
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.body import read_body
from service.deadlines import before
from service.errors import ServiceError
from service.exchange import exchange_of
from service.hang_up import on_hang_up_of
from service.middleware import ExchangeMiddleware
from service.routes.dependencies import Parts
from service.routes.orders import answer_body, asked_model, last_byte, order_for
from service.routes.problems import on_service_error
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.unread import UnreadBodyMiddleware
from service.uploads import is_image

PATH = "/classify"
# What one parameter or header says is asked again and again; what a caller varies at will must not fill the memory.
REMEMBERED = 256


@dataclass(frozen=True, slots=True)
class _Asked:
    query: ClassifyQuery
    headers: ClassifyHeaders


class ShortWay:
    """ASGI around the application: answers what is plain, and passes everything else on."""

    def __init__(self, app: ASGIApp, service: Parts) -> None:
        self._app = app
        self._service = service
        answer = UnreadBodyMiddleware(self._answer)
        self._short = ExchangeMiddleware(answer, service.lifecycle, service.metrics, service.tracing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        asked = _plainly_asked(scope) if scope["type"] == "http" and scope["path"] == PATH else None
        if asked is None:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})["asked"] = asked
        await self._short(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await self._classify(request, scope["state"]["asked"])
        except ServiceError as error:
            await (await on_service_error(request, error))(scope, receive, send)
            return
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _classify(self, request: Request, asked: _Asked) -> bytes:
        service, exchange = self._service, exchange_of(request)
        if service.keys:
            service.keys.check(request.headers)
        model = asked_model(asked.query, asked.headers, exchange, service)
        with model.held(), service.intake.open() as share:
            order = order_for(
                model, asked.query, asked.headers, exchange, service, on_hang_up_of(request.scope, request.receive)
            )
            async with before(last_byte(order, exchange, service)):
                encoded = await read_body(request, service.settings.max_image_bytes, share)
            answer = await service.pipeline.classify(encoded, order)
        exchange.stages = answer.stages
        return orjson.dumps(answer_body(order, answer))


def _plainly_asked(scope: Scope) -> _Asked | None:
    """The query and headers of a plain request, or None."""
    headers = dict(scope["headers"])
    if (
        scope["method"] != "POST"
        or len(headers) != len(scope["headers"])  # which of a repeated header counts is for the frameworks to say
        or headers.get(b"content-length") == b"0"
        or not is_image(headers.get(b"content-type", b"").decode("latin-1"))
    ):
        return None
    query = _query(scope["query_string"])
    stated = _headers(headers.get(b"x-priority"), headers.get(b"x-canary-key"))
    return None if query is None or stated is None else _Asked(query, stated)


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
