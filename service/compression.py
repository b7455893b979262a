"""Content codings of HTTP (RFC 9110, section 8.4.1): gzip and deflate, inflated under a limit. Pure."""

import re
import zlib

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedContentEncoding

CODINGS = ("gzip", "deflate")
# zlib's numbers for a stream with a gzip or a zlib header.
_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
LEVEL = 1
_REFUSED = re.compile(r"\s*q=0(\.0{0,3})?\s*")


def inflate(body: bytes, coding: str, limit: int) -> bytes:
    """The content of a body that was sent with this Content-Encoding; "" and identity leave it as it is.

    Raises:
        UnsupportedContentEncoding: another coding, or several.
        BodyTooLarge: the content is over `limit` bytes; no more than that is ever inflated.
        InvalidRequest: the stream is damaged or ends early.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in CODINGS:
        raise UnsupportedContentEncoding(f"Content-Encoding {coding[:32]!r} is not one of {', '.join(CODINGS)}.")
    stream = zlib.decompressobj(_WINDOW[coding])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not {coding} as its Content-Encoding says") from error
    if len(content) > limit:
        raise BodyTooLarge(f"The body has more than {limit} bytes when it is inflated.")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest(f"the {coding} body ends too early or too late")
    return content


def accepted(header: str) -> str:
    """The coding to answer an Accept-Encoding with, "" for none: the first of CODINGS that is not refused by q=0."""
    offers = [each.partition(";") for each in header.lower().split(",")]
    taken = {name.strip() for name, _, weight in offers if not _REFUSED.fullmatch(weight)}
    return next((coding for coding in CODINGS if coding in taken), "")


def deflate(content: bytes, coding: str) -> bytes:
    """The content in one of CODINGS."""
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return stream.compress(content) + stream.flush()
