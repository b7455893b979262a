"""One log line for each attempt to control models: who, from where, what, and how it ended."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service.access import Keys
from service.errors import ServiceError
from service.exchange import Exchange
from service.logs import with_fields

log = logging.getLogger("service.audit")


@contextmanager
def audited(action: str, keys: Keys, headers: Mapping[str, str], address: str, exchange: Exchange) -> Iterator[None]:
    """Let an administrator do something, and write it down; for a caller whose key is checked already.

    Args:
        action: with its object, as in `load digits`; it may have what the caller sent, and is quoted.
        keys: who is an administrator.
        headers: of the request, names in small letters.
        address: the caller's.
        exchange: the request.

    Raises:
        Unauthorized, Forbidden: the caller is none; that is written down as well.
    """
    who, outcome = "?", "failed"
    try:
        key = keys.identify(headers)
        who = key.name
        key.require_admin()
        yield
        outcome = "done"
    except ServiceError as error:
        outcome = error.code
        raise
    finally:
        _write_down(action, who, address, outcome, exchange)


def check_administrator(action: str, keys: Keys, headers: Mapping[str, str], address: str, exchange: Exchange) -> None:
    """Check the key of whoever wants to administer, as of everybody else, and write down who is refused.

    Raises:
        Unauthorized: there is none that is known.
        RateLimited: it has asked too often.
    """
    who = "?"
    try:
        who = keys.identify(headers).name
        keys.check(headers)
    except ServiceError as error:
        _write_down(action, who, address, error.code, exchange)
        raise


def _write_down(action: str, who: str, address: str, outcome: str, exchange: Exchange) -> None:
    fields = with_fields(request_id=exchange.request_id, key=who, address=address, outcome=outcome)
    log.warning("%r by %s from %s: %s", action[:200], who, address, outcome, extra=fields)
