"""What is known of one request while it is answered: its id, its model, its stages."""

import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.requests import Request

from service.metrics import NO_MODEL
from service.tickets import Stages

# Anything a caller sends ends up in log lines and in an answer's header, so only plain tokens are taken over.
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


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
        return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.timing.items())


def request_id(sent: str | None) -> str:
    """The caller's request id if it sent a usable one, a new one otherwise."""
    return sent if sent and _ACCEPTABLE_ID.fullmatch(sent) else uuid.uuid4().hex


def speaks_inference_protocol(path: str) -> bool:
    """Whether answers on this path are the Open Inference Protocol's, errors included."""
    return path == "/v2" or path.startswith("/v2/")


def exchange_of(request: Request) -> Exchange:
    """The exchange that the middleware opened for this request."""
    exchange: Exchange = request.state.exchange
    return exchange
