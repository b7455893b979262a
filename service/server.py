"""The process around the application: uvicorn, with a drain that loses no accepted request.

uvicorn closes its listener at the moment of SIGTERM, before a load balancer can have noticed. Here a stop goes:
ready turns 503 -> go on serving for the drain delay, closing each connection after its answer -> take no new
connections -> let those that are open finish -> stop the batchers -> exit 0. A second signal ends at once.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, cast

import orjson
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import problem
from service.hang_up import EXTENSION
from service.lifecycle import Lifecycle
from service.settings import Settings
from service.tls import Certificate

log = logging.getLogger(__name__)

# Longer than the idle time-outs of common balancers (60 s), so that they close idle connections, not this side.
KEEP_ALIVE_SECONDS = 75
# How long a connection accepted just before the listener closed has for its first request.
LAST_REQUEST_SECONDS = 1.0
BACKLOG = 2048
CLOSING_SECONDS = 5.0
# From a request's first byte to the end of its headers.
HEADER_SECONDS = 10.0
# Beside what came with the request's first bytes; nginx takes 32 KiB by default.
MAX_HEADER_BYTES = 2**17
PROTOCOL_CODES = {400: "malformed_request", 408: "request_timeout", 431: "headers_too_large"}


class ListenError(Exception):
    """The address cannot be listened on. The message is one line that says why."""


def serve(app: FastAPI, settings: Settings) -> str:
    """Serve until told to stop; returns why the process cannot go on, or "" after a clean stop.

    Raises:
        ListenError: a port is taken or the address is not this machine's.
        CertificateError: there is one and it cannot be used.
    """
    lifecycle: Lifecycle = app.state.parts.lifecycle
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    ports = [settings.port, *([settings.admin_port] if settings.admin_port else [])]
    listeners = [listen(settings.host, port) for port in ports]
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=-(-settings.drain_timeout_ms // 1000),
        backlog=BACKLOG,
        ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
    )
    server = _DrainingServer(config, lifecycle, settings.drain_delay_ms / 1000, listeners, certificate)
    for listener in listeners:
        log.info("listening on %s://%s:%d", "https" if certificate else "http", *listener.getsockname()[:2])
    server.run(sockets=listeners)
    log.info("stopped")
    return lifecycle.fatal


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ListenError: the port is taken or the address is not this machine's.
    """
    try:
        return socket.create_server((host, port), family=_family(host), backlog=BACKLOG)
    except OSError as error:
        raise ListenError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class _Connection(HttpToolsProtocol):
    """uvicorn's, with bounds on time and size of a request's headers.

    It also says at once that its client has hung up; a task that waited for it would cost 30 µs a request.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watchers: set[Callable[[], None]] = set()
        self._reading_headers = False
        self._header_bytes = 0
        self._header_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_limit = self.loop.call_later(KEEP_ALIVE_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        begun = self._reading_headers
        super().data_received(data)
        if not self._reading_headers:
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
        self._reading_headers, self._header_bytes = True, 0
        self.scope["extensions"] = cast("dict[str, dict[object, object]]", {EXTENSION: self._watch})

    def on_headers_complete(self) -> None:
        self._reading_headers = False
        self._stop_waiting_for_headers()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting_for_headers()
        super().connection_lost(exc)
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

    def _stop_waiting_for_headers(self) -> None:
        if self._header_limit is not None:
            self._header_limit.cancel()
            self._header_limit = None

    def _refuse(self, status: int, detail: str) -> None:
        """Say why, unless another answer is on its way, and hang up."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_refusal(status, detail))
        self.transport.close()

    def _watch(self, call: Callable[[], None]) -> Callable[[], None]:
        self._watchers.add(call)
        return partial(self._watchers.discard, call)


class _DrainingServer(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        drain_delay: float,
        listeners: list[socket.socket],
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_delay = drain_delay
        self._listeners = listeners
        self._certificate = certificate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn names it
        """First signal: drain; second: stop at once. uvicorn would record it and die of it after the drain."""
        if self._lifecycle.draining:
            sys.stdout.flush()
            os.write(2, b"resnet-serve: stopped by a second signal\n")
            os._exit(1)
        self._lifecycle.drain()
        if sig == signal.SIGINT:
            self._drain_delay = 0.0  # somebody at a terminal, and no balancer, waits for the end

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to stop?"""
        drained_at = self._lifecycle.draining_since
        if drained_at is not None and time.monotonic() >= drained_at + self._drain_delay:
            self.should_exit = True
        if self._certificate is not None:
            self._certificate.look()
        if self._lifecycle.fatal:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening without resetting anybody, wait for requests on their way, then let uvicorn finish."""
        self._lifecycle.drain()
        log.info("draining: answering what is in flight")
        await self._stop_listening()
        give_up = time.monotonic() + LAST_REQUEST_SECONDS
        # uvicorn has no event for it.
        while time.monotonic() < give_up and any(map(_expects_request, self.server_state.connections)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def _stop_listening(self) -> None:
        """Take the connections that the kernel has completed for us, then close, within one turn of the loop."""
        for listener in self._listeners:
            listener.listen(0)  # no room for further ones
        await asyncio.sleep(0.05)
        accepted = [connection for listener in self._listeners for connection in _accepted(listener)]
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)

    def _protocol(self) -> asyncio.Protocol:
        return _Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that the kernel has completed."""
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]


def _refusal(status: int, detail: str) -> bytes:
    """A whole answer for a request that never reached the application."""
    body = orjson.dumps(problem(status, PROTOCOL_CODES[status], detail))
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/problem+json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


def _expects_request(connection: object) -> bool:
    """Whether a connection has sent nothing yet, or only a part of a request's headers."""
    if not isinstance(connection, HttpToolsProtocol):
        return False
    return connection.cycle is None or connection.scope is not connection.cycle.scope
