"""The Open Inference Protocol v2 and Triton's extensions to it: what tritonclient, perf_analyzer and KServe speak.

`service/inference_rest.py` has the form of requests and answers; here is what is asked where.
"""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from service.body import read_body
from service.deadlines import before
from service.errors import EmptyBody
from service.exchange import exchange_of
from service.hang_up import on_hang_up_of
from service.inference_models import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    signature_of,
)
from service.inference_protocol import Signature
from service.inference_rest import SentAs, parse_control, parse_index
from service.repository import ServedModel
from service.routes.dependencies import (
    Parts,
    Service,
    administration,
    asked_model,
    authorised_to_administer,
    on_admin_port,
)
from service.routes.inferences import inferred, limit_of, refuse_when_full
from service.schemas import INFERENCE, INFERRED, ONE_OF_ITS_VERSIONS, ONLY_READY, PROTOCOL_ERRORS

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=PROTOCOL_ERRORS)
# Probes have no key.
probes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses=PROTOCOL_ERRORS)
administrative = APIRouter(
    prefix="/v2",
    tags=["Open Inference Protocol"],
    responses=PROTOCOL_ERRORS,
    dependencies=[Depends(authorised_to_administer), Depends(on_admin_port)],
)

# Triton's clients may send a model with the request; here models come from the folder.
MAX_CONTROL_BYTES = 2**16
ONE = "/models/{name}"
ONE_VERSION = "/models/{name}/versions/{version:int}"


@router.get("")
async def server() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return server_metadata()


@probes.get("/health/live")
async def live(service: Service) -> JSONResponse:
    """200 while the process can recover."""
    fatal = service.lifecycle.fatal
    return JSONResponse({"error": fatal}, 503) if fatal else JSONResponse({"live": True})


@probes.get("/health/ready")
async def ready(service: Service) -> JSONResponse:
    """200 when every model is in service and the server is not stopping."""
    lifecycle = service.lifecycle
    if lifecycle.ready:
        return JSONResponse({"ready": True})
    return JSONResponse({"error": lifecycle.fatal or lifecycle.reason or lifecycle.phase}, 503)


@router.get("/models/stats")
async def all_statistics(service: Service) -> dict[str, Any]:
    """What every model has done since it was loaded."""
    return model_statistics(service.repository)


@router.get(ONE)
@router.get(ONE_VERSION)
async def metadata(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """Inputs, outputs and versions of a model; -1 stands for any size."""
    model = service.repository.find(name, version)
    return model_metadata(model, _signature(model, service), service.repository)


@router.get(f"{ONE}/ready")
@router.get(f"{ONE_VERSION}/ready")
async def model_ready(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """200 when the model can answer."""
    return {"name": service.repository.find(name, version).name, "ready": True}


@router.get(f"{ONE}/config")
@router.get(f"{ONE_VERSION}/config")
async def config(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """The model as Triton would configure it."""
    model = service.repository.find(name, version)
    return model_config(model, _signature(model, service))


@router.get(f"{ONE}/stats")
@router.get(f"{ONE_VERSION}/stats")
async def statistics(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """What a model, or one version of it, has done since it was loaded."""
    return model_statistics(service.repository, name, version)


@router.post("/repository/index", openapi_extra=ONLY_READY)
async def index(request: Request, service: Service) -> list[dict[str, str]]:
    """Every version that was loaded or tried, and why one is not in service; with `ready`, only those that are."""
    body = await _small_body(request, service)
    return repository_index(service.repository, only_ready=bool(body.strip()) and parse_index(body))


@administrative.post("/repository/models/{name}/load", openapi_extra=ONE_OF_ITS_VERSIONS)
async def load(request: Request, service: Service, name: str) -> None:
    """Load a model's new, changed and failed versions from the folder; answers when they are in service."""
    with administration(f"load {name}", request, service):
        await service.control.load(name, await _stated_version(request, service))


@administrative.post("/repository/models/{name}/unload", openapi_extra=ONE_OF_ITS_VERSIONS)
async def unload(request: Request, service: Service, name: str) -> None:
    """Take a model out of service; answers when its requests are answered and its memory is free."""
    with administration(f"unload {name}", request, service):
        await service.control.unload(name, await _stated_version(request, service))


async def _stated_version(request: Request, service: Parts) -> int | None:
    """The parameter `version` of a load or unload; all versions where there is none."""
    body = await _small_body(request, service)
    return parse_control(body) if body else None


async def _small_body(request: Request, service: Parts) -> bytes:
    with service.intake.open() as share:
        try:
            return await read_body(request, MAX_CONTROL_BYTES, share)
        except EmptyBody:
            return b""


@router.post(f"{ONE}/infer", openapi_extra=INFERENCE, responses=INFERRED)
@router.post(f"{ONE_VERSION}/infer", openapi_extra=INFERENCE, responses=INFERRED)
async def infer(request: Request, service: Service, name: str, version: int | None = None) -> Response:
    """Logits or classes for a batch of images, as JSON or binary tensors."""
    exchange = exchange_of(request)
    model = asked_model(name, version, request.headers.get("x-canary-key", ""), exchange, service)
    with model.held(), service.intake.open() as share:
        refuse_when_full(model)
        async with before(limit_of(exchange, service)):
            body = await read_body(request, service.settings.max_request_bytes, share)
        on_hang_up = on_hang_up_of(request.scope, request.receive)
        answer = await inferred(model, body, SentAs.of(request.headers), exchange, service, on_hang_up)
    return Response(answer.body, headers={name.decode(): value.decode() for name, value in answer.headers})


def _signature(model: ServedModel, service: Parts) -> Signature:
    return signature_of(model, service.settings.max_request_images)
