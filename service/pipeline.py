"""The map: an image's way from encoded bytes to an answer.

    event loop     decode pool          device thread         event loop
    admit     ->   preprocess    ->     run a batch     ->    top k
    (or 429)       (or 400, 413)        (or 500)

The decode thread hands the pixels straight to the model's queue, and a whole batch comes back in one hop.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from service.answer import Prediction, most_probable, top_predictions
from service.cache import Cache, Caller, Pending, digest
from service.cam import Explanation, Head, explain
from service.deadlines import before
from service.errors import ClientClosed, DeadlineExceeded, InternalError, ServiceError, without_traceback
from service.hang_up import OnHangUp
from service.image import QUICK, is_within, preprocess
from service.metrics import Metrics
from service.repository import ServedModel
from service.shadow import Shadow
from service.tickets import Logits, Pixels, Priority, Stages, Ticket

Result = TypeVar("Result")
# Bytes whose digest takes less than handing them to another thread.
SOON_DIGESTED = 2**17


@dataclass(frozen=True)
class Question:
    """What is to be explained: by which head, and for which class; the most probable one when None."""

    head: Head
    index: int | None


@dataclass(slots=True)
class Order:
    """What a caller asked of a model: how many labels, until when, how urgently, whether why,
    and which version is to see it on the side."""

    model: ServedModel
    top_k: int
    deadline: float
    on_hang_up: OnHangUp
    priority: Priority = Priority.NORMAL
    why: Question | None = None
    shadow: ServedModel | None = None


@dataclass(slots=True)
class Answer:
    """The predictions for one image and where the time went."""

    predictions: list[Prediction]
    stages: Stages
    explanation: Explanation | None = None


class Pipeline:
    """Decodes in a pool and answers from the models' queues."""

    def __init__(self, pool: Executor, max_pixels: int, metrics: Metrics, cache: Cache | None, shadow: Shadow) -> None:
        self._pool = pool
        self._cache = cache
        self._shadow = shadow
        self._max_pixels = max_pixels
        self._metrics = metrics

    async def classify(self, encoded: bytes, order: Order) -> Answer:
        """Classify one encoded image; ServiceError says why there is no answer."""
        pending = await self._admit([encoded], order)
        with _abandoned_on_hang_up(pending, order):
            return await self._answer(pending[0], encoded, order)

    async def classify_many(self, images: Sequence[bytes | ServiceError], order: Order) -> list[Answer | ServiceError]:
        """Classify images that arrived together, in order; an upload that was refused already keeps its error.

        They are admitted together or not at all, and then each fails alone.
        """
        encoded = [each for each in images if isinstance(each, bytes)]
        pending = await self._admit(encoded, order)
        with _abandoned_on_hang_up(pending, order):
            each_alone = (self._answer_or_error(*each, order) for each in zip(pending, encoded, strict=True))
            answers = iter(await asyncio.gather(*each_alone))
        results = [next(answers) if isinstance(each, bytes) else each for each in images]
        for error in results:
            if isinstance(error, ServiceError):
                self._metrics.rejected(error.code)
        return results

    async def infer(self, images: Pixels | list[bytes], order: Order) -> tuple[Logits, list[Stages]]:
        """Logits `[n, classes]` of images that belong together: pixels `[n, H, W, 3]`, or encoded ones.

        The first of them that fails fails all.
        """
        pending = await self._admit(images, order) if isinstance(images, list) else _queued(images, order)
        with _abandoned_on_hang_up(pending, order):
            try:
                rows = await asyncio.gather(*(each.logits() for each in pending))
            finally:
                for each in pending:
                    each.abandon()
        for logits in rows:
            best, probability = most_probable(logits)
            self._metrics.predicted(order.model.name, order.model.card.labels[best], probability)
        return np.stack(rows), [each.stages for each in pending]

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Do what would hold up the event loop on a pool thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def _admit(self, images: Sequence[bytes], order: Order) -> Sequence[Pending]:
        """Admit what has to be computed, all or none; what is known or on its way already has no ticket of its own."""
        if self._cache is None or order.why is not None:
            return self._decoding(images, order)
        soon = sum(map(len, images)) <= SOON_DIGESTED
        digests = _digests(images) if soon else await self.aside(partial(_digests, images))
        caller = Caller(order.model.number, order.deadline, order.priority, partial(self._decoding, order=order))
        return self._cache.admit(list(zip(digests, images, strict=True)), caller)

    def _decoding(self, images: Sequence[bytes], order: Order) -> list[Ticket]:
        tickets = order.model.batcher.reserve(
            order.deadline, len(images), priority=order.priority, explained=order.why is not None
        )
        return self._decode_later(images, tickets, order.model)

    def _for_shadow(self, images: Sequence[bytes], model: ServedModel, deadline: float) -> list[Ticket]:
        tickets = model.batcher.reserve(deadline, len(images), priority=Priority.SHADOW)
        return self._decode_later(images, tickets, model)

    def _decode_later(self, images: Sequence[bytes], tickets: list[Ticket], model: ServedModel) -> list[Ticket]:
        for encoded, ticket in zip(images, tickets, strict=True):
            if len(images) == 1 and is_within(QUICK, encoded, model.card.preprocessing):
                self._decode(encoded, ticket, model)
            else:
                self._pool.submit(self._decode, encoded, ticket, model)
        return tickets

    async def _answer(self, pending: Pending, encoded: bytes, order: Order) -> Answer:
        logits = await pending.logits()  # (classes,) float32
        if order.shadow is not None and isinstance(pending, Ticket):
            self._shadow.show(encoded, pending, logits, (order.model, order.shadow), self._for_shadow)
        predictions = top_predictions(logits, order.model.card.labels, order.top_k)
        self._metrics.predicted(order.model.name, predictions[0]["label"], predictions[0]["probability"])
        return Answer(predictions, pending.stages, await self._explain(pending, logits, order))

    async def _explain(self, pending: Pending, logits: Logits, order: Order) -> Explanation | None:
        """The evidence that was asked for, on a pool thread: drawing the overlay takes milliseconds."""
        if order.why is None or not isinstance(pending, Ticket) or pending.explained is None:
            return None
        pixels, features = pending.explained.pixels, pending.explained.features
        if pixels is None or features is None:
            raise InternalError from ValueError("the model gave no features to explain its answer with")
        index = int(logits.argmax()) if order.why.index is None else order.why.index
        label = order.model.card.labels[index]
        work = partial(explain, order.why.head, index, label, pixels, features, logits)
        async with before(order.deadline):
            return await self.aside(work)

    async def _answer_or_error(self, pending: Pending, encoded: bytes, order: Order) -> Answer | ServiceError:
        try:
            return await self._answer(pending, encoded, order)
        except ClientClosed:
            raise
        except ServiceError as error:
            return without_traceback(error)

    def _decode(self, encoded: bytes, ticket: Ticket, model: ServedModel) -> None:
        """On a pool thread: turn the bytes into pixels and queue them, or give the place back."""
        started = time.monotonic()
        if ticket.abandoned or ticket.deadline <= started:
            model.batcher.reject(ticket, DeadlineExceeded())
            return
        try:
            pixels = preprocess(encoded, model.card.preprocessing, self._max_pixels)  # (H, W, 3) uint8
        except ServiceError as error:
            model.batcher.reject(ticket, without_traceback(error))
        except Exception as error:  # a bug of ours must not leave the caller waiting for its deadline
            model.batcher.reject(ticket, InternalError.because(error))
        else:
            ticket.stages.decode = time.monotonic() - started
            self._metrics.stage("decode", ticket.stages.decode)
            model.batcher.enqueue(ticket, pixels)


def _queued(images: Pixels, order: Order) -> list[Ticket]:
    """Pixels `[n, H, W, 3]` need no decoding."""
    tickets = order.model.batcher.reserve(order.deadline, len(images), priority=order.priority)
    order.model.batcher.enqueue_all(dict(zip(tickets, images, strict=True)))
    return tickets


def _digests(images: Sequence[bytes]) -> list[bytes]:
    return [digest(each) for each in images]


@contextmanager
def _abandoned_on_hang_up(pending: Sequence[Pending], order: Order) -> Iterator[None]:
    """Drop the images as soon as nobody waits for them any more."""

    def abandon() -> None:
        for each in pending:
            each.abandon()

    stop_watching = order.on_hang_up(abandon)
    try:
        yield
    finally:
        stop_watching()
