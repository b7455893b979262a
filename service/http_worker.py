"""A worker: a process of one thread that answers the simplest requests.

    poll -> read -> decode -> run a batch -> answer

Networks that take less than HTTP does it runs itself. Of others it decodes the images, and asks its server to run them
(`shared_images.py`).

Its server hands it connections on which such requests come, and gets back each one on which anything else does: another
request, an image that is large or cannot be decoded, a caller who sends slowly or has waited long. So a worker only
ever answers 200, and every other answer has one place. What arrives while a batch runs is the next batch.
"""

import logging
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.access import Keys
from service.answer import top_predictions_of_each
from service.artifact import ModelCard
from service.errors import ServiceError, StartError
from service.exchange import Exchange, request_id
from service.folder import Location
from service.golden import golden_pixels
from service.handover import (
    ASKED,
    RAN,
    ROUTES,
    SETUP,
    SIGN_OF_LIFE_SECONDS,
    TALLY,
    Asked,
    Channel,
    Kind,
    Message,
    Ran,
    Returned,
    Route,
    Setup,
)
from service.image import PROMPT
from service.inference_protocol import Signature
from service.loading import EXPECTED_FAILURES
from service.logs import configure_logging
from service.memory import give_back, resident_bytes, settle, use_one_arena
from service.opening import Opener, card_of, state
from service.plain_head import METHOD, MostBytes, NotSimple, SimpleRequest, simple_request
from service.runtime import Backend, open_onnx
from service.shared_images import PLACES, SharedImages
from service.signatures import Signers
from service.simple_answers import Question, answer, read_question
from service.tally import Tally
from service.tickets import Logits, Stages
from service.worker_connections import Connection, Connections

log = logging.getLogger(__name__)

# A turn decodes for so long, and for one more image. What has arrived beside is for the next one.
DECODE_AT_ONCE_SECONDS = 0.05
# How soon the server hears what was counted.
TALLY_SECONDS = 0.1


@dataclass(eq=False, slots=True)
class _Model:
    """A model that is answered for; without a backend its images are run by the server."""

    route: Route
    card: ModelCard
    signature: Signature
    backend: Backend | None


@dataclass(eq=False, slots=True)
class _Request:
    """A request whose image is decoded, which took `decode_seconds`, at `decoded_at` by `time.monotonic()`."""

    connection: Connection
    model: _Model
    exchange: Exchange
    question: Question
    decode_seconds: float
    decoded_at: float


