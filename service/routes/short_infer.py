"""`POST /v2/models/{name}/infer` by the short way: tensors whose bytes follow a little JSON, mostly."""

from collections.abc import Callable

import orjson

from service.content import Content
from service.errors import ServiceError
from service.exchange import Exchange
from service.hang_up import OnHangUp
from service.inference_rest import SentAs
from service.plain_head import InferTarget, read_infer_target
from service.routes.dependencies import Parts, asked_model
from service.routes.inferences import inferred, limit_of, refuse_when_full
from service.routes.short_way import MOST_BYTES

_JSON = [(b"content-type", b"application/json")]


class ShortInfer:
    """What is asked of a model; see `short_way.Asked`."""

    def __init__(self, target: InferTarget, sent_as: SentAs, canary_key: str, service: Parts) -> None:
        self._target = target
        self._sent_as = sent_as
        self._canary_key = canary_key
        self._service = service

    @property
    def path(self) -> str:
        """As it was sent."""
        return self._target.path

    @property
    def most_bytes(self) -> int:
        """Of a request."""
        return min(MOST_BYTES, self._service.settings.max_request_bytes)

    def last_byte(self, exchange: Exchange) -> float:
        """As the settings say; the caller's own limit is in the body."""
        return limit_of(exchange, self._service)

    async def answer(self, body: Callable[[], bytes], exchange: Exchange, on_hang_up: OnHangUp) -> Content:
        """Its output tensor."""
        model = asked_model(self._target.model, self._target.version, self._canary_key, exchange, self._service)
        sent = body()
        refuse_when_full(model)
        with model.held():
            return await inferred(model, sent, self._sent_as, exchange, self._service, on_hang_up)

    def problem(self, error: ServiceError) -> Content:
        """In the protocol's form."""
        return Content(_JSON, orjson.dumps({"error": error.detail}))


def read_infer(target: bytes, sent: dict[bytes, bytes], service: Parts) -> ShortInfer | None:
    """What is asked of a model; see `short_way.Reader`."""
    asked = read_infer_target(target)
    if asked is None:
        return None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in sent.items()}
    return ShortInfer(asked, SentAs.of(headers), headers.get("x-canary-key", ""), service)
