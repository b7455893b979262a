"""What is known of one request while it is answered: its id, its model, its stages."""

import asyncio
import itertools
import logging
import os
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from service.errors import ClientClosed, Draining, InternalError, ServiceError
from service.logs import FieldsRecord, with_fields
from service.metrics import NO_MODEL, Metrics
from service.tickets import Stages

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("service.request")

# New ids: random for the process, counted within it.
_PREFIX = os.urandom(8).hex()
_COUNTER = itertools.count()
# Anything a caller sends ends up in an answer's header, in log lines, and in what those are looked at with: visible
# ASCII without quotes, angle brackets and backslashes is safe in all of them.
_ACCEPTABLE_ID = re.compile(r"[!#-&(-;=?-\[\]-_a-~]{1,256}")


@dataclass(slots=True)
class Exchange:
    """One request and its answer. Times are seconds of `time.monotonic()`."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    model: str = NO_MODEL
    version: str = NO_MODEL
    error_code: str = ""
    stages: Stages | None = None
    status: int = 0
    trace_id: str = ""
    timing: dict[str, float] = field(default_factory=dict)

    def finish(self, status: int) -> None:
        """The answer's first byte is about to leave: close the stages."""
        now = time.monotonic()
        self.status = status
        if self.stages is not None:
            self.timing = {
                "decode": self.stages.decode,
                "queue": self.stages.queue,
                "inference": self.stages.inference,
                "respond": now - self.stages.finished_at,
            }
        self.timing["total"] = now - self.started

    def server_timing(self) -> str:
        """The `Server-Timing` header (W3C): stages and total in milliseconds."""
        return ", ".join([f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.timing.items()])

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer says of its request, once it is finished: `X-Request-Id` and `Server-Timing`."""
        return [(b"x-request-id", self.request_id.encode()), (b"server-timing", self.server_timing().encode())]

    def measure(self, metrics: Metrics) -> None:
        """Count a classification that has ended."""
        if "respond" in self.timing:
            metrics.stage("respond", self.timing["respond"])
        if self.error_code:
            metrics.rejected(self.error_code)
        metrics.answered(self.model, self.version, self.status, self.timing.get("total", 0.0), self.trace_id)

    def log_line(self, level: int, method: str, target: str) -> None:
        """Write the one line about this request; `method` is HTTP's, or gRPC."""
        if not log.isEnabledFor(level):
            return
        log.handle(FieldsRecord(log.name, level, partial(self._line, method, target)))

    def _line(self, method: str, target: str) -> tuple[str, dict[str, Any]]:
        return f"{method} {target!r} {self.status} {self.error_code}", {
            "request_id": self.request_id,
            "status": self.status,
            "code": self.error_code,
            "model": self.model,
            "version": self.version,
            **({"trace_id": self.trace_id} if self.trace_id else {}),
            "ms": {stage: round(seconds * 1000, 3) for stage, seconds in self.timing.items()},
        }

    def log_failure(self, error: ServiceError) -> None:
        """The reason of a failure of ours, with its traceback, under the request id that the caller was given."""
        if error.status == 500:
            log.error(
                "request failed",
                exc_info=error,
                extra=with_fields(request_id=self.request_id),
            )

    def unexpected(self, error: BaseException, *, draining: bool) -> ServiceError:
        """What the caller is told when its task was cancelled or ended in a bug of ours, which is logged."""
        if isinstance(error, asyncio.CancelledError):
            return Draining(retry_after=1) if draining else ClientClosed()
        log.error(
            "unhandled error",
            exc_info=error,
            extra=with_fields(request_id=self.request_id),
        )
        return InternalError()


def request_id(sent: str | None) -> str:
    """The caller's request id if it sent a usable one, a new one otherwise."""
    return sent if sent and _ACCEPTABLE_ID.fullmatch(sent) else f"{_PREFIX}{next(_COUNTER):016x}"


def speaks_inference_protocol(path: str) -> bool:
    """Whether answers on this path are the Open Inference Protocol's, errors included."""
    return path == "/v2" or path.startswith("/v2/")


def exchange_of(request: "Request") -> Exchange:
    """The exchange that the middleware opened for this request."""
    exchange: Exchange = request.scope["state"]["exchange"]
    return exchange
