"""`POST /classify` and `POST /classify/batch`."""

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse

from service.deadlines import before
from service.errors import InvalidParameter, ServiceError
from service.exchange import exchange_of
from service.hang_up import on_hang_up_of
from service.pipeline import Answer, Question
from service.repository import ServedModel
from service.routes.dependencies import Service
from service.routes.orders import answer_body, form_limits, last_byte, model_of, order_for
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
from service.tickets import slowest
from service.uploads import read_image, read_images

router = APIRouter(tags=["classification"], responses=PROBLEMS)


@router.post("/classify", response_model=ClassifyBody, openapi_extra=ONE_IMAGE)
async def classify(
    request: Request,
    query: Annotated[ExplainQuery, Query()],
    headers: Annotated[ClassifyHeaders, Header()],
    service: Service,
) -> JSONResponse:
    """Classify one image: the body itself, or the part `file` of a form."""
    exchange = exchange_of(request)
    model = model_of(query, headers, exchange, service)
    with model.held(), service.intake.open() as share:
        order = order_for(model, query, headers, exchange, service, on_hang_up_of(request.scope, request.receive))
        order = replace(order, why=_question(query, model))
        async with before(last_byte(query, exchange, service)):
            encoded = await read_image(request, form_limits(service.settings), share)
        answer = await service.pipeline.classify(encoded, order)
    exchange.stages = answer.stages
    return JSONResponse(answer_body(order, answer))


@router.post("/classify/batch", response_model=BatchBody, openapi_extra=MANY_IMAGES)
async def classify_batch(
    request: Request,
    query: Annotated[ClassifyQuery, Query()],
    headers: Annotated[ClassifyHeaders, Header()],
    service: Service,
) -> JSONResponse:
    """Classify the parts `files` of a form: one result an image, in order; a bad image fails alone."""
    exchange = exchange_of(request)
    model = model_of(query, headers, exchange, service)
    with model.held(), service.intake.open() as share:
        order = order_for(model, query, headers, exchange, service, on_hang_up_of(request.scope, request.receive))
        async with before(last_byte(query, exchange, service)):
            most_bytes = service.settings.max_request_bytes
            images = await read_images(request, most_bytes, form_limits(service.settings), share)
        results = await service.pipeline.classify_many(images, order)
    for failure in results:
        if isinstance(failure, ServiceError):
            exchange.log_failure(failure)
    exchange.stages = slowest([each.stages for each in results if isinstance(each, Answer)])
    return JSONResponse(
        {
            "model": order.model.name,
            "version": order.model.version,
            "results": [_result(each) for each in results],
        }
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


def _result(result: Answer | ServiceError) -> dict[str, Any]:
    if isinstance(result, Answer):
        return {"predictions": result.predictions}
    return {"error": {"code": result.code, "detail": result.detail}}
