"""Every way a request can fail, with the status and the stable code that callers see (contract section 5).

bytes -> *decode* -> pixels -> *queue* -> batch -> *device* -> logits -> answer: each error below belongs to one arrow.
"""

from http import HTTPStatus
from typing import Any, ClassVar, Self

PROBLEM_JSON = "application/problem+json"


class StartError(Exception):
    """The process cannot serve with what it was given. The message is one line that says why and what to do."""


class ServiceError(Exception):
    """A failure with an HTTP answer. `detail` is shown to the caller and must say nothing of the inside."""

    status: ClassVar[int]
    code: ClassVar[str]
    detail = ""
    retry_after: int | None = None

    def __init__(self, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(detail or self.detail)
        self.detail = detail or self.detail
        self.retry_after = retry_after or self.retry_after

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem object."""
        return problem(self.status, self.code, self.detail)


def problem(status: int, code: str, detail: str) -> dict[str, Any]:
    """An RFC 9457 problem object; `code` is the stable name that clients may switch on."""
    return {
        "type": f"urn:resnet-service:problem:{code}",
        "title": "Client Closed Request" if status == 499 else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }


class UndecodableImage(ServiceError):
    status, code = 400, "undecodable_image"
    detail = "The body is not a complete JPEG, PNG, WebP or GIF image."


class EmptyBody(ServiceError):
    status, code = 400, "empty_body"
    detail = "The request has no body; send the image as the body or as the multipart part `file`."


class MalformedMultipart(ServiceError):
    status, code = 400, "malformed_multipart"
    detail = "The body is not valid multipart/form-data."


class InvalidRequest(ServiceError):
    """A request of the Open Inference Protocol that does not fit the protocol or the model."""

    status, code = 400, "invalid_request"


class Unauthorized(ServiceError):
    status, code = 401, "unauthorized"
    detail = "Send a valid key as `Authorization: Bearer KEY` or `X-API-Key: KEY`."


class Forbidden(ServiceError):
    status, code = 403, "forbidden"
    detail = "This key may classify and not control models."


class UnknownModel(ServiceError):
    status, code = 404, "unknown_model"


class BodyTooLarge(ServiceError):
    status, code = 413, "body_too_large"


class ImageTooLarge(ServiceError):
    status, code = 413, "image_too_large"


class UnsupportedMediaType(ServiceError):
    status, code = 415, "unsupported_media_type"


class UnsupportedContentEncoding(ServiceError):
    status, code = 415, "unsupported_content_encoding"


class InvalidParameter(ServiceError):
    status, code = 422, "invalid_parameter"


class Overloaded(ServiceError):
    status, code = 429, "overloaded"
    detail = "The queue is full; try again after the time in Retry-After."


class RateLimited(ServiceError):
    status, code = 429, "rate_limited"
    detail = "This key has used up its requests; try again after the time in Retry-After."


class ClientClosed(ServiceError):
    """The caller went away: seen in logs and metrics only, nobody is left to read it."""

    status, code = 499, "client_closed"
    detail = "The client closed the connection."


class InternalError(ServiceError):
    """A failure of ours. What it was is its `__cause__`, for the log alone."""

    status, code = 500, "internal_error"
    detail = "The server failed on this request; its log has the reason under the request id."

    @classmethod
    def because(cls, cause: Exception) -> Self:
        """The failure with its cause, where it is handed on instead of raised."""
        error = cls()
        error.__cause__ = cause
        return error


class Starting(ServiceError):
    status, code = 503, "starting"
    retry_after = 1
    detail = "The models are being loaded; /health/ready tells how far."


class Draining(ServiceError):
    status, code = 503, "draining"
    retry_after = 1
    detail = "This server is shutting down; send the request to another one."


class ModelUnavailable(ServiceError):
    status, code = 503, "model_unavailable"
    retry_after = 5
    detail = "The model is not in service; /models says why."


class DeadlineExceeded(ServiceError):
    status, code = 504, "deadline_exceeded"
    detail = "The deadline passed before the answer was there."


def without_traceback(error: ServiceError) -> ServiceError:
    """The error, once nobody will ask any more where it was raised; failures of ours keep their cause for the log.

    Its frames hold the ticket whose future holds the error: a circle, with the image in it, that only the garbage
    collector would break, many requests later.
    """
    error.__traceback__ = None
    if not isinstance(error, InternalError):
        error.__cause__ = error.__context__ = None
    return error


ERRORS: tuple[type[ServiceError], ...] = (
    UndecodableImage, EmptyBody, MalformedMultipart, InvalidRequest, Unauthorized, Forbidden, UnknownModel,
    BodyTooLarge, ImageTooLarge, UnsupportedMediaType, UnsupportedContentEncoding, InvalidParameter, Overloaded,
    RateLimited, ClientClosed, InternalError, Starting, Draining, ModelUnavailable, DeadlineExceeded,
)  # fmt: skip
