"""What an answer has beside its status, whichever way it takes."""

from typing import NamedTuple

RawHeaders = list[tuple[bytes, bytes]]


class Content(NamedTuple):
    """The body of an answer, and the headers that describe it, their names in lower case."""

    headers: RawHeaders
    body: bytes
