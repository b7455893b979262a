"""`GET /health/live`, `/health/ready` and `/metrics`: what probes and Prometheus ask, never behind the queue."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client.exposition import choose_encoder

from service.routes.dependencies import Service, on_admin_port
from service.schemas import HealthBody

router = APIRouter(tags=["operations"])
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": HealthBody, "description": "Not, and why."}}


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", response_model=HealthBody, responses=UNAVAILABLE)
async def live(service: Service) -> JSONResponse:
    """200 while the process can recover; 503 when only a restart helps."""
    lifecycle = service.lifecycle
    if lifecycle.fatal:
        return _unavailable("dead", lifecycle.phase, lifecycle.fatal)
    return JSONResponse({"status": "live", "phase": lifecycle.phase})


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", response_model=HealthBody, responses=UNAVAILABLE)
async def ready(service: Service) -> JSONResponse:
    """200 when every model passed its golden images and the server is not stopping."""
    lifecycle = service.lifecycle
    if lifecycle.ready:
        return JSONResponse({"status": "ready", "phase": lifecycle.phase})
    return _unavailable("unavailable", lifecycle.phase, lifecycle.fatal or lifecycle.reason or lifecycle.phase)


@router.get("/metrics", response_class=Response, dependencies=[Depends(on_admin_port)])
async def metrics(request: Request, service: Service) -> Response:
    """Prometheus text, or OpenMetrics, which has exemplars, for those who accept it."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(service.metrics.registry), media_type=content_type)


def _unavailable(status: str, phase: str, reason: str) -> JSONResponse:
    return JSONResponse(
        {"status": status, "phase": phase, "reason": reason}, status_code=503, headers={"retry-after": "1"}
    )
