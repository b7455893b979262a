"""One connection of the HTTP server: uvicorn's, with bounds on the head of a request, and the short way.

A plain request for labels or tensors is answered from here (`routes/short_way.py`); every other one goes to the
application as uvicorn has it.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import orjson
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.content import message, said_of_connection
from service.deadlines import KEEP_ALIVE_SECONDS
from service.errors import PROBLEM_JSON, ClientClosed, DeadlineExceeded, problem
from service.exchange import Exchange, request_id
from service.handover import Returned
from service.hang_up import EXTENSION
from service.plain_head import is_plain_version
from service.request_parser import RequestParser
from service.routes.short_way import PlainRequest, Reply, ShortWay
from service.unread import LINGER_SECONDS
from service.workers import Workers

CLOSING_SECONDS = 5.0
# From a request's first byte to the end of its headers.
HEADER_SECONDS = 10.0
# Beside what came with the request's first bytes; nginx takes 32 KiB by default.
MAX_HEADER_BYTES = 2**17
PROTOCOL_CODES = {400: "malformed_request", 408: "request_timeout", 431: "headers_too_large"}


class _PlainCycle:
    """A plain request on its connection. It stands where uvicorn has its RequestResponseCycle, and looks the same."""

    message_event = asyncio.Event()  # uvicorn sets it; nobody waits

    def __init__(self, request: PlainRequest, scope: Any, http_version: str, *, keep_alive: bool) -> None:
        self.request = request
        self.scope = scope
        self.http_version = http_version
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.reading_body = True
        self.body_limit: asyncio.TimerHandle | None = None
        self.closes_in = 0.0


class Connection(HttpToolsProtocol):
    """uvicorn's, which also says at once that its client has hung up; a task that waited would cost 30 µs a request."""

    def __init__(self, *args: Any, returned: Returned | None = None, **kwargs: Any) -> None:
        """As uvicorn's; `returned` is what came with one that a worker gave back, None for a new one."""
        super().__init__(*args, **kwargs)
        self.parser = RequestParser(self)
        state = cast("FastAPI", self.config.app).state
        self._short_way: ShortWay = state.short_way
        self._workers: Workers = state.parts.workers
        self._came_back, self._declined = returned is not None, bool(returned and returned.received)
        self._returned = returned
        self._since: float | None = None
        self._began = 0.0
        self._watchers: set[Callable[[], None]] = set()
        self._unanswered: list[RequestResponseCycle] = []
        self._reading_headers = False
        self._header_bytes = 0
        self._header_limit: asyncio.TimerHandle | None = None
        self._deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_limit = self.loop.call_later(KEEP_ALIVE_SECONDS, transport.close)
        returned, self._returned = self._returned, None
        if returned and returned.unsent:
            transport.write(returned.unsent)
            if returned.ends:
                transport.close()
                return
        if returned and returned.received:
            self._since = returned.since
            self.data_received(returned.received)
            self._since = None
            # uvloop starts to read when this returns, whatever was said before.
            self.loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self.flow.read_paused and not self.transport.is_closing():
            self.transport.pause_reading()

    @property
    def expects_request(self) -> bool:
        """Whether it is new and has sent nothing yet, or has sent only a part of a request's headers."""
        if self.cycle is None:
            return self._reading_headers or not self._came_back
        return self.scope is not self.cycle.scope

    def data_received(self, data: bytes) -> None:
        if self._workers.handing_over and self._may_leave() and self._leaves(data):
            self.transport.abort()  # here; it goes on there
            return
        if self._deaf:
            return
        begun = self._reading_headers
        super().data_received(data)
        if not self._reading_headers:
            self._bound_the_body()
            return
        if not begun or self._header_limit is None:
            self._stop_waiting_for_headers()
            self._header_limit = self.loop.call_later(HEADER_SECONDS, self._refuse, 408, "The headers took too long.")
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, "The headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading_headers, self._header_bytes, self._began = True, 0, time.monotonic()
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", {EXTENSION: self._watch})

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # it comes again without the wish
        self._reading_headers = False
        self._stop_waiting_for_headers()
        self._unanswered = [each for each in self._unanswered if not each.response_complete]
        request = self._plain_request()
        if request is None:
            super().on_headers_complete()
        else:
            http_version, keep_alive = self.parser.get_http_version(), self.parser.should_keep_alive()
            cycle = _PlainCycle(request, self.scope, http_version, keep_alive=keep_alive)
            self.cycle = cast("RequestResponseCycle", cycle)
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        if not isinstance(self.cycle, _PlainCycle):
            super().on_body(body)
        elif self.cycle.reading_body:
            self.cycle.request.take(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        if not isinstance(self.cycle, _PlainCycle):
            super().on_message_complete()
        elif self.cycle.reading_body:
            self._answer_plainly(self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_headers()
        if isinstance(self.cycle, _PlainCycle) and self.cycle.reading_body:
            self.cycle.request.fail(ClientClosed())
            self._answer_plainly(self.cycle)
        super().connection_lost(exc)
        for cycle in self._unanswered:  # uvicorn tells the last one of a pipeline only, and another is being answered
            cycle.disconnected = True
            cycle.message_event.set()
        for call in list(self._watchers):
            call()

    def shutdown(self) -> None:
        """uvicorn's, but a TLS client that does not say goodbye is waited for no longer than CLOSING_SECONDS."""
        super().shutdown()
        if self.scheme == "https" and self.transport.is_closing():
            self.loop.call_later(CLOSING_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  uvicorn's own, in plain text
        """What is no HTTP is answered as every other error."""
        self._refuse(400, "The request is not valid HTTP.")

    def _may_leave(self) -> bool:
        """Whether nothing was asked on it here, or plain requests come on it and the last is answered; and none has
        begun.

        What a worker gave back with a request is answered here first.
        """
        return (
            (self._is_unasked or self._goes_on)
            and not self._reading_headers
            and self.scheme == "http"
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        )

    @property
    def _is_unasked(self) -> bool:
        return self.cycle is None and not self._declined

    @property
    def _goes_on(self) -> bool:
        return isinstance(self.cycle, _PlainCycle) and self.cycle.response_complete and self.cycle.keep_alive

    def _leaves(self, data: bytes) -> bool:
        own = cast("socket.socket", self.transport.get_extra_info("socket"))
        new = self._is_unasked and not self._came_back
        return self._workers.take(own.fileno(), data, new=new)

    def _plain_request(self) -> PlainRequest | None:
        """What has to be answered the short way: a plain request, when its turn has come."""
        in_turn = self.cycle is None or self.cycle.response_complete
        if not in_turn or not is_plain_version(self.parser.get_http_version(), self.headers):
            return None
        return self._short_way.plain(self.parser.get_method(), self.url, self.headers, self._since)

    def _bound_the_body(self) -> None:
        """A body that did not come with its head has so long, and no longer."""
        cycle = self.cycle
        if isinstance(cycle, _PlainCycle) and cycle.reading_body and cycle.body_limit is None:
            seconds = self._short_way.seconds_left(cycle.request)
            cycle.body_limit = self.loop.call_later(seconds, self._give_up_on_the_body, cycle)

    def _give_up_on_the_body(self, cycle: _PlainCycle) -> None:
        cycle.keep_alive = False
        self._deaf = True
        cycle.closes_in = LINGER_SECONDS  # to close at once would reset the connection before the answer is read
        cycle.request.fail(DeadlineExceeded())
        self._answer_plainly(cycle)

    def _answer_plainly(self, cycle: _PlainCycle) -> None:
        cycle.reading_body = False
        if cycle.body_limit is not None:
            cycle.body_limit.cancel()
        task = self.loop.create_task(self._answer(cycle))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _answer(self, cycle: _PlainCycle) -> None:
        reply = await self._short_way.answer(cycle.request, self._watch)
        if self.flow.write_paused:  # a caller that sends on and on and never reads
            await self.flow.drain()
        if not self.transport.is_closing():
            self._write(reply, cycle)
        cycle.response_complete = True
        self._short_way.record(cycle.request)
        self.on_response_complete()

    def _write(self, reply: Reply, cycle: _PlainCycle) -> None:
        closing = not cycle.keep_alive or self._short_way.draining
        headers = self.server_state.default_headers + reply.headers
        said = said_of_connection(cycle.http_version, keep_alive=not closing)
        self.transport.write(message(STATUS_LINE[reply.status], headers, reply.body, connection=said))
        if not closing:
            return
        if cycle.closes_in:
            self.loop.call_later(cycle.closes_in, self.transport.close)
        else:
            self.transport.close()

    def _stop_waiting_for_headers(self) -> None:
        if self._header_limit is not None:
            self._header_limit.cancel()
            self._header_limit = None

    def _refuse(self, status: int, detail: str) -> None:
        """Say why, unless answers are on their way; after the last of these, hang up, and read no more."""
        if self.transport.is_closing():
            return
        unanswered = [each for each in self._unanswered if not each.response_complete]
        if unanswered and not self._is_body_of(unanswered):
            self._deaf = True
            if len(unanswered) > 1 and self.cycle.more_body:  # it has not begun, and would wait for its body
                self.pipeline.popleft()
                self._unanswered.remove(self.cycle)
                self.cycle = unanswered[-2]
                self.scope = self.cycle.scope
            self.cycle.keep_alive = False
            return
        exchange = Exchange(request_id(None), started=self._began if self._reading_headers else time.monotonic())
        self.transport.write(_refusal(exchange, status, detail))
        exchange.log_line(logging.INFO, "-", "-")
        self.transport.close()

    def _is_body_of(self, unanswered: list[RequestResponseCycle]) -> bool:
        """Whether it is the body of the one request without an answer that is no HTTP."""
        cycle = self.cycle
        return (
            unanswered == [cycle]
            and not isinstance(cycle, _PlainCycle)
            and cycle.more_body
            and not cycle.response_started
        )

    def _watch(self, call: Callable[[], None]) -> Callable[[], None]:
        self._watchers.add(call)
        return partial(self._watchers.discard, call)


def _refusal(exchange: Exchange, status: int, detail: str) -> bytes:
    """A whole answer for a request that never reached the application."""
    exchange.error_code = PROTOCOL_CODES[status]
    exchange.finish(status)
    headers = [(b"content-type", PROBLEM_JSON.encode()), *exchange.headers()]
    return message(
        STATUS_LINE[status], headers, orjson.dumps(problem(status, exchange.error_code, detail)), connection=b"close"
    )
