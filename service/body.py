"""A request's body: read under a byte limit, as raw bytes or as the parts of a form, never through the disk."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import BodyTooLarge, ClientClosed, EmptyBody, MalformedMultipart
from service.intake import Share


async def read_body(request: "Request", limit: int, share: Share) -> bytes:
    """The whole body, counted against a share of the memory for bodies.

    Raises:
        Overloaded: that memory is used up.
        BodyTooLarge: it is over `limit` bytes; from Content-Length before a byte is read, or while reading.
        EmptyBody: there is none.
        ClientClosed: the client went away while sending.
    """
    chunks = [chunk async for chunk in _chunks(request, limit, share)]
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if not body:
        raise EmptyBody
    return body


if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks
    from starlette.requests import Request


# Fields beside the files, which are ignored, and what describes each: bounds on the work they make.
MAX_PARTS = 1000
MAX_PARAMETERS = 32


@dataclass(frozen=True)
class FormLimits:
    """Bounds of the parts of a form; `part_bytes` only marks one as too large, `files` refuses the request."""

    part_bytes: int
    files: int


@dataclass
class Part:
    """One file of a form. Past the limit its bytes are counted out, not kept."""

    data: bytearray = field(default_factory=bytearray)
    too_large: bool = False


async def read_form(request: "Request", name: str, most_bytes: int, limits: FormLimits, share: Share) -> list[Part]:
    """The parts of a multipart/form-data body that are called `name`, in order; parts with other names are ignored.

    Raises:
        MalformedMultipart: no boundary, a syntax error, or an end before the last boundary.
        BodyTooLarge: it is over `most_bytes` bytes, or has more parts than the limits.
        EmptyBody: there is none.
        ClientClosed: the client went away while sending.
    """
    form = Form(request.headers.get("content-type", ""), name, limits)
    empty = True
    async for chunk in _chunks(request, most_bytes, share):
        form.feed(chunk)
        empty = empty and not chunk
    if empty:
        raise EmptyBody
    return form.parts()


async def _chunks(request: "Request", limit: int, share: Share) -> AsyncIterator[bytes]:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise BodyTooLarge(f"The body has {declared} bytes; the limit is {limit}.")
    received = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientClosed
        chunk: bytes = message.get("body", b"")
        received += len(chunk)
        if received > limit:
            raise BodyTooLarge(f"The body has more than {limit} bytes.")
        share.take(len(chunk))
        yield chunk
        if not message.get("more_body", False):
            return


class Form:
    """A multipart/form-data body, as it arrives."""

    def __init__(self, content_type: str, name: str, limits: FormLimits) -> None:
        """Keep the parts called `name` of a body with this Content-Type, of which the caller counts the bytes.

        Raises:
            MalformedMultipart: it has no boundary, or one that is too long.
        """
        self._wanted: list[Part] = []
        self._complete = False
        self._name = name.encode()
        self._limits = limits
        self._parts = 0
        self._header = (bytearray(), bytearray())
        self._part: Part | None = None
        self._described = False
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedMultipart("The Content-Type multipart/form-data has no boundary.")
        try:
            self._parser = MultipartParser(boundary, self._callbacks())
        except ValueError as error:
            raise MalformedMultipart from error

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises:
            MalformedMultipart: a syntax error, or a part that is described twice or without end.
            BodyTooLarge: more parts than the limits.
        """
        try:
            self._parser.write(chunk)
        except (MultipartParseError, ValueError) as error:
            raise MalformedMultipart from error

    def parts(self) -> list[Part]:
        """What was wanted, in order; MalformedMultipart if the last boundary has not come."""
        if not self._complete:
            raise MalformedMultipart("The multipart body ends before its last boundary.")
        return self._wanted

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BodyTooLarge(f"The form has more than {MAX_PARTS} parts.")
        self._part, self._described = None, False

    def _end_header(self) -> None:
        name, value = bytes(self._header[0]), bytes(self._header[1])
        self._header = (bytearray(), bytearray())
        if name.lower() == b"content-disposition":
            if self._described or value.count(b";") > MAX_PARAMETERS:
                raise MalformedMultipart
            self._described = True
            _, options = parse_options_header(value)
            if options.get(b"name") == self._name:
                self._part = Part()
                self._wanted.append(self._part)
                if len(self._wanted) > self._limits.files:
                    raise BodyTooLarge(f"The form has more than {self._limits.files} images.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part is None or part.too_large:
            return
        if len(part.data) + end - start > self._limits.part_bytes:
            part.too_large = True
            part.data.clear()
        else:
            part.data += data[start:end]

    def _end(self) -> None:
        self._complete = True
