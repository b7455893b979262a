"""`POST /classify` and `POST /classify/batch`."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse

from service.body import FormLimits
from service.deadlines import before
from service.errors import InvalidParameter, ServiceError
from service.exchange import exchange_of
from service.pipeline import Answer, Order, Question
from service.repository import ServedModel
from service.routes.dependencies import Parts, Service
from service.schemas import (
    MANY_IMAGES,
    ONE_IMAGE,
    PROBLEMS,
    BatchBody,
    ClassifyBody,
    ClassifyHeaders,
    ClassifyQuery,
    ExplainQuery,
)
from service.settings import Settings
from service.tickets import Priority, slowest
from service.uploads import read_image, read_images

router = APIRouter(tags=["classification"], responses=PROBLEMS)

DEFAULT_TOP_K = 5


@router.post("/classify", response_model=ClassifyBody, openapi_extra=ONE_IMAGE)
async def classify(
    request: Request,
    query: Annotated[ExplainQuery, Query()],
    headers: Annotated[ClassifyHeaders, Header()],
    service: Service,
) -> JSONResponse:
    """Classify one image: the body itself, or the part `file` of a form."""
    model = _model(request, query, headers, service)
    with model.held(), service.intake.open() as share:
        order = replace(_order(request, query, headers, model, service), why=_question(query, model))
        async with before(_last_byte(request, order, service)):
            encoded = await read_image(request, _limits(service.settings), share)
        answer = await service.pipeline.classify(encoded, order)
    exchange_of(request).stages = answer.stages
    body = {"model": order.model.name, "version": order.model.version, "predictions": answer.predictions}
    return JSONResponse(body | ({"explanation": answer.explanation} if answer.explanation else {}))


@router.post("/classify/batch", response_model=BatchBody, openapi_extra=MANY_IMAGES)
async def classify_batch(
    request: Request,
    query: Annotated[ClassifyQuery, Query()],
    headers: Annotated[ClassifyHeaders, Header()],
    service: Service,
) -> JSONResponse:
    """Classify the parts `files` of a form: one result an image, in order; a bad image fails alone."""
    model = _model(request, query, headers, service)
    with model.held(), service.intake.open() as share:
        order = _order(request, query, headers, model, service)
        async with before(_last_byte(request, order, service)):
            images = await read_images(request, _limits(service.settings), share)
        results = await service.pipeline.classify_many(images, order)
    for failure in results:
        if isinstance(failure, ServiceError):
            exchange_of(request).log_failure(failure)
    exchange_of(request).stages = slowest([each.stages for each in results if isinstance(each, Answer)])
    return JSONResponse(
        {
            "model": order.model.name,
            "version": order.model.version,
            "results": [_result(each) for each in results],
        }
    )


def _model(request: Request, query: ClassifyQuery, headers: ClassifyHeaders, service: Parts) -> ServedModel:
    """The model that is asked; the caller has to hold it at once."""
    exchange = exchange_of(request)
    name = query.model or service.settings.default_model
    model = service.repository.find(name, query.version, _key(request, headers))
    exchange.model, exchange.version = model.name, str(model.version)
    return model


def _key(request: Request, headers: ClassifyHeaders) -> str:
    """What keeps a caller on its side of a canary or a shadow."""
    return headers.x_canary_key or exchange_of(request).request_id


def _order(
    request: Request, query: ClassifyQuery, headers: ClassifyHeaders, model: ServedModel, service: Parts
) -> Order:
    """What is asked of the model; refuses what can be refused before the body is read."""
    priority = Priority[headers.x_priority.upper()]
    classes = len(model.card.labels)
    if query.top_k is not None and query.top_k > classes:
        raise InvalidParameter(f"top_k: the model has {classes} classes.")
    if not service.settings.cache_bytes:  # with a cache, the answer may be there
        model.batcher.refuse_when_full(priority)
    return Order(
        model=model,
        top_k=query.top_k or min(DEFAULT_TOP_K, classes),
        priority=priority,
        shadow=None if query.version else service.repository.shadow_of(model, _key(request, headers)),
        deadline=exchange_of(request).started + (query.timeout_ms or service.settings.request_timeout_ms) / 1000,
        disconnected=disconnect_of(request),
    )


def _question(query: ExplainQuery, model: ServedModel) -> Question | None:
    """What is to be explained; refuses what this model cannot explain."""
    if query.explain is None and query.class_ is not None:
        raise InvalidParameter("class: it goes with explain=cam.")
    if query.explain is None:
        return None
    if model.head is None:
        raise InvalidParameter(f"explain: {_unexplained(model)}, so its answers have no class activation map.")
    if query.class_ is not None and query.class_ >= len(model.card.labels):
        raise InvalidParameter(f"class: the model has {len(model.card.labels)} classes, counted from 0.")
    return Question(model.head, query.class_)


def _unexplained(model: ServedModel) -> str:
    if model.card.source is None:
        return "this model has no card that names its last layer"
    return f"{model.card.architecture} does not end in global average pooling"


def _last_byte(request: Request, order: Order, service: Parts) -> float:
    """Until when the body must have arrived: a caller may shorten the server's own limit and not lengthen it."""
    return min(order.deadline, exchange_of(request).started + service.settings.request_timeout_ms / 1000)


def _limits(settings: Settings) -> FormLimits:
    return FormLimits(settings.max_request_bytes, settings.max_image_bytes, settings.max_request_images)


def disconnect_of(request: Request) -> Callable[[], Awaitable[None]]:
    """What ends when the caller has hung up."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return disconnected


def _result(result: Answer | ServiceError) -> dict[str, Any]:
    if isinstance(result, Answer):
        return {"predictions": result.predictions}
    return {"error": {"code": result.code, "detail": result.detail}}
