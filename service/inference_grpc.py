"""`inference.GRPCInferenceService`: the Open Inference Protocol over gRPC, beside `routes/inference_v2.py`.

Messages come from Triton's own client. What is no method here is answered with UNIMPLEMENTED by gRPC itself.
"""

from typing import Any

from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from service.deadlines import before
from service.errors import ServiceError
from service.folder import VERSION_DIGITS
from service.grpc_calls import Call, Method
from service.hang_up import never
from service.inference_messages import parse, render
from service.inference_models import (
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
    signature_of,
)
from service.inference_protocol import Signature
from service.pipeline import Order
from service.repository import ServedModel
from service.routes.dependencies import Parts, asked_model
from service.tickets import Priority, slowest


class InferenceService:
    """The methods; each takes its request's message and the call, and returns its answer's message."""

    def __init__(self, service: Parts) -> None:
        self._service = service

    def methods(self) -> dict[str, Method]:
        """Every method by its name in the protocol."""
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "ModelInfer": self._infer,
        }

    async def _server_live(self, _: Any, __: Call) -> Any:
        return service_pb2.ServerLiveResponse(live=not self._service.lifecycle.fatal)

    async def _server_ready(self, _: Any, __: Call) -> Any:
        return service_pb2.ServerReadyResponse(ready=self._service.lifecycle.ready)

    async def _model_ready(self, message: Any, _: Call) -> Any:
        """A model that is not there is not ready, as with Triton, and no error."""
        try:
            self._find(message)
        except ServiceError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=True)

    async def _server_metadata(self, _: Any, __: Call) -> Any:
        return ParseDict(server_metadata(), service_pb2.ServerMetadataResponse())

    async def _model_metadata(self, message: Any, _: Call) -> Any:
        model = self._find(message)
        about = model_metadata(model, self._signature(model), self._service.repository)
        return ParseDict(about, service_pb2.ModelMetadataResponse())

    async def _model_config(self, message: Any, _: Call) -> Any:
        model = self._find(message)
        return ParseDict({"config": model_config(model, self._signature(model))}, service_pb2.ModelConfigResponse())

    async def _model_statistics(self, message: Any, _: Call) -> Any:
        counted = model_statistics(self._service.repository, message.name, _version(message.version))
        return ParseDict(counted, service_pb2.ModelStatisticsResponse())

    async def _repository_index(self, message: Any, _: Call) -> Any:
        models = repository_index(self._service.repository, only_ready=message.ready)
        return ParseDict({"models": models}, service_pb2.RepositoryIndexResponse())

    async def _load(self, message: Any, _: Call) -> Any:
        await self._service.control.load(message.model_name, _stated_version(message))
        return service_pb2.RepositoryModelLoadResponse()

    async def _unload(self, message: Any, _: Call) -> Any:
        await self._service.control.unload(message.model_name, _stated_version(message))
        return service_pb2.RepositoryModelUnloadResponse()

    async def _infer(self, message: Any, call: Call) -> Any:
        """Logits or classes for a batch of images."""
        service, exchange = self._service, call.exchange
        model = asked_model(message.model_name, _version(message.model_version), None, exchange, service)
        signature = self._signature(model)
        limit = min(exchange.started + service.settings.request_timeout_ms / 1000, call.deadline)
        with model.held(), service.intake.open() as share:
            model.batcher.refuse_when_full(Priority.HIGH)  # its own is in the message
            share.take(call.bytes)
            async with before(limit):
                asked = await service.pipeline.aside(lambda: parse(message, signature))
            deadline = asked.deadline(exchange.started, limit)
            order = Order(model, 1, deadline, never, asked.priority)
            logits, stages = await service.pipeline.infer(asked.images, order)
        exchange.stages = slowest(stages)
        about = {"model_name": model.name, "model_version": str(model.version), "id": asked.id}
        return render(logits, asked, signature, about)

    def _find(self, message: Any) -> ServedModel:
        return self._service.repository.find(message.name, _version(message.version))

    def _signature(self, model: ServedModel) -> Signature:
        return signature_of(model, self._service.settings.max_request_images)


def _stated_version(message: Any) -> int | None:
    """The parameter `version` of a load or unload; all versions where there is none."""
    return message.parameters["version"].int64_param if "version" in message.parameters else None


def _version(text: str) -> int | None:
    """None for the highest one; 0, which no model has, for what is no number."""
    if not text:
        return None
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= VERSION_DIGITS else 0
