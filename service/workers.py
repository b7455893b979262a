"""The server's side of the workers: when there are any, which connections they get, and what comes back.

A small network is answered faster than one process can speak HTTP, because of the interpreter's lock. So where such a
network is served on the CPU, a process for each core answers its simplest requests (`http_worker.py`). For another one,
as on a GPU, workers decode and answer, and the server runs what they have decoded (`errands.py`), where the settings
ask for it. The server keeps everything else, and takes every connection back before it changes what is served: an
answer never comes from a version that is no longer in service. Without workers, or when one fails, the server answers
by itself.
"""

import asyncio
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from service.handover import (
    ASKED,
    RAN,
    ROUTES,
    SETUP,
    SIGN_OF_LIFE_SECONDS,
    TALLY,
    Kind,
    Message,
    Ran,
    Returned,
    Route,
    Setup,
)
from service.image import PROMPT, ever_quick
from service.metrics import Metrics
from service.plain_head import MostBytes, NotSimple, SimpleRequest, simple_request
from service.repository import ServedModel
from service.settings import Settings
from service.shared_images import fits
from service.tally import Tally
from service.worker_process import WorkerProcess

log = logging.getLogger(__name__)

# Longer runs keep the cores busy from one process as well.
MOST_RUN_SECONDS = 3e-3
# The requests of all connections of a worker are answered in so long, in turns, if they are like their first ones. What
# is over it stays with the server, which answers at half the rate and takes the cores from the workers to do so: with
# 0.1 s a moment of slowness, in which callers open more connections, became many seconds.
TURN_SECONDS = 0.5
# What an answer takes a worker beside a run of its own, and to decode an image: about 25 ns a byte for photographs in
# JPEG and PNG, more where large ones compress well.
ANSWER_SECONDS = 5e-4
DECODE_SECONDS_PER_BYTE = 3e-8
# How long a worker has to give its connections back; it has a turn to end, or a model to load.
RECALL_SECONDS = 5.0
# How long it may be silent at least, and how long while it starts or loads.
LEAST_PATIENCE_SECONDS = 4 * SIGN_OF_LIFE_SECONDS
START_SECONDS = 60.0
# After a worker has ended by itself the next one is started so much later, twice as long each time, until one lives for
# as long as the longest of these pauses.
RESTART_SECONDS = 1.0
MOST_RESTART_SECONDS = 60.0
# Each has 100 MB, and a container may see all the cores of its host.
MOST_BY_ITSELF = 4
# So many callers who send one request and close, none so much later than the one before, are as good a reason for
# workers as one who stays.
MANY_CALLERS = 100
CALLERS_SECONDS = 10.0
# Each worker has a session of each that it runs.
MOST_MODELS = 64
# To write down so many takes a worker a millisecond or two, in which its other callers wait.
MOST_CLASSES = 2**12

# Takes a connection that a worker gave back.
Connect = Callable[[socket.socket, Returned], Awaitable[None]]


@dataclass(frozen=True)
class Offered:
    """A model in service that workers are to answer for, and by which names; "" is for requests that name none."""

    model: ServedModel
    asked: tuple[str, ...]

    @property
    def route(self) -> Route:
        """As a worker has to know it."""
        model = self.model
        return Route(
            name=model.name,
            version=model.version,
            number=model.number,
            path=str(model.location.path),
            seen=model.files,
            asked=self.asked,
            input=model.backend.input.name,
            output=model.backend.output.name,
            batch_size=max(model.costs.sizes),
            run_by_server=not _runs_there(model),
        )


