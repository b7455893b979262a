"""The gRPC port: opened in the server's own event loop, closed after the calls in flight.

The library is an extra, so this module is the only one of the service that imports what needs it, and only when asked.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.routes.dependencies import Parts

log = logging.getLogger(__name__)

# Names, shapes and parameters around the tensor of a request.
MESSAGE_OVERHEAD = 64 * 2**10
# gRPC cancels what arrives while it closes, which a client must not repeat. For so long it is told UNAVAILABLE instead.
LAST_CALLS_SECONDS = 0.25


@asynccontextmanager
async def grpc_listening(parts: Parts) -> AsyncIterator[None]:
    """Answer on `settings.grpc_port`, if it is not 0, and finish the calls in flight at the end.

    What stands in the way of listening ends the process, as a missing device does.
    """
    server = await _open(parts) if parts.settings.grpc_port else None
    yield
    if server is not None:
        await server.stop(parts.lifecycle.grace(parts.settings.drain_timeout_ms / 1000))


async def _open(parts: Parts) -> "GrpcServer | None":
    """A listening server, or None when the lifecycle was told why there is none."""
    host, port = parts.settings.host, parts.settings.grpc_port
    try:
        server = GrpcServer(parts)
    except Exception as error:  # grpc, protobuf and tritonclient each have their own for versions that do not fit
        parts.lifecycle.fail(f"gRPC is asked for and not there ({error}): install resnet-service[grpc]")
        return None
    try:
        await server.listen(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError:
        parts.lifecycle.fail(f"cannot listen on {host} port {port} for gRPC: it is taken, or not this machine's")
        return None
    log.info("listening for gRPC on %s port %d", host, port)
    return server


class GrpcServer:
    """Answers `inference.GRPCInferenceService`. Raises ImportError where the extra is not installed."""

    def __init__(self, parts: Parts) -> None:
        # gRPC's core writes errors of its own to stderr, where this service writes one line of one form.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        import grpc

        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_about_the_server)

        from service.grpc_calls import SERVICE, Calls
        from service.inference_grpc import InferenceService

        settings = parts.settings
        self._calls = Calls(parts.lifecycle, parts.metrics, parts.keys, administers=not settings.admin_port)
        self._files = (settings.tls_key, settings.tls_cert) if settings.tls_key and settings.tls_cert else None
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", parts.settings.max_request_bytes + MESSAGE_OVERHEAD),
                # With it, a port that another process has would be shared instead of refused.
                ("grpc.so_reuseport", 0),
            )
        )
        methods = InferenceService(parts).methods()
        handlers = {name: self._calls.handler(name, method) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def listen(self, address: str) -> None:
        """Open the port; RuntimeError when it cannot be had."""
        if self._files is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, _credentials(*self._files))
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take nothing new, and give calls in flight so many seconds."""
        self._calls.closing = True
        await asyncio.sleep(LAST_CALLS_SECONDS)
        await self._server.stop(grace)


def _is_about_the_server(record: logging.LogRecord) -> bool:
    """Whether what gRPC logs is no answer that failed because its caller went away while it was sent."""
    import grpc

    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, grpc.aio.InternalError)


def _credentials(key: Path, chain: Path) -> Any:
    """The certificate of HTTPS, looked at anew for each connection; files that do not fit leave the last that did."""
    import grpc

    def read() -> Any:
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), chain.read_bytes())])

    return grpc.dynamic_ssl_server_credentials(read(), read)
