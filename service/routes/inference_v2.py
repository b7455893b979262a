"""The Open Inference Protocol v2 and Triton's extensions to it: what tritonclient, perf_analyzer and KServe speak.

`service/inference_protocol.py` has the format of requests and answers; here is what is asked where.
"""

from collections.abc import Callable
from importlib.metadata import version as package_version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.body import read_body
from service.compression import accepted, deflate, inflate
from service.deadlines import before
from service.errors import InvalidRequest
from service.exchange import exchange_of
from service.inference_protocol import Inference, Signature
from service.inference_rest import parse, render
from service.pipeline import Order
from service.repository import ServedModel
from service.routes.classify import disconnect_of, slowest
from service.routes.dependencies import Parts, Service

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

NAME = "resnet-service"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
    "binary_tensor_data",
    "parameters",
)
HEADER_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"
# A smaller answer is not worth compressing: it fits a packet.
WORTH_COMPRESSING = 1400
ONE = "/models/{name}"
ONE_VERSION = "/models/{name}/versions/{version:int}"


@router.get("")
async def server() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": NAME, "version": package_version(NAME), "extensions": EXTENSIONS}


@router.get("/health/live")
async def live(service: Service) -> JSONResponse:
    """200 while the process can recover."""
    fatal = service.lifecycle.fatal
    return JSONResponse({"error": fatal}, 503) if fatal else JSONResponse({"live": True})


@router.get("/health/ready")
async def ready(service: Service) -> JSONResponse:
    """200 when every model is in service and the server is not stopping."""
    lifecycle = service.lifecycle
    if lifecycle.ready:
        return JSONResponse({"ready": True})
    return JSONResponse({"error": lifecycle.fatal or lifecycle.reason or lifecycle.phase}, 503)


@router.get("/models/stats")
async def all_statistics(service: Service) -> dict[str, Any]:
    """What every model has done since it was loaded."""
    return {"model_stats": [_statistics(each) for each in service.repository]}


@router.get(ONE)
@router.get(ONE_VERSION)
async def metadata(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """Inputs, outputs and versions of a model; -1 stands for any size."""
    model = service.repository.find(name, version)
    signature = _signature(model, service)
    return {
        "name": model.name,
        "versions": [str(each.version) for each in service.repository if each.name == model.name],
        "platform": PLATFORM,
        "inputs": [{"name": signature.input, "datatype": "UINT8", "shape": [-1, *_image_shape(signature)]}],
        "outputs": [{"name": signature.output, "datatype": "FP32", "shape": [-1, len(signature.labels)]}],
    }


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
    signature = _signature(model, service)
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": signature.max_images,
        "input": [
            {
                "name": signature.input,
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NHWC",
                "dims": list(_image_shape(signature)),
            }
        ],
        "output": [
            {
                "name": signature.output,
                "data_type": "TYPE_FP32",
                "dims": [len(signature.labels)],
                "label_filename": "",
            }
        ],
        "instance_group": [{"kind": "KIND_CPU" if model.device == "cpu" else "KIND_GPU", "count": 1}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }


@router.get(f"{ONE}/stats")
@router.get(f"{ONE_VERSION}/stats")
async def statistics(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """What a model, or one version of it, has done since it was loaded."""
    model = service.repository.find(name, version)
    versions = [each for each in service.repository if each.name == model.name and version in (None, each.version)]
    return {"model_stats": [_statistics(each) for each in versions]}


@router.post("/repository/index")
async def index(service: Service) -> list[dict[str, str]]:
    """Every version of every model, in service or not, and why not."""
    served = [(each.name, each.version, "READY", "") for each in service.repository]
    failed = [(each.name, each.version, "UNAVAILABLE", reason) for each, reason in service.repository.failed.items()]
    return [
        {"name": name, "version": str(version), "state": state, "reason": reason}
        for name, version, state, reason in sorted(served + failed)
    ]


@router.post("/repository/models/{name}/{action}")
async def control(name: str, action: str) -> None:
    """Models are those that were in the folder at the start; nothing loads or unloads them by request."""
    raise InvalidRequest(f"explicit {action[:16]} of {name[:64]} is not allowed: models are loaded at the start only")


@router.post(f"{ONE}/infer")
@router.post(f"{ONE_VERSION}/infer")
async def infer(request: Request, service: Service, name: str, version: int | None = None) -> Response:
    """Logits or classes for a batch of images, as JSON or binary tensors."""
    exchange = exchange_of(request)
    model = service.repository.find(name, version)
    exchange.model, exchange.version = model.name, str(model.version)
    model.batcher.refuse_when_full()
    signature = _signature(model, service)
    limit = exchange.started + service.settings.request_timeout_ms / 1000
    with service.intake.open() as share:
        async with before(limit):
            body = await read_body(request, service.settings.max_request_bytes, share)
            asked = await service.pipeline.aside(_parsing(request, body, signature, service))
        deadline = min(limit, exchange.started + asked.timeout_us / 1e6) if asked.timeout_us else limit
        order = Order(model, 1, deadline, disconnect_of(request))
        logits, stages = await service.pipeline.infer(asked.images, order)
    exchange.stages = slowest(stages)
    about = {"model_name": model.name, "model_version": str(model.version), "id": asked.id}
    coding = accepted(request.headers.get("accept-encoding", ""))
    return await service.pipeline.aside(lambda: _answer(*render(logits, asked.wanted, signature, about), coding=coding))


def _parsing(request: Request, body: bytes, signature: Signature, service: Parts) -> Callable[[], Inference]:
    """Inflating and parsing, to be done beside the event loop: a tensor in JSON takes long to read."""
    coding = request.headers.get("content-encoding", "")
    length = request.headers.get(HEADER_LENGTH)
    size = service.settings.max_request_bytes
    return lambda: parse(inflate(body, coding, size), length, signature)


def _answer(body: bytes, header_length: int | None, *, coding: str) -> Response:
    headers = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
    if coding and len(body) > WORTH_COMPRESSING:
        body = deflate(body, coding)
        headers |= {"content-encoding": coding, "vary": "accept-encoding"}
    return Response(body, headers=headers, media_type="application/json" if header_length is None else OCTETS)


def _signature(model: ServedModel, service: Parts) -> Signature:
    return Signature(
        input=model.backend.input.name,
        height=model.card.input.height,
        width=model.card.input.width,
        channels=model.card.input.channels,
        output=model.backend.output.name,
        labels=model.card.labels,
        max_images=service.settings.max_request_images,
    )


def _image_shape(signature: Signature) -> tuple[int, int, int]:
    return signature.height, signature.width, signature.channels


def _statistics(model: ServedModel) -> dict[str, Any]:
    done = model.batcher.statistics
    none = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": done.last_inference_ms,
        "inference_count": done.inferences,
        "execution_count": done.executions,
        "inference_stats": {
            "success": done.success.to_json(),
            "fail": done.fail.to_json(),
            "queue": done.queue.to_json(),
            "compute_input": none,
            "compute_infer": done.infer.to_json(),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "response_stats": {},
        "batch_stats": [
            {"batch_size": size, "compute_input": none, "compute_infer": took.to_json(), "compute_output": none}
            for size, took in sorted(done.batches.copy().items())
        ],
        "memory_usage": [],
    }
