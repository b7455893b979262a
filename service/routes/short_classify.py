"""`POST /classify` by the short way: the body is the image itself, or a form with it."""

from collections.abc import Callable

import orjson

from service.content import Content
from service.errors import PROBLEM_JSON, ServiceError
from service.exchange import Exchange
from service.hang_up import OnHangUp
from service.plain_head import PATH, read_headers, read_query, upload_type
from service.routes.dependencies import Parts
from service.routes.orders import answer_body, form_limits, last_byte, model_of, order_for
from service.routes.short_way import MOST_BYTES
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.uploads import image_in, is_form

_JSON = [(b"content-type", b"application/json")]
_PROBLEM = [(b"content-type", PROBLEM_JSON.encode())]


class ShortClassify:
    """What is asked of an image; see `short_way.Asked`."""

    path = PATH

    def __init__(self, query: ClassifyQuery, content_type: str, headers: ClassifyHeaders, service: Parts) -> None:
        self._query = query
        self._content_type = content_type
        self._headers = headers
        self._service = service

    @property
    def most_bytes(self) -> int:
        """Of an image; a form around one of nearly that size goes the documented way."""
        return min(MOST_BYTES, self._service.settings.max_image_bytes)

    def last_byte(self, exchange: Exchange) -> float:
        """As the query says."""
        return last_byte(self._query, exchange, self._service)

    async def answer(self, body: Callable[[], bytes], exchange: Exchange, on_hang_up: OnHangUp) -> Content:
        """Its labels."""
        service = self._service
        model = model_of(self._query, self._headers, exchange, service)
        encoded = body()
        with model.held():
            order = order_for(model, self._query, self._headers, exchange, service, on_hang_up)
            if is_form(self._content_type):
                encoded = image_in(encoded, self._content_type, form_limits(service.settings))
            answer = await service.pipeline.classify(encoded, order)
        exchange.stages = answer.stages
        return Content(_JSON, orjson.dumps(answer_body(order, answer)))

    def problem(self, error: ServiceError) -> Content:
        """RFC 9457."""
        return Content(_PROBLEM, orjson.dumps(error.problem()))


def read_classify(target: bytes, sent: dict[bytes, bytes], service: Parts) -> ShortClassify | None:
    """What is asked of an image; see `short_way.Reader`."""
    query = read_query(target)
    headers = None if query is None else read_headers(sent)
    content_type = upload_type(sent)
    if query is None or headers is None or content_type is None:
        return None
    return ShortClassify(query, content_type, headers, service)
