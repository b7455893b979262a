"""Results by content: an image that was answered is not decoded again, and one that is on its way is computed once.

The key is the loaded model and the SHA-256 of the encoded bytes, so two models never share an entry, nor do two files
that were loaded under the same version. Kept are logits, bounded by bytes; the least recently asked for goes first.
"""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from service.deadlines import before
from service.errors import ClientClosed, DeadlineExceeded, ImageTooLarge, InternalError, ServiceError, UndecodableImage
from service.metrics import Metrics
from service.tickets import Logits, Priority, Stages, Ticket

Key = tuple[int, bytes]
# An entry beside its logits: the key with its digest, the array's header, the places in the dictionary.
ENTRY_BYTES = 400
# What says something of the image, and not of the caller who happened to come first.
OF_THE_IMAGE = (UndecodableImage, ImageTooLarge, InternalError)


class Pending(Protocol):
    """An image whose logits are there, or on their way: a Ticket, or another's."""

    @property
    def stages(self) -> Stages:
        """Where its time went."""
        ...

    @property
    def future(self) -> asyncio.Future[Logits]:
        """Resolved once, on the event loop."""
        ...

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        ...

    async def logits(self) -> Logits:
        """Float32 `[classes]`, or DeadlineExceeded, or what went wrong."""
        ...


# Admits images that have to be computed, all or none.
Compute = Callable[[Sequence[bytes]], Sequence[Ticket]]


class Caller(NamedTuple):
    """Who asks: a loaded model by its number, until when (`time.monotonic()`), how urgently. `compute` is called once,
    with the images that are neither known nor on their way."""

    model: int
    deadline: float
    priority: Priority
    compute: Compute


def digest(encoded: bytes) -> bytes:
    """What identifies an image."""
    return hashlib.sha256(encoded).digest()


class Cache:
    """Used on the event loop only."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._entries: OrderedDict[Key, Logits] = OrderedDict()
        self._in_flight: dict[Key, Ticket] = {}
        self._bytes = 0
        metrics.watch_cache(lambda: self._bytes)

    def admit(self, images: Sequence[tuple[bytes, bytes]], caller: Caller) -> list[Pending]:
        """Where the logits of each image come from, in order; what the caller's `compute` raises is raised.

        Args:
            images: digest and encoded bytes of each.
            caller: who asks.
        """
        keyed = [((caller.model, digest), encoded) for digest, encoded in images]
        missing = {key: encoded for key, encoded in keyed if key not in self._entries and not self._leads(key, caller)}
        own = dict(zip(missing, caller.compute(list(missing.values())) if missing else [], strict=True))
        for key, ticket in own.items():
            self._in_flight[key] = ticket
            ticket.future.add_done_callback(partial(self._finish, key, ticket))
        return [self._pending(key, encoded, own, caller) for key, encoded in keyed]

    def _leads(self, key: Key, caller: Caller) -> bool:
        """Whether somebody's image is on its way who goes as soon as this caller would."""
        leader = self._in_flight.get(key)
        return leader is not None and leader.priority >= caller.priority

    def _pending(self, key: Key, encoded: bytes, own: dict[Key, Ticket], caller: Caller) -> Pending:
        if key in self._entries:
            self._entries.move_to_end(key)
            self._metrics.looked_up("hit")
            return _Known(self._entries[key])
        if key in own:
            self._metrics.looked_up("miss")
            return own.pop(key)
        self._metrics.looked_up("coalesced")
        _, sha256 = key
        return _Following(self._in_flight[key], caller.deadline, lambda: self.admit([(sha256, encoded)], caller)[0])

    def _finish(self, key: Key, ticket: Ticket, future: asyncio.Future[Logits]) -> None:
        if self._in_flight.get(key) is not ticket:  # somebody more urgent asked for it, too, and is to be followed
            return
        del self._in_flight[key]
        if future.cancelled() or future.exception() is not None:
            return
        logits = future.result().copy()  # a row is a view that would keep its whole batch
        logits.flags.writeable = False
        self._entries[key] = logits
        self._bytes += _size(logits)
        while self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _size(dropped)

    def forget(self, model: int) -> None:
        """Drop the results of a model that is out of service."""
        for key in [key for key in self._entries if key[0] == model]:
            self._bytes -= _size(self._entries.pop(key))


class _Known:
    """Logits that were there."""

    def __init__(self, logits: Logits) -> None:
        self.stages = Stages(finished_at=time.monotonic())
        self.future: asyncio.Future[Logits] = asyncio.get_running_loop().create_future()
        self.future.set_result(logits)

    def abandon(self) -> None:
        """There is nothing to stop."""

    async def logits(self) -> Logits:
        """At once."""
        return self.future.result()


class _Following:
    """Waits for the image of a caller who came first; computes it itself if that one gives up."""

    def __init__(self, leader: Ticket, deadline: float, again: Callable[[], Pending]) -> None:
        self.future: asyncio.Future[Logits] = asyncio.get_running_loop().create_future()
        self._source: Pending = leader
        self._leads = False
        self._deadline = deadline
        self._again = again
        leader.future.add_done_callback(self._take_over)

    @property
    def stages(self) -> Stages:
        return self._source.stages

    def abandon(self) -> None:
        """Leave the image to those who still wait for it."""
        if not self.future.done():
            self.future.set_exception(ClientClosed())
        if self._leads:
            self._source.abandon()

    async def logits(self) -> Logits:
        """The leader's, until this caller's own deadline."""
        try:
            async with before(self._deadline):
                return await self.future
        except DeadlineExceeded:
            self.abandon()
            raise

    def _take_over(self, leader: asyncio.Future[Logits]) -> None:
        if self.future.done():
            return
        error = None if leader.cancelled() else leader.exception()
        if not leader.cancelled() and (error is None or self._leads or isinstance(error, OF_THE_IMAGE)):
            self._settle(error, leader)
            return
        try:
            self._source, self._leads = self._again(), True
        except ServiceError as refused:
            self.future.set_exception(refused)
        else:
            self._source.future.add_done_callback(self._take_over)

    def _settle(self, error: BaseException | None, leader: asyncio.Future[Logits]) -> None:
        if error is None:
            self.future.set_result(leader.result())
        else:
            self.future.set_exception(error)


def _size(logits: Logits) -> int:
    return logits.nbytes + ENTRY_BYTES
