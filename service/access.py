"""API keys: who asks, what for, and how often. Keys are kept as SHA-256 digests and compared in constant time.

They come from SERVICE_API_KEYS, where each opens everything, and from a file with a line for each key:

    NAME SCOPES sha256:DIGEST

with `classify`, `admin` or both by commas; `admin` opens model control too. The file is read again when it changes, so
a key is rotated by adding the next and, later, removing the first. `resnet-serve key` makes a key and its line.
"""

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from service.errors import Forbidden, RateLimited, StartError, Unauthorized
from service.watched import Watched

log = logging.getLogger(__name__)

BEARER = "bearer "
ADMIN = "admin"
SCOPES = frozenset({"classify", ADMIN})
PREFIX = "sha256:"
KEY_BYTES = 32
_LINE = re.compile(rf"(?P<name>\S{{1,64}})\s+(?P<scopes>[a-z,]+)\s+{PREFIX}(?P<digest>[0-9a-fA-F]{{64}})")


class KeyFileError(StartError):
    """The file of keys cannot be used. The message is one line that says where and why."""


class Key(NamedTuple):
    """What is known of a key. `name` is for log lines."""

    name: str
    scopes: frozenset[str]
    digest: bytes

    def require_admin(self) -> None:
        """Raise Forbidden if it may only classify."""
        if ADMIN not in self.scopes:
            raise Forbidden


NOBODY = Key("-", SCOPES, b"")


@dataclass(slots=True)
class _Allowance:
    """A token bucket: `tokens` at the time `at`."""

    tokens: float
    at: float = field(default_factory=time.monotonic)


class Keys:
    """The keys that open the service; without any, everybody may ask for everything."""

    def __init__(self, text: str, file: Path | None = None, rate: float = 0.0) -> None:
        """Read the keys.

        Args:
            text: keys separated by commas, each with every scope; `sha256:DIGEST`, of 64 hex digits, stands for a key.
            file: lines as in the module's text.
            rate: requests a second for each key, a second's worth at once; 0 for no limit.

        Raises:
            KeyFileError: there is a file and it cannot be used.
        """
        self._given = given_keys(text)
        self._file = file
        self._watched = Watched(file) if file else None
        self._from_file = _read(file) if file else []
        self._rate = rate
        self._allowances: dict[str, _Allowance] = {}

    def __bool__(self) -> bool:
        """Whether a key is asked for."""
        return bool(self._given) or self._file is not None

    def check(self, headers: Mapping[str, str]) -> Key:
        """Whose key `Authorization: Bearer KEY` or `X-API-Key: KEY` has; it is counted against the key's rate.

        Raises:
            Unauthorized: there is none that is known.
            RateLimited: it has asked too often.
        """
        key = self.identify(headers)
        if self._rate and key is not NOBODY:
            self._spend(key)
        return key

    def identify(self, headers: Mapping[str, str]) -> Key:
        """Whose key it is, of several the one that opens more; NOBODY's where none is asked for.

        Header values are taken to be decoded as Latin-1, whatever the caller wrote them in.

        Raises:
            Unauthorized: there is none that is known.
        """
        if not self:
            return NOBODY
        self._look()
        authorization = headers.get("authorization", "")
        bearer = authorization[len(BEARER) :] if authorization.lower().startswith(BEARER) else ""
        given = filter(None, (bearer, headers.get("x-api-key")))
        sent = [hashlib.sha256(each.encode("latin-1")).digest() for each in given]
        known = (*self._given, *self._from_file)
        # Every key is compared, so that the time tells nothing of which one matched.
        matches = [key for each in sent for key in known if hmac.compare_digest(each, key.digest)]
        if not matches:
            raise Unauthorized
        return max(matches, key=lambda key: len(key.scopes))

    def _spend(self, key: Key) -> None:
        now, most = time.monotonic(), max(1.0, self._rate)
        allowance = self._allowances.setdefault(key.name, _Allowance(most, now))
        tokens = min(most, allowance.tokens + (now - allowance.at) * self._rate)
        allowance.tokens, allowance.at = tokens, now
        if tokens < 1:
            raise RateLimited(retry_after=math.ceil((1 - tokens) / self._rate))
        allowance.tokens -= 1

    def _look(self) -> None:
        """Take over a file that was changed; one that cannot be used changes nothing."""
        if self._file is None or self._watched is None or not self._watched.changed():
            return
        try:
            self._from_file = _read(self._file)
        except KeyFileError as error:
            log.error("%s; the keys stay as they were", error)
        else:
            log.info("keys read again: %s", ", ".join(key.name for key in self._from_file) or "none")


def given_keys(text: str) -> list[Key]:
    """The keys in SERVICE_API_KEYS.

    Raises:
        ValueError: what begins like a digest is none.
    """
    given = [each.strip() for each in text.split(",") if each.strip()]
    return [Key(f"key-{index}", SCOPES, _digest(each)) for index, each in enumerate(given, start=1)]


def new_key() -> tuple[str, str]:
    """A new key, and its line for the file."""
    key = secrets.token_urlsafe(KEY_BYTES)
    return key, f"NAME classify {PREFIX}{_sha256(key).hex()}"


def _read(path: Path) -> list[Key]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"the keys in {path} cannot be read: {error}") from error
    return [
        _key(line, f"{path} line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]


def _key(line: str, place: str) -> Key:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise KeyFileError(f"{place} is not `NAME SCOPES {PREFIX}DIGEST`; `resnet-serve key` prints such a line")
    scopes = frozenset(match["scopes"].split(","))
    if not scopes <= SCOPES:
        raise KeyFileError(f"{place}: scopes are {' and '.join(sorted(SCOPES))}, not {match['scopes']}")
    return Key(match["name"], scopes, bytes.fromhex(match["digest"]))


def _digest(given: str) -> bytes:
    if not given.lower().startswith(PREFIX):
        return _sha256(given)
    stated = given[len(PREFIX) :]
    if not re.fullmatch("[0-9a-fA-F]{64}", stated):
        raise ValueError(f"what follows {PREFIX} is not a digest of 64 hex digits")
    return bytes.fromhex(stated)


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
