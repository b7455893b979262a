"""What the routes take from the application: one object, put on its state by app.py."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.access import Keys
from service.control import Control
from service.intake import Intake
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.repository import Repository
from service.settings import Settings


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


async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


Service = Annotated[Parts, Depends(_parts)]


async def authorised(request: Request, service: Service) -> None:
    """Let nobody past who has no key, where keys are set."""
    service.keys.check(request.headers)