class Worker:
    """The connections and the models of this process, and its end of the channel to the server."""

    def __init__(self, channel: Channel, images: SharedImages, setup: Setup) -> None:
        """Nothing is answered before the server has offered models.

        Raises:
            StartError: the keys or the trusted signers cannot be read.
        """
        self._channel = channel
        self._keys = Keys(setup.api_keys, Path(setup.api_keys_file) if setup.api_keys_file else None)
        self._most = MostBytes.of(setup.max_image_bytes, setup.max_request_bytes)
        self._timeout = setup.request_timeout_ms / 1000
        self._max_pixels = setup.max_image_pixels
        signers = Signers(Path(setup.signers)) if setup.signers else None
        self._opener = Opener(lambda path: open_onnx(path, "cpu", threads=1), signers)
        self._models: dict[str, _Model] = {}
        self._connections = Connections(channel, self._look_at)
        self._whole: deque[tuple[Connection, _Model, SimpleRequest, float]] = deque()
        self._decoded: list[_Request] = []
        self._images = images
        self._free = list(range(PLACES))
        self._asked: dict[int, _Request] = {}
        self._tally = Tally()
        self._cpu_seconds = 0.0
        self._told_at = time.monotonic()

    def work(self) -> None:
        """Answer until the server is gone. After a failure of its own the server has all connections, and answers."""
        try:
            while True:
                self._turn(self._connections.wait(0 if self._whole else TALLY_SECONDS))
        except (EOFError, ConnectionError):
            return
        except Exception:
            self._return_everything()
            raise

    def _turn(self, ready: set[int]) -> None:
        self._connections.read(ready)
        if self._channel.fileno() in ready:
            for order in self._orders():
                self._follow(order)
        self._connections.look_after()
        self._decode()
        self._answer_decoded()
        self._connections.spare()
        self._tell()

    def _orders(self) -> Iterator[Message]:
        """What the server has said; EOFError when it is gone."""
        while True:
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            if message is None:
                raise EOFError
            yield message

    def _follow(self, order: Message) -> None:
        if order.kind is Kind.CONNECTION and order.connection is not None:
            self._connections.take(order.connection, order.content)
        elif order.kind is Kind.CONNECTION:
            log.error("too many open files for a connection, which is lost")
            self._channel.send(Kind.CLOSED)
        elif order.kind is Kind.OFFER:
            self._load(ROUTES.validate_json(order.content))
        elif order.kind is Kind.SPARE:
            self._connections.want_back(int(order.content))
        elif order.kind is Kind.RAN:
            self._answer_ran(RAN.validate_json(order.content))
        elif order.kind is Kind.RECALL:
            # With what they have asked: the server hears no more of this from here, and answers.
            for request in self._asked.values():
                request.connection.place = None
            self._whole.clear()
            self._decoded, self._asked, self._free = [], {}, list(range(PLACES))
            self._connections.give_all_back()
            self._tell(at_once=True)
            self._channel.send(Kind.IDLE)

    def _load(self, routes: list[Route]) -> None:
        """Answer for these models from now on, and for no others."""
        loaded = {model.route.number: model for model in self._models.values()}
        self._models = {}
        try:
            for route in routes:
                known = loaded.get(route.number)
                model = _Model(route, known.card, known.signature, known.backend) if known else self._opened(route)
                self._models |= dict.fromkeys(route.asked, model)
                self._tell()  # that it is alive
        except EXPECTED_FAILURES as error:
            self._channel.send(Kind.UNABLE, str(error).encode())
            return
        loaded.clear()
        settle()
        give_back()
        self._channel.send(Kind.READY)

    def _opened(self, route: Route) -> _Model:
        """The model, proved again: what this process answers is what was trained, too."""
        location = Location(route.name, route.version, Path(route.path))
        backend: Backend | None = None
        if route.run_by_server:
            card = card_of(location)
            golden_pixels(card)
        else:
            opened = self._opener.open(location)
            opened.replay.finish()
            card, backend = opened.card, opened.backend
        if state(location) != route.seen:
            raise OSError(f"{location} has changed since the server loaded it")
        return _Model(route, card, Signature.of(card, route.input, route.output, max_images=1), backend)

    def _look_at(self, connection: Connection) -> None:
        """Whether a whole request has arrived, and for whom."""
        try:
            asked = simple_request(connection.received, self._most)
            if asked is not None:
                model = self._model_for(asked)
                if asked.complete:
                    self._whole.append((connection, model, asked, time.monotonic()))
                    connection.asking = True
        except NotSimple:
            self._connections.give_back(connection)

    def _model_for(self, asked: SimpleRequest) -> _Model:
        model = self._models.get(asked.head.model)
        if model is None or not asked.is_within(PROMPT, model.card):
            raise NotSimple
        return model

    def _decode(self) -> None:
        """Decode what has arrived, for no longer than others can wait."""
        until = time.monotonic() + DECODE_AT_ONCE_SECONDS
        while self._whole and time.monotonic() < until:
            connection, model, asked, since = self._whole.popleft()
            if connection.gone:
                continue
            if time.monotonic() > connection.since + self._timeout / 2:
                self._connections.give_back(connection)  # to be answered in time, or refused
                continue
            try:
                self._decoded.append(self._request(connection, model, asked, since))
            except (ServiceError, NotSimple):
                self._connections.give_back(connection)
            except Exception as error:  # one request must not end a worker, and with it all others
                log.error("a worker cannot read a request, and its server answers it", exc_info=error)
                self._connections.give_back(connection)

    def _request(self, connection: Connection, model: _Model, asked: SimpleRequest, since: float) -> _Request:
        """A request that is whole since then, ready to run; raises what is wrong with it."""
        began = time.monotonic()
        exchange = Exchange(request_id(asked.head.request_id), since)
        self._keys.check(asked.head.headers)
        question = read_question(asked, model.card, model.signature, self._max_pixels)
        exchange.model, exchange.version = model.route.name, str(model.route.version)
        decoded_at = time.monotonic()
        seconds = 0.0 if question.inference else decoded_at - began
        return _Request(connection, model, exchange, question, seconds, decoded_at)

    def _answer_decoded(self) -> None:
        """Run what is decoded, in batches, and answer; or have it run."""
        by_model: dict[_Model, list[_Request]] = {}
        for request in self._decoded:
            if not request.connection.gone:
                by_model.setdefault(request.model, []).append(request)
        self._decoded = []
        for model, asked in by_model.items():
            if model.backend is None:
                self._ask(model, asked)
                continue
            for start in range(0, len(asked), model.route.batch_size):
                self._answer_batch(model.backend, asked[start : start + model.route.batch_size])

    def _ask(self, model: _Model, requests: list[_Request]) -> None:
        """Have the server run images; those for which there is no place wait for one."""
        deadlines: dict[int, float] = {}
        for request in requests:
            if not self._free:
                self._decoded.append(request)
                continue
            place = self._free.pop()
            self._images.pixels(place, model.card)[:] = request.question.pixels
            self._asked[place], request.connection.place = request, place
            deadlines[place] = request.connection.since + self._timeout
        if deadlines:
            self._channel.send(Kind.RUN, ASKED.dump_json(Asked(model.route.number, deadlines)))

    def _answer_ran(self, ran: Ran) -> None:
        """Answer what the server has run; what it has not, it is to answer itself."""
        by_model: dict[_Model, list[tuple[_Request, Logits]]] = {}
        for place, stages in ran.stages.items():
            request = self._asked.pop(place)
            request.connection.place = None
            self._free.append(place)
            if request.connection.gone:
                continue
            if stages is None:
                self._connections.give_back(request.connection)
                continue
            queue, inference, finished_at = stages
            request.exchange.stages = Stages(request.decode_seconds, queue, inference, finished_at)
            logits = self._images.logits(place, request.model.card)
            by_model.setdefault(request.model, []).append((request, logits))
        for answered in by_model.values():
            self._answer_all([request for request, _ in answered], np.stack([logits for _, logits in answered]))

    def _answer_batch(self, backend: Backend, batch: list[_Request]) -> None:
        images = np.stack([request.question.pixels for request in batch])  # (n, H, W, 3) uint8
        started = time.monotonic()
        logits = backend.run(images).logits  # (n, classes) float32
        finished = time.monotonic()
        queued = [started - request.decoded_at for request in batch]
        self._tally.batch(batch[0].model.route.number, queued, finished - started)
        for request, seconds in zip(batch, queued, strict=True):
            request.exchange.stages = Stages(request.decode_seconds, seconds, finished - started, finished)
        self._answer_all(batch, logits)

    def _answer_all(self, batch: list[_Request], logits: Logits) -> None:
        """Answer requests for one model, whose stages are known, with a row of logits `[n, classes]` each."""
        model = batch[0].model
        try:
            top_ks = [request.question.top_k for request in batch]
            answers = top_predictions_of_each(logits, model.card.labels, top_ks)
        except ServiceError:
            for request in batch:
                self._connections.give_back(request.connection)
            return
        for request, row, predictions in zip(batch, logits, answers, strict=True):
            whole = answer(request.question, row, predictions, model.signature, request.exchange)
            self._connections.answer(request.connection, whole, last=not request.question.head.keep_alive)
        for request, predictions in zip(batch, answers, strict=True):
            best = predictions[0]
            self._tally.answer(model.route.number, request.exchange.timing, best["index"], best["probability"])
            request.exchange.log_line(logging.INFO, METHOD, request.question.head.path)

    def _return_everything(self) -> None:
        """The connections, those that are still on their way here, and what was counted."""
        self._channel.refuse_more()
        with suppress(EOFError):
            for order in self._orders():
                if order.connection is not None:
                    content = Returned(time.monotonic(), order.content).to_bytes()
                    self._channel.send(Kind.BACK, content, order.connection.fileno())
        self._connections.give_all_back()
        self._tell(at_once=True)

    def _tell(self, *, at_once: bool = False) -> None:
        """Report what was counted; now and then that nothing was."""
        now = time.monotonic()
        due = self._told_at + (TALLY_SECONDS if self._tally.models else SIGN_OF_LIFE_SECONDS)
        if at_once or now >= due:
            used = time.process_time()
            self._tally.cpu_seconds, self._cpu_seconds = used - self._cpu_seconds, used
            self._tally.resident_bytes = resident_bytes()
            self._channel.send(Kind.TALLY, TALLY.dump_json(self._tally))
            self._tally, self._told_at = Tally(), now


def main() -> int:
    """Work at the socket and with the memory whose file descriptors are the arguments; the return value is the exit
    code."""
    # A terminal, and some supervisors, signal every process of a service: the server decides when this one ends.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    use_one_arena()
    channel, images = Channel(socket.socket(fileno=int(sys.argv[1]))), SharedImages(int(sys.argv[2]))
    first = channel.receive(wait=True)
    if first is None:
        return 0
    setup = SETUP.validate_json(first.content)
    configure_logging(setup.log_format, setup.log_level)
    try:
        Worker(channel, images, setup).work()
    except StartError as error:
        log.error("a worker cannot start: %s", error)
        return 1
    except Exception as error:
        log.critical("a worker failed, and its server goes on", exc_info=error)
        return 1
    finally:
        logging.shutdown()
    return 0
