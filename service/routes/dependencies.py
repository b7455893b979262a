"""What the routes take from the application: one object, put on its state by app.py."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from service.access import Keys
from service.audit import audited, check_administrator
from service.control import Control
from service.exchange import Exchange, exchange_of
from service.intake import Intake
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.repository import Repository, ServedModel
from service.settings import Settings
from service.splits import Version
from service.tracing import Tracing
from service.workers import Workers


@dataclass(frozen=True)
class Parts:
    """The parts of a running service."""

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    repository: Repository
    control: Control
    pipeline: Pipeline
    intake: Intake
    keys: Keys
    tracing: Tracing | None
    workers: Workers


async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


Service = Annotated[Parts, Depends(_parts)]


async def on_admin_port(request: Request, service: Service) -> None:
    """Where administration has a port of its own, it is found on no other."""
    port = service.settings.admin_port
    if port and (request.scope.get("server") or ("", 0))[1] != port:
        raise HTTPException(404, "Not Found")


# For the OpenAPI document, where keys are set: what is sent is read by `authorised`.
KEY_SCHEMES = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="X-API-Key", auto_error=False))]


async def authorised(request: Request, service: Service) -> None:
    """Let nobody past who has no key, where keys are set."""
    service.keys.check(request.headers)


async def authorised_to_administer(request: Request, service: Service) -> None:
    """As `authorised`; who is refused is written down. What a key may do is for `administration` to say."""
    action = f"{request.method} {request.scope['path']}"
    check_administrator(action, service.keys, request.headers, _address(request), exchange_of(request))


def asked_model(
    name: str, version: Version | None, canary_key: str | None, exchange: Exchange, service: Parts
) -> ServedModel:
    """The model that a request asks; the caller has to hold it at once."""
    model = service.repository.find(name, version, side_key(canary_key, exchange))
    exchange.model, exchange.version = model.name, str(model.version)
    return model


def side_key(canary_key: str | None, exchange: Exchange) -> str:
    """What keeps a caller on its side of a canary or a shadow; without a key each request is another caller."""
    return canary_key or exchange.request_id


def administration(action: str, request: Request, service: Parts) -> AbstractContextManager[None]:
    """Let an administrator do something, and write it down; see `audit.py`."""
    return audited(action, service.keys, request.headers, _address(request), exchange_of(request))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""
