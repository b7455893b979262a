"""The images in a request: which media types are taken, and what each upload amounts to."""

from typing import TYPE_CHECKING

from service.body import FormLimits, Part, read_body, read_form
from service.errors import BodyTooLarge, EmptyBody, InvalidParameter, ServiceError, UnsupportedMediaType
from service.intake import Share

if TYPE_CHECKING:
    from starlette.requests import Request

FORM = "multipart/form-data"
OCTETS = "application/octet-stream"
# Boundaries and part headers around the file of a form.
FORM_OVERHEAD = 64 * 2**10


async def read_image(request: "Request", limits: FormLimits, share: Share) -> bytes:
    """The one encoded image of a request: its body, or its only part `file`.

    Raises:
        UnsupportedMediaType: the body is declared as something else.
        EmptyBody, BodyTooLarge, MalformedMultipart, InvalidParameter, ClientClosed: as they say.
    """
    if request.headers.get("content-length") == "0":
        raise EmptyBody
    content_type = request.headers.get("content-type", "")
    if _media_type(content_type) == FORM:
        return await _only_file(request, limits, share)
    if is_image(content_type):
        return await read_body(request, limits.part_bytes, share)
    raise UnsupportedMediaType(f"Send the image with Content-Type image/*, {OCTETS}, or as part `file` of {FORM}.")


async def read_images(request: "Request", limits: FormLimits, share: Share) -> list[bytes | ServiceError]:
    """The parts `files` of a form, in order; an empty or too large one is an error in its place.

    Raises:
        UnsupportedMediaType, EmptyBody, BodyTooLarge, MalformedMultipart, ClientClosed: as they say, for the whole.
    """
    if request.headers.get("content-length") == "0":
        raise EmptyBody("The request has no body; send the images as parts `files` of a form.")
    if _media_type(request.headers.get("content-type", "")) != FORM:
        raise UnsupportedMediaType(f"Send the images as parts `files` of {FORM}.")
    parts = await read_form(request, "files", limits, share)
    if not parts:
        raise EmptyBody("The form has no part named `files`.")
    return [_content(part, limits) for part in parts]


def is_image(content_type: str) -> bool:
    """Whether a body with this Content-Type is taken as the image itself."""
    media_type = _media_type(content_type)
    return media_type in ("", OCTETS) or media_type.startswith("image/")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


async def _only_file(request: "Request", limits: FormLimits, share: Share) -> bytes:
    parts = await read_form(
        request, "file", FormLimits(limits.part_bytes + FORM_OVERHEAD, limits.part_bytes, limits.files), share
    )
    if not parts:
        raise EmptyBody("The form has no part named `file`.")
    if len(parts) > 1:
        raise InvalidParameter("file: send one image here, or several to /classify/batch.")
    content = _content(parts[0], limits)
    if isinstance(content, ServiceError):
        raise content
    return content


def _content(part: Part, limits: FormLimits) -> bytes | ServiceError:
    if part.too_large:
        return BodyTooLarge(f"The image has more than {limits.part_bytes} bytes.")
    return bytes(part.data) if part.data else EmptyBody("The image is empty.")
