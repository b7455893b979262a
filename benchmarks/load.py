"""The load: HTTP/1.1 over kept-alive connections, as fast as answers come or at a constant rate.

One event loop of uvloop and one parser of httptools: some 20 µs of CPU a request, which `Outcome.cpu_seconds` states,
because the generator shares the machine with what it measures.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import cast

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

HOST = "127.0.0.1"
# Closed without an answer, or none within this time: counted, and the connection is opened anew.
ANSWER_SECONDS = 30.0
NO_ANSWER = 0
OVERLOADED = 429
# Connections of an open loop that are opened before it begins; more are opened when all wait for answers.
READY_CONNECTIONS = 64
MAX_CONNECTIONS = 1024
# The loop's timers are no finer; what has become due within it is sent together.
TICK_SECONDS = 1e-3


@dataclass(frozen=True)
class Shot:
    """The bytes of one request; with `hang_up`, its sender closes the connection so many seconds after it."""

    payload: bytes
    hang_up: float | None = None


@dataclass
class Outcome:
    """What a load met with. Latencies are in seconds, of answers with status 200 only, hang-ups not counted.

    `refusals` are those of answers with status 429.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    hung_up: int = 0

    @property
    def per_second(self) -> float:
        """Answers with status 200."""
        return len(self.latencies) / self.seconds

    def quantile(self, share: float) -> float:
        """Seconds within which so large a share of the good answers came; NaN if there were none."""
        values: NDArray[np.float64] = np.array(self.latencies or [np.nan])
        return float(np.quantile(values, share))


def closed_loop(port: int, shots: Sequence[Shot], connections: int, seconds: float) -> Outcome:
    """Every connection sends its next request as soon as it has its answer."""
    return uvloop.run(_measure(_closed(port, shots, connections, seconds)))


def open_loop(port: int, shots: Sequence[Shot], rate: float, seconds: float) -> Outcome:
    """Requests at a constant rate, whether answers come or not.

    A latency counts from the time when its request was due, so that a server which stalls cannot hide it by stalling
    the load too (coordinated omission).
    """
    return uvloop.run(_measure(_open(port, shots, rate, seconds)))


async def _measure(load: Awaitable[Outcome]) -> Outcome:
    began = time.process_time()
    outcome = await load
    outcome.cpu_seconds = time.process_time() - began
    return outcome


class _Connection(asyncio.Protocol):
    """One connection, one request at a time; `answered` is called with the status, or NO_ANSWER when it is lost."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._settle(self._parser.get_status_code())
        if not self._parser.should_keep_alive():
            self.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._settle(NO_ANSWER)

    def _settle(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, payload: bytes) -> int:
        """The status of the answer."""
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        cast(asyncio.Transport, self._transport).write(payload)
        timer = loop.call_later(ANSWER_SECONDS, self.close)
        try:
            return await self._answer
        finally:
            timer.cancel()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def _connect(port: int) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, HOST, port)
    return connection


async def _send(port: int, connection: _Connection, shot: Shot, due: float, outcome: Outcome) -> _Connection:
    """Send one request, note what came of it, and give back a connection for the next."""
    if not connection.open:
        connection = await _connect(port)
    if shot.hang_up is not None:
        asyncio.get_running_loop().call_later(shot.hang_up, connection.close)
    status = await connection.ask(shot.payload)
    if shot.hang_up is not None:
        outcome.hung_up += 1
        connection.close()
        return connection
    outcome.statuses[status] += 1
    if status == 200:
        outcome.latencies.append(time.perf_counter() - due)
    elif status == OVERLOADED:
        outcome.refusals.append(time.perf_counter() - due)
    return connection


async def _closed(port: int, shots: Sequence[Shot], connections: int, seconds: float) -> Outcome:
    outcome = Outcome()
    following = cycle(shots)
    began = time.perf_counter()

    async def keep_asking() -> None:
        connection = await _connect(port)
        while (now := time.perf_counter()) < began + seconds:
            connection = await _send(port, connection, next(following), now, outcome)
        connection.close()

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    outcome.seconds = time.perf_counter() - began
    return outcome


async def _open(port: int, shots: Sequence[Shot], rate: float, seconds: float) -> Outcome:
    outcome = Outcome()
    following = cycle(shots)
    idle = deque([await _connect(port) for _ in range(READY_CONNECTIONS)])
    busy: set[asyncio.Task[None]] = set()
    limit = asyncio.Semaphore(MAX_CONNECTIONS)

    async def one(due: float) -> None:
        async with limit:
            connection = idle.popleft() if idle else await _connect(port)
            idle.append(await _send(port, connection, next(following), due, outcome))

    began = time.perf_counter()
    sent = 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for _ in range(int(elapsed * rate) - sent):
            task = asyncio.create_task(one(began + (sent + 1) / rate))
            busy.add(task)
            task.add_done_callback(busy.discard)
            sent += 1
        await asyncio.sleep(max(TICK_SECONDS, (sent + 1) / rate - elapsed))
    await asyncio.gather(*busy)
    outcome.seconds = time.perf_counter() - began
    for connection in idle:
        connection.close()
    return outcome
