"""Deadlines are absolute, in seconds of `time.monotonic()`, so that every stage counts against the same one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import DeadlineExceeded


@asynccontextmanager
async def before(deadline: float) -> AsyncIterator[None]:
    """Cancel what runs inside when the deadline passes, and raise DeadlineExceeded."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded from error
