"""Around every gRPC call, as `middleware.py` around HTTP: request id, status, log line, metrics, and the last net."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from service.access import Keys
from service.audit import audited, check_administrator
from service.errors import Draining, Forbidden, InvalidRequest, ServiceError
from service.exchange import Exchange, request_id
from service.lifecycle import Lifecycle
from service.metrics import Metrics

SERVICE = "inference.GRPCInferenceService"
CLASSIFICATION = "ModelInfer"
PROBES = frozenset({"ServerLive", "ServerReady"})
ADMINISTRATION = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
REQUEST_ID = "x-request-id"
STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class Call:
    """What a method may know of the call that it answers; `bytes` is the size of its message."""

    exchange: Exchange
    bytes: int
    context: grpc.aio.ServicerContext

    @property
    def deadline(self) -> float:
        """The caller's own, in seconds of `time.monotonic()`."""
        remaining = self.context.time_remaining()
        return math.inf if remaining is None else time.monotonic() + remaining


Method = Callable[[Any, Call], Awaitable[Any]]


class Calls:
    """Opens an Exchange for each call and closes it with metadata, one log line and the call's metrics."""

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, keys: Keys, *, administers: bool) -> None:
        """`administers`: whether models may be controlled here, or only on the port for administration."""
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._keys = keys
        self._administers = administers
        self.closing = False

    def handler(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        """What gRPC calls for the method of this name; messages are bytes here, so that a broken one is our error."""
        request_type = getattr(service_pb2, f"{name}Request")

        async def answer(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            metadata = _as_headers(context.invocation_metadata())
            exchange = Exchange(request_id(metadata.get(REQUEST_ID)))
            try:
                if name not in PROBES:
                    self._check(name, metadata, context, exchange)
                self._refuse_when_closing(name)
                with self._administration(name, metadata, context, exchange):
                    message = await method(_read(request_type, body), Call(exchange, len(body), context))
                exchange.finish(200)
                context.set_trailing_metadata(((REQUEST_ID, exchange.request_id),))
                answered: bytes | ServiceError = message.SerializeToString()
            except (Exception, asyncio.CancelledError) as error:
                answered = self._failure(error, exchange)
                if isinstance(error, asyncio.CancelledError):
                    raise
            finally:
                self._record(name, exchange)  # before the answer leaves: whoever has it may look for it in the metrics
            if isinstance(answered, ServiceError):
                await _refuse(context, answered, exchange)
            return answered

        return grpc.unary_unary_rpc_method_handler(answer)

    def _check(
        self, name: str, metadata: Mapping[str, str], context: grpc.aio.ServicerContext, exchange: Exchange
    ) -> None:
        if name in ADMINISTRATION:
            check_administrator(name, self._keys, metadata, context.peer(), exchange)
        else:
            self._keys.check(metadata)

    def _administration(
        self, name: str, metadata: Mapping[str, str], context: grpc.aio.ServicerContext, exchange: Exchange
    ) -> AbstractContextManager[None]:
        if name not in ADMINISTRATION:
            return nullcontext()
        if not self._administers:
            raise Forbidden("Models are controlled on the port for administration.")
        return audited(name, self._keys, metadata, context.peer(), exchange)

    def _refuse_when_closing(self, name: str) -> None:
        if self.closing and name == CLASSIFICATION:
            raise Draining

    def _failure(self, error: BaseException, exchange: Exchange) -> ServiceError:
        if isinstance(error, ServiceError):
            failure = error
            exchange.log_failure(error)
        else:
            failure = exchange.unexpected(error, draining=self._lifecycle.draining)
        exchange.error_code = failure.code
        exchange.finish(failure.status)
        return failure

    def _record(self, name: str, exchange: Exchange) -> None:
        if name == CLASSIFICATION:
            exchange.measure(self._metrics)
        exchange.log_line(logging.INFO if name == CLASSIFICATION else logging.DEBUG, "gRPC", f"/{SERVICE}/{name}")


def _as_headers(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Decoded as headers are, Latin-1 instead of UTF-8; without what is binary."""
    return {name: value.encode().decode("latin-1") for name, value in metadata if isinstance(value, str)}


def _read(request_type: Any, body: bytes) -> Any:
    try:
        return request_type.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"the message is not an {request_type.DESCRIPTOR.full_name}") from error


async def _refuse(context: grpc.aio.ServicerContext, failure: ServiceError, exchange: Exchange) -> NoReturn:
    metadata = [(REQUEST_ID, exchange.request_id)]
    if failure.retry_after is not None:
        metadata.append(("retry-after", str(failure.retry_after)))
    await context.abort(STATUS[failure.status], failure.detail, tuple(metadata))
    raise AssertionError("abort raises")
