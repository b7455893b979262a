"""Deadlines are absolute, in seconds of `time.monotonic()`, so that every stage counts against the same one; and how
long a connection may be idle."""

import asyncio
import time
from types import TracebackType

from service.errors import DeadlineExceeded

# Longer than the idle time-outs of common balancers (60 s), so that they close idle connections, not this side.
KEEP_ALIVE_SECONDS = 75


class before:  # noqa: N801  it reads as the words `async with before(deadline)`
    """Cancel what runs inside when the deadline passes, and raise DeadlineExceeded."""

    __slots__ = ("_timeout",)

    def __init__(self, deadline: float) -> None:
        self._timeout = asyncio.timeout(deadline - time.monotonic())

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as expired:
            raise DeadlineExceeded from expired
