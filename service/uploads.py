"""The images in a request: which media types are taken, and what each upload amounts to."""

from typing import TYPE_CHECKING

from service.body import Form, FormLimits, Part, read_body, read_form
from service.errors import BodyTooLarge, EmptyBody, InvalidParameter, ServiceError, UnsupportedMediaType
from service.intake import Share

if TYPE_CHECKING:
    from starlette.requests import Request

FORM = "multipart/form-data"
OCTETS = "application/octet-stream"
# The part of a form with one image.
ONE_FILE = "file"
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
    if is_form(content_type):
        most_bytes = limits.part_bytes + FORM_OVERHEAD
        return _only(await read_form(request, ONE_FILE, most_bytes, limits, share), limits)
    if is_image(content_type):
        return await read_body(request, limits.part_bytes, share)
    raise UnsupportedMediaType(f"Send the image with Content-Type image/*, {OCTETS}, or as part `file` of {FORM}.")


async def read_images(
    request: "Request", most_bytes: int, limits: FormLimits, share: Share
) -> list[bytes | ServiceError]:
    """The parts `files` of a form of at most so many bytes, in order; one that is empty or too large is an error in its
    place.

    Raises:
        UnsupportedMediaType, EmptyBody, BodyTooLarge, MalformedMultipart, ClientClosed: as they say, for the whole.
    """
    if request.headers.get("content-length") == "0":
        raise EmptyBody("The request has no body; send the images as parts `files` of a form.")
    if not is_form(request.headers.get("content-type", "")):
        raise UnsupportedMediaType(f"Send the images as parts `files` of {FORM}.")
    parts = await read_form(request, "files", most_bytes, limits, share)
    if not parts:
        raise EmptyBody("The form has no part named `files`.")
    return [_content(part, limits) for part in parts]


def image_in(form: bytes, content_type: str, limits: FormLimits) -> bytes:
    """The one encoded image of a form that has arrived: its only part `file`.

    Raises:
        EmptyBody, BodyTooLarge, MalformedMultipart, InvalidParameter: as they say.
    """
    read = Form(content_type, ONE_FILE, limits)
    read.feed(form)
    return _only(read.parts(), limits)


def is_form(content_type: str) -> bool:
    """Whether a body with this Content-Type is a form."""
    return _media_type(content_type) == FORM


def is_image(content_type: str) -> bool:
    """Whether a body with this Content-Type is taken as the image itself."""
    media_type = _media_type(content_type)
    return media_type in ("", OCTETS) or media_type.startswith("image/")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _only(parts: list[Part], limits: FormLimits) -> bytes:
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
