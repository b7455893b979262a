"""The only place where the parts are put together."""

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from service.access import Keys
from service.cache import Cache
from service.control import Control
from service.cpus import available_cpus
from service.errors import ServiceError
from service.gpu import watch_gpus
from service.grpc_server import grpc_listening
from service.intake import Intake
from service.lifecycle import Lifecycle
from service.memory import set_aside, settle
from service.metrics import Metrics
from service.middleware import ExchangeMiddleware
from service.opening import Opener, opener_for
from service.pipeline import Pipeline
from service.repository import Repository
from service.routes import classify, health, inference_v2, models, page
from service.routes.dependencies import KEY_SCHEMES, Parts, authorised
from service.routes.problems import on_http_error, on_invalid_request, on_service_error
from service.routes.short_classify import read_classify
from service.routes.short_infer import read_infer
from service.routes.short_way import ShortWay
from service.settings import Settings
from service.shadow import Shadow
from service.splits import parse_splits
from service.tracing import Tracing
from service.unread import UnreadBodyMiddleware
from service.workers import Workers

log = logging.getLogger(__name__)

# Between two looks at the devices.
WATCH_SECONDS = 0.25

DESCRIPTION = "A trained ResNet behind HTTP. `POST /classify` takes an image and answers with labels."


def create_app(settings: Settings, opener: Opener | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: built once by the caller.
        opener: opens the models; as the settings say when absent.
    """
    threads = settings.threads or available_cpus()
    lifecycle, metrics = Lifecycle(), Metrics(CollectorRegistry())
    metrics.watch_readiness(lambda: lifecycle.ready)
    cache = Cache(settings.cache_bytes, metrics) if settings.cache_bytes else None
    repository = Repository(
        metrics,
        settings.max_queue,
        parse_splits(settings.canary, whole=False),
        parse_splits(settings.shadow, whole=True),
        cache,
        settings.device_timeout_ms / 1000,
    )
    tracing = Tracing(settings.otlp_endpoint, settings.trace_sample) if settings.otlp_endpoint else None
    workers = Workers(settings, threads, metrics)
    control = Control(settings, opener or opener_for(settings), repository, lifecycle, workers)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    pipeline = Pipeline(pool, settings.max_image_pixels, metrics, cache, Shadow(metrics))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The port opens at once and the probes tell the phase, so the models are loaded beside, not before.
        loading = asyncio.create_task(_take_into_service(settings, control, repository, lifecycle, metrics))
        watching = asyncio.create_task(_watch(repository, workers))
        async with grpc_listening(app.state.parts):
            yield
        loading.cancel()
        watching.cancel()
        await workers.close()
        await repository.close(lifecycle.grace(settings.drain_timeout_ms / 1000))
        pool.shutdown(wait=False, cancel_futures=True)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPIOffline(
        title="resnet-service",
        version=version("resnet-service"),
        description=DESCRIPTION,
        redoc_url=None,
        # FastAPI's own would look for a provider at each request, the plain ones too.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # A redirect would be built from a Host header that the caller chose.
        redirect_slashes=False,
        lifespan=lifespan,
        # Swagger UI asks validator.swagger.io about every document that is not on localhost.
        swagger_ui_parameters={"validatorUrl": None},
        exception_handlers={
            ServiceError: on_service_error,
            RequestValidationError: on_invalid_request,
            HTTPException: on_http_error,
        },
    )
    app.state.parts = Parts(
        settings,
        lifecycle,
        metrics,
        repository,
        control,
        pipeline,
        Intake(settings.max_intake_bytes),
        Keys(settings.api_keys.get_secret_value(), settings.api_keys_file, settings.rate_limit),
        tracing,
        workers,
    )
    app.add_middleware(UnreadBodyMiddleware)
    app.add_middleware(ExchangeMiddleware, lifecycle=lifecycle, metrics=metrics, tracing=tracing)
    for open_to_all in (health.router, inference_v2.probes, page.router):
        app.include_router(open_to_all)
    schemes = KEY_SCHEMES if app.state.parts.keys else []
    for guarded in (classify.router, models.router, inference_v2.router):
        app.include_router(guarded, dependencies=[Depends(authorised), *schemes])
    for administrative in (models.administrative, inference_v2.administrative):
        app.include_router(administrative, dependencies=schemes)
    app.mount("/page", page.assets)
    app.state.short_way = ShortWay(app.state.parts, read_classify, read_infer)
    return app


async def _take_into_service(
    settings: Settings, control: Control, repository: Repository, lifecycle: Lifecycle, metrics: Metrics
) -> None:
    set_aside()
    await control.start()
    settle()
    if any(model.device != "cpu" for model in repository):
        watch_gpus(metrics.registry)
    if lifecycle.ready:
        log.info("ready: %s", ", ".join(f"{each.name} version {each.version} on {each.device}" for each in repository))
        if settings.example_image:
            log.info("open %s/ or try:\n\n  %s\n", settings.url, _curl(settings))
    if settings.model_control == "poll" and not lifecycle.fatal:
        await control.watch()


async def _watch(repository: Repository, workers: Workers) -> None:
    """Look after devices and workers for as long as the task lives."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        repository.watch(WATCH_SECONDS)
        workers.watch(WATCH_SECONDS)


def _curl(settings: Settings) -> str:
    return f"curl -F file=@{shlex.quote(settings.example_image)} {settings.url}/classify"
