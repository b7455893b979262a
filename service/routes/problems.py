"""Every error leaves as `application/problem+json` (RFC 9457) with a stable code; under `/v2` as `{"error": …}`."""

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.compression import CODINGS
from service.errors import (
    PROBLEM_JSON,
    InvalidParameter,
    ServiceError,
    Unauthorized,
    UnsupportedContentEncoding,
    problem,
    without_traceback,
)
from service.exchange import Exchange, exchange_of, speaks_inference_protocol

CODES = {404: "not_found", 405: "method_not_allowed"}


async def on_service_error(request: Request, error: Exception) -> JSONResponse:
    """Our own errors carry their status, code and detail."""
    assert isinstance(error, ServiceError)  # noqa: S101  registered for this class only
    told(exchange_of(request), error)
    return _respond(request, error.problem(), problem_headers(error))


def told(exchange: Exchange, error: ServiceError) -> None:
    """Note, for metrics and log, the error that a caller is told."""
    exchange.error_code = error.code
    exchange.log_failure(error)
    without_traceback(error)


def problem_headers(error: ServiceError) -> dict[str, str]:
    """What an error says in the head of its answer."""
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, UnsupportedContentEncoding):
        headers["accept-encoding"] = ", ".join(CODINGS)
    return headers


async def on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's validation errors, as the first parameter that is wrong and why."""
    assert isinstance(error, RequestValidationError)  # noqa: S101
    complaints = error.errors()
    where = complaints[0]["loc"][1:2]
    said = [each["msg"] for each in complaints if each["loc"][1:2] == where]  # a number or a word has two
    name = where[0] if where and isinstance(where[0], str) else "the body"
    return await on_service_error(request, InvalidParameter(f"{name}: {', or: '.join(said)}"))


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own 404 and 405."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = CODES.get(error.status_code, "http_error")
    exchange_of(request).error_code = code
    return _respond(request, problem(error.status_code, code, f"{error.detail}."), dict(error.headers or {}))


def _respond(request: Request, body: dict[str, object], headers: dict[str, str]) -> JSONResponse:
    if speaks_inference_protocol(request.url.path):
        return JSONResponse({"error": body["detail"]}, int(str(body["status"])), headers)
    return JSONResponse(body, int(str(body["status"])), headers, media_type=PROBLEM_JSON)
