"""API keys: without one that matches, only probes, metrics and the page answer. Keys are kept as digests."""

import hashlib
import hmac
from collections.abc import Mapping

from service.errors import Unauthorized

BEARER = "bearer "


class Keys:
    """The keys that open the service; without any, everybody may ask."""

    def __init__(self, text: str) -> None:
        """`text`: the keys, separated by commas, several so that one can be replaced by the next."""
        self._digests = [_digest(key.strip()) for key in text.split(",") if key.strip()]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._digests)

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise Unauthorized unless `Authorization: Bearer KEY` or `X-API-Key: KEY` has one of the keys."""
        if not self._digests:
            return
        authorization = headers.get("authorization", "")
        bearer = authorization[len(BEARER) :] if authorization.lower().startswith(BEARER) else ""
        sent = _digest(bearer or headers.get("x-api-key", ""))
        # Every key is compared, so that the time tells nothing of which one matched.
        if not sum(hmac.compare_digest(sent, known) for known in self._digests):
            raise Unauthorized


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
