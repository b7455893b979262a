"""`GET /models`: what is served, and what is not and why."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request

from service.costs import Costs
from service.errors import Forbidden, Starting, UnknownModel
from service.repository import ServedModel
from service.routes.dependencies import Parts, Service, administration, authorised_to_administer, on_admin_port
from service.schemas import (
    PROBLEMS,
    AliasTarget,
    BatchCost,
    CostsBody,
    LabelsBody,
    ModelBody,
    ModelQuery,
    ModelsBody,
    VersionBody,
)
from service.splits import Alias

router = APIRouter(tags=["models"], responses={status: PROBLEMS[status] for status in (404, 422, 503)})
REFUSED: dict[int | str, dict[str, Any]] = {
    400: PROBLEMS[400] | {"description": "Models are not controlled by request, or the folder cannot be written to."},
    403: PROBLEMS[401] | {"description": Forbidden.detail},
}
administrative = APIRouter(
    tags=["models"],
    dependencies=[Depends(authorised_to_administer), Depends(on_admin_port)],
    responses=REFUSED | {status: PROBLEMS[status] for status in (401, 404, 422, 503)},
)

Name = Annotated[str, Path(description="The folder's name.")]


@router.get("/models")
async def models(service: Service) -> ModelsBody:
    """Every model with its versions, devices and cards."""
    return ModelsBody(models=[_model(name, service) for name in service.repository.names()])


@router.get("/models/{name}")
async def model(name: Name, service: Service) -> ModelBody:
    """One model with its versions."""
    if name not in service.repository.names():
        if service.repository.loading:
            raise Starting
        raise UnknownModel("There is no such model here; GET /models lists what is served.")
    return _model(name, service)


@router.get("/models/{name}/labels")
async def labels(name: Name, query: Annotated[ModelQuery, Query()], service: Service) -> LabelsBody:
    """The labels of one version, by class index."""
    served = service.repository.find(name, query.version)
    return LabelsBody(model=served.name, version=served.version, labels=list(served.card.labels))


@administrative.put("/models/{name}/aliases/{alias}")
async def move_alias(name: Name, alias: Alias, target: AliasTarget, service: Service, request: Request) -> ModelBody:
    """Let `stable` or `canary` stand for a version that is in service; with SERVICE_MODEL_CONTROL=explicit."""
    with administration(f"alias {alias} of {name} to {target.version}", request, service):
        await service.control.move_alias(name, alias, target.version)
    return _model(name, service)


@administrative.delete("/models/{name}/aliases/{alias}")
async def remove_alias(name: Name, alias: Alias, service: Service, request: Request) -> ModelBody:
    """Let an alias stand for nothing; with SERVICE_MODEL_CONTROL=explicit."""
    with administration(f"alias {alias} of {name} to nothing", request, service):
        await service.control.move_alias(name, alias, None)
    return _model(name, service)


def _model(name: str, service: Parts) -> ModelBody:
    reasons = {each.version: reason for each, reason in service.repository.failed.items() if each.name == name}
    served = [_served(each, reasons.pop(each.version, None)) for each in service.repository if each.name == name]
    failed = [VersionBody(version=version, state="failed", reason=reason) for version, reason in reasons.items()]
    versions = sorted(served + failed, key=lambda each: -each.version)
    return ModelBody(name=name, aliases=service.repository.aliases.get(name, {}), versions=versions)


def _served(each: ServedModel, reason: str | None) -> VersionBody:
    return VersionBody(
        version=each.version,
        state="ready",
        reason=reason,
        device=each.device,
        explains=each.head is not None,
        golden_max_abs_diff=each.golden_max_abs_diff,
        costs=_costs(each.costs),
        card=each.card.summary(),
    )


def _costs(costs: Costs) -> CostsBody:
    return CostsBody(
        lone=costs.lone,
        lone_seconds=costs.lone_seconds,
        crowd=costs.crowd,
        lanes=costs.lanes,
        batches=[
            BatchCost(
                batch_size=each.size, seconds=each.seconds, images_per_second=each.images_per_second, used=each.used
            )
            for each in costs.table
        ],
    )
