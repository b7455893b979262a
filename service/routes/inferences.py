"""What a caller of a model's `infer` asks, as an order to the pipeline, and the answer in the protocol's bytes."""

from functools import partial

from service.compression import inflate
from service.content import Content
from service.deadlines import before
from service.exchange import Exchange
from service.hang_up import OnHangUp
from service.inference_models import signature_of
from service.inference_protocol import Inference, Signature
from service.inference_rest import SentAs, json_length, parse, render
from service.pipeline import Order
from service.repository import ServedModel
from service.routes.dependencies import Parts
from service.tickets import Priority, slowest

# What takes less than handing it to another thread: bytes of a body to copy and of JSON to read, logits to write down
# and to compress.
SOON_COPIED = 2**20
SOON_PARSED = 2**12
SOON_RENDERED = 2**12


def refuse_when_full(model: ServedModel) -> None:
    """Refuse what has no place whatever its priority, which only its body tells."""
    model.batcher.refuse_when_full(Priority.HIGH)


def limit_of(exchange: Exchange, service: Parts) -> float:
    """Until when the server answers at most, in seconds of `time.monotonic()`."""
    return exchange.started + service.settings.request_timeout_ms / 1000


async def inferred(
    model: ServedModel, body: bytes, sent_as: SentAs, exchange: Exchange, service: Parts, on_hang_up: OnHangUp
) -> Content:
    """Logits or classes for the images in a body, as JSON or binary tensors; ServiceError says why there are none."""
    signature = signature_of(model, service.settings.max_request_images)
    limit = limit_of(exchange, service)
    async with before(limit):
        asked = await _understood(body, sent_as, signature, service)
    deadline = asked.deadline(exchange.started, limit)
    logits, stages = await service.pipeline.infer(asked.images, Order(model, 1, deadline, on_hang_up, asked.priority))
    exchange.stages = slowest(stages)
    about = {"model_name": model.name, "model_version": str(model.version), "id": asked.id}
    answer = partial(render, logits, asked.wanted, signature, about, sent_as.accept)
    soon = asked.wanted.binary and not asked.wanted.classes and logits.size + len(asked.id) <= SOON_RENDERED
    return answer() if soon else await service.pipeline.aside(answer)


async def _understood(body: bytes, sent_as: SentAs, signature: Signature, service: Parts) -> Inference:
    """Inflated and parsed; beside the event loop where that takes long, as of a tensor in JSON."""
    coding, length, _ = sent_as
    if not coding and len(body) <= SOON_COPIED and json_length(body, length) <= SOON_PARSED:
        return parse(body, length, signature)
    size = service.settings.max_request_bytes
    return await service.pipeline.aside(lambda: parse(inflate(body, coding, size), length, signature))
