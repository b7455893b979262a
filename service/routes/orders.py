"""What a caller of the classification routes asks for, as an order to the pipeline, and the answer in JSON's terms."""

from typing import Any

from service.answer import labels_in_answer, predictions_body
from service.body import FormLimits
from service.exchange import Exchange
from service.hang_up import OnHangUp
from service.pipeline import Answer, Order
from service.repository import ServedModel
from service.routes.dependencies import Parts, asked_model, side_key
from service.schemas import ClassifyHeaders, ClassifyQuery
from service.settings import Settings
from service.tickets import Priority


def model_of(query: ClassifyQuery, headers: ClassifyHeaders, exchange: Exchange, service: Parts) -> ServedModel:
    """The model that is asked; the caller has to hold it at once."""
    name = query.model or service.settings.default_model
    return asked_model(name, query.version, headers.x_canary_key, exchange, service)


def order_for(
    model: ServedModel,
    query: ClassifyQuery,
    headers: ClassifyHeaders,
    exchange: Exchange,
    service: Parts,
    on_hang_up: OnHangUp,
) -> Order:
    """What is asked of the model; refuses what can be refused before the body is read."""
    priority = Priority[headers.x_priority.upper()]
    top_k = labels_in_answer(query.top_k, len(model.card.labels))
    key = side_key(headers.x_canary_key, exchange)
    if not service.settings.cache_bytes:  # with a cache, the answer may be there
        model.batcher.refuse_when_full(priority)
    return Order(
        model=model,
        top_k=top_k,
        priority=priority,
        shadow=None if query.version else service.repository.shadow_of(model, key),
        deadline=exchange.started + (query.timeout_ms or service.settings.request_timeout_ms) / 1000,
        on_hang_up=on_hang_up,
    )


def last_byte(query: ClassifyQuery, exchange: Exchange, service: Parts) -> float:
    """Until when the body must have arrived: a caller may shorten the server's own limit and not lengthen it."""
    own = service.settings.request_timeout_ms
    return exchange.started + min(own, query.timeout_ms or own) / 1000


def form_limits(settings: Settings) -> FormLimits:
    """The bounds of an upload."""
    return FormLimits(settings.max_image_bytes, settings.max_request_images)


def answer_body(order: Order, answer: Answer) -> dict[str, Any]:
    """The answer for one image, with its explanation where one was asked for."""
    body = predictions_body(order.model.name, order.model.version, answer.predictions)
    return body | ({"explanation": answer.explanation} if answer.explanation else {})