class Workers:
    """The workers of a server. Used on the event loop only."""

    def __init__(self, settings: Settings, cores: int, metrics: Metrics) -> None:
        """None are started before there is something for them. Without a number in the settings: one a core, of few."""
        self._wanted = _wanted(settings, cores)
        self._by_itself = settings.http_workers == "auto"
        self._patience = max(settings.device_timeout_ms / 1000, LEAST_PATIENCE_SECONDS)
        self._metrics = metrics
        self._most = MostBytes.of(settings.max_image_bytes, settings.max_request_bytes)
        self._setup = Setup(
            log_format=settings.log_format,
            log_level=settings.log_level,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_request_bytes=settings.max_request_bytes,
            request_timeout_ms=settings.request_timeout_ms,
            api_keys=settings.api_keys.get_secret_value(),
            api_keys_file=str(settings.api_keys_file or ""),
            signers=str(settings.model_signers or ""),
        )
        self._workers: list[WorkerProcess] = []
        self._offered: list[Offered] = []
        self._by_name: dict[str, ServedModel] = {}
        self._by_number: dict[int, ServedModel] = {}
        self._connecting: set[asyncio.Future[None]] = set()
        self._pause = RESTART_SECONDS
        self._asked_for = self._retired = False
        self._new_callers, self._last_caller = 0, 0.0
        self.handing_over = False
        # Set by the server; an application that another one serves has no connections to hand over.
        self.connect: Connect | None = None
        metrics.watch_workers(
            lambda: sum(worker.ready for worker in self._workers),
            lambda: sum(worker.resident_bytes for worker in self._workers),
        )

    def pay(self, model: ServedModel) -> bool:
        """Whether workers are to answer for a model: those that they run, and others where the settings say how many
        workers there are to be."""
        if len(model.card.labels) > MOST_CLASSES:
            return False
        return _runs_there(model) or (not self._by_itself and fits(model.card))

    async def offer(self, offered: Sequence[Offered]) -> None:
        """Answer for these models, which are in service, from now on."""
        offered = offered[:MOST_MODELS]
        if self.connect is None or not self._wanted:
            return
        if offered == self._offered and self.handing_over == bool(offered):
            return
        if self.handing_over:
            await self.recall()
        if self._retired:
            return
        self._offered = list(offered)
        self._by_number = {each.model.number: each.model for each in offered}
        self._by_name = {name: each.model for each in offered for name in each.asked}
        self.handing_over = bool(offered)
        for worker in list(self._workers):
            if offered:
                self._offer_to(worker)
            else:
                self._dismiss(worker)
        self._asked_for = bool(self._workers)
        if self._asked_for:
            self._complete()

    async def recall(self) -> None:
        """Take all connections back; afterwards no worker answers anything, until models are offered again."""
        self.handing_over = False
        answering = [worker for worker in self._workers if worker.ready or worker.connections]
        for worker in answering:
            worker.idle.clear()
            worker.recalls += 1
            worker.errands.abandon()
            worker.tell(Kind.RECALL)
        try:
            async with asyncio.timeout(RECALL_SECONDS):
                for worker in answering:
                    await worker.idle.wait()
        except TimeoutError:
            for worker in answering:
                if not worker.idle.is_set():
                    self._kill(worker, f"has not given its connections back for {RECALL_SECONDS:g} s")
        await asyncio.gather(*self._connecting, return_exceptions=True)

    async def retire(self) -> None:
        """Take all connections back for good."""
        if not self._retired:
            self._retired = True
            await self.recall()

    def take(self, connection: int, received: bytes, *, new: bool) -> bool:
        """Give a connection, by its file descriptor, to a worker if what it has just sent is for one; whether it was.

        The descriptor is to be closed then, and what was received forgotten. Many clients send the image after the
        head: then it is for the worker to see how large it is. The first such request on a connection that is not `new`
        starts the workers, as do many on new ones: who asks once in a while is answered as soon without them.
        """
        request = self._simple_request(received) if self.handing_over else None
        model = self._by_name.get(request.head.model) if request else None
        if request is None or model is None or not model.batcher.has_room:
            return False
        # A larger one whose body is on its way goes to a worker and back, which does not matter next to decoding it.
        if not request.is_within(PROMPT, model.card):
            return False
        if not self._asked_for:
            if new and not self._are_many():
                return False
            self._asked_for = True
            self._complete()
        worker = min((each for each in self._workers if each.ready), key=lambda each: each.connections, default=None)
        runs = _runs_there(model)
        seconds = model.costs.seconds_per_image * model.costs.lanes if runs else ANSWER_SECONDS
        if request.head.json_length is None:
            seconds += request.head.length * DECODE_SECONDS_PER_BYTE
        if worker is None or worker.connections * seconds > TURN_SECONDS:
            return False
        return worker.hand_over(connection, received)

    def _are_many(self) -> bool:
        """Count a new caller; whether there are many of them, one soon after the other."""
        now = time.monotonic()
        self._new_callers = 1 + (self._new_callers if now < self._last_caller + CALLERS_SECONDS else 0)
        self._last_caller = now
        return self._new_callers >= MANY_CALLERS

    def _simple_request(self, received: bytes) -> SimpleRequest | None:
        try:
            return simple_request(received, self._most)
        except NotSimple:
            return None

    def watch(self, elapsed: float) -> None:
        """Look after the workers, `elapsed` seconds after the last look; one that hangs is replaced."""
        for worker in list(self._workers):
            worker.silent += elapsed
            patience = START_SECONDS if worker.loading else self._patience
            if worker.silent > patience:
                self._metrics.device_failed("hung")
                self._kill(worker, f"has not been heard of for {patience:.1f} s")
                worker.silent = 0.0

    async def close(self) -> None:
        """End the workers. Their connections have to be back."""
        self._retired, self.handing_over = True, False
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.part()
        await asyncio.gather(*(asyncio.to_thread(worker.wait) for worker in workers))

    def _complete(self) -> None:
        """Start the workers that are missing."""
        if not self.handing_over or self._retired:
            self._asked_for = False  # the next request that is for them asks again
            return
        try:
            while len(self._workers) < self._wanted:
                worker = WorkerProcess.start()
                self._workers.append(worker)
                worker.listen(self._understand, self._has_ended)
                worker.tell(Kind.SETUP, SETUP.dump_json(self._setup))
                self._offer_to(worker)
        except OSError as error:
            log.warning("no worker can be started, and the server goes on without: %s", error)
            self._complete_later()

    def _complete_later(self) -> None:
        log.info("the next worker is started in %.0f s", self._pause)
        asyncio.get_running_loop().call_later(self._pause, self._complete)
        self._pause = min(2 * self._pause, MOST_RESTART_SECONDS)

    def _offer_to(self, worker: WorkerProcess) -> None:
        worker.loading += 1
        worker.tell(Kind.OFFER, ROUTES.dump_json([each.route for each in self._offered]))

    def _understand(self, worker: WorkerProcess, message: Message) -> None:
        if message.kind is Kind.TALLY:
            self._count(worker, TALLY.validate_json(message.content))
        elif message.kind is Kind.BACK:
            worker.connections -= 1
            self._take_back(message)
        elif message.kind is Kind.CLOSED:
            worker.connections -= 1
        elif message.kind is Kind.RUN:
            self._run(worker, message.content)
        elif message.kind is Kind.DROP:
            worker.errands.drop(int(message.content))
        elif message.kind is Kind.IDLE:
            worker.recalls -= 1
            if not worker.recalls:
                worker.idle.set()
        else:
            self._has_loaded(worker, message)

    def _has_loaded(self, worker: WorkerProcess, message: Message) -> None:
        """Or has tried to."""
        worker.loading -= 1
        if message.kind is Kind.UNABLE:
            log.warning("the server answers without a worker: %s", message.content.decode())
            if worker.ready:  # it may be able to load what is on its way to it
                self._dismiss(worker)
        elif worker.ready and self.handing_over:
            self._share_connections()

    def _run(self, worker: WorkerProcess, content: bytes) -> None:
        asked = ASKED.validate_json(content)
        # A worker that is recalled gives back the connections of what it has asked for.
        if self.handing_over and not worker.recalls and (model := self._by_number.get(asked.number)):
            worker.errands.run(asked, model, partial(self._tell_ran, worker))

    def _tell_ran(self, worker: WorkerProcess, ran: Ran) -> None:
        worker.tell(Kind.RAN, RAN.dump_json(ran))

    def _take_back(self, message: Message) -> None:
        if message.connection is None or self.connect is None:
            log.error("too many open files for a connection that came back, which is lost")
            return
        connecting = asyncio.ensure_future(self.connect(message.connection, Returned.of(message.content)))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    def _share_connections(self) -> None:
        """Ask those with more than their share for some, which the others get when the next request comes on them."""
        ready = [each for each in self._workers if each.ready]
        share = -(-sum(each.connections for each in ready) // len(ready))
        for worker in ready:
            if worker.connections > share:
                worker.tell(Kind.SPARE, b"%d" % (worker.connections - share))

    def _count(self, worker: WorkerProcess, tally: Tally) -> None:
        worker.resident_bytes = tally.resident_bytes
        if not tally.models.keys() <= self._by_number.keys():
            return  # from one that was ended, because it did not give its connections back
        self._metrics.add(tally)
        for number, each in tally.models.items():
            model = self._by_number[number]
            images = Counter[str]()
            for index, count in each.classes.items():  # several classes may have the same label
                images[model.card.labels[index]] += count
            self._metrics.add_answers(model.name, model.version, images)
            model.batcher.count(each.statistics)

    def _kill(self, worker: WorkerProcess, why: str) -> None:
        log.error("a worker %s, so it is ended, and with it the connections that it had", why)
        worker.kill()

    def _has_ended(self, worker: WorkerProcess) -> None:
        """Go on without a worker that ended by itself, and start another one after a while."""
        self._dismiss(worker)
        if self._retired:
            return
        log.error("a worker has ended")
        if time.monotonic() > worker.started + MOST_RESTART_SECONDS:
            self._pause = RESTART_SECONDS
        self._complete_later()

    def _dismiss(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.part()
        asyncio.get_running_loop().run_in_executor(None, worker.wait)


def _runs_there(model: ServedModel) -> bool:
    """Whether workers run a model, too: what it sees is small and its run is short, on the CPU."""
    short = model.costs.lone_seconds <= MOST_RUN_SECONDS
    return model.device == "cpu" and short and ever_quick(model.card.preprocessing)


def _wanted(settings: Settings, cores: int) -> int:
    """How many workers; none where one process has to know of every request, or deadlines are shorter than turns."""
    one_has_to_know = settings.rate_limit or settings.cache_bytes or settings.otlp_endpoint or settings.tls_cert
    if sys.platform != "linux" or one_has_to_know or settings.request_timeout_ms / 1000 < 2 * TURN_SECONDS:
        return 0
    by_itself = min(cores, MOST_BY_ITSELF) if cores > 1 else 0
    return by_itself if settings.http_workers == "auto" else settings.http_workers
