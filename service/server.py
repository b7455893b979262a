"""The process around the application: uvicorn, with a drain that loses no accepted request.

uvicorn closes its listener at the moment of SIGTERM, before a load balancer can have noticed. Here a stop goes:
ready turns 503 -> go on serving for the drain delay, closing each connection after its answer -> take no new
connections -> let those that are open finish -> stop the batchers -> exit 0. A second signal ends at once.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.connection import Connection
from service.deadlines import KEEP_ALIVE_SECONDS
from service.errors import StartError
from service.handover import Returned
from service.lifecycle import Lifecycle
from service.logs import flush_within
from service.routes.dependencies import Parts
from service.settings import Settings
from service.tls import Certificate

log = logging.getLogger(__name__)

# How long a connection accepted just before the listener closed has for its first request.
LAST_REQUEST_SECONDS = 1.0
BACKLOG = 2048
# After a second signal.
LAST_LINES_SECONDS = 0.5


class ListenError(StartError):
    """The address cannot be listened on. The message is one line that says why."""


def serve(app: FastAPI, settings: Settings) -> str:
    """Serve until told to stop; returns why the process cannot go on, or "" after a clean stop.

    Raises:
        ListenError: a port is taken or the address is not this machine's.
        CertificateError: there is one and it cannot be used.
    """
    lifecycle: Lifecycle = app.state.parts.lifecycle
    _use_all_descriptors()
    certificate = Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    ports = [settings.port, *([settings.admin_port] if settings.admin_port else [])]
    listeners = [listen(settings.host, port) for port in ports]
    config = uvicorn.Config(
        app,
        http=Connection,
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
    server = _DrainingServer(config, app.state.parts, settings.drain_delay_ms / 1000, listeners, certificate)
    for listener in listeners:
        log.info("listening on %s://%s:%d", "https" if certificate else "http", *listener.getsockname()[:2])
    server.run(sockets=listeners)
    log.info("stopped")
    return lifecycle.fatal


def _use_all_descriptors() -> None:
    """Let as many connections be open as this user may have, not the 1,024 files that each process gets unasked: what
    workers hold comes back to this one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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


class _DrainingServer(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        parts: Parts,
        drain_delay: float,
        listeners: list[socket.socket],
        certificate: Certificate | None,
    ) -> None:
        super().__init__(config)
        self._lifecycle = parts.lifecycle
        self._workers = parts.workers
        self._workers.connect = self._connect
        self._drain_delay = drain_delay
        self._listeners = listeners
        self._certificate = certificate

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn names it
        """First signal: drain; second: stop at once. uvicorn would record it and die of it after the drain."""
        if self._lifecycle.draining:
            flush_within(LAST_LINES_SECONDS)
            os.write(2, b"resnet-serve: stopped by a second signal\n")
            os._exit(1)
        self._lifecycle.drain()
        if sig == signal.SIGINT:
            self._drain_delay = 0.0  # somebody at a terminal, and no balancer, waits for the end

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it time to stop?"""
        drained_at = self._lifecycle.draining_since
        if drained_at is not None:
            await self._workers.retire()  # what they would answer now would not end with a closed connection
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
        await self._workers.retire()
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
        for connection in accepted:
            await self._connect(connection)

    async def _connect(self, connection: socket.socket, returned: Returned | None = None) -> None:
        """Serve a connection: a new one, or one that came back, with what came with it."""
        protocol = partial(
            Connection,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            returned=returned,
        )
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=self.config.ssl)


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """The connections that the kernel has completed."""
    with suppress(BlockingIOError):
        while True:
            yield listener.accept()[0]


def _expects_request(connection: object) -> bool:
    return isinstance(connection, Connection) and connection.expects_request
