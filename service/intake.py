"""How many bytes of bodies may be in memory at once, before and beside what the queue counts.

A place in the queue is taken when a body is complete, so that slow senders hold no places. Without a bound of its own,
what they have sent so far would grow with the number of connections.
"""

from types import TracebackType
from typing import Self

from service.errors import Overloaded


class Intake:
    """A budget of bytes for all requests together. Used on the event loop only."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def open(self) -> "Share":
        """One request's share of the budget, to be used in a `with`; all of it is given back at the end."""
        return Share(self)

    def take(self, count: int) -> None:
        """Raise Overloaded when the budget has no room for so many bytes more."""
        if self.held + count > self._limit:
            raise Overloaded("Too many bodies are arriving; try again after the time in Retry-After.", retry_after=1)
        self.held += count


class Share:
    """What one request has taken of the budget."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._intake.held -= self.bytes

    def take(self, count: int) -> None:
        """Take so many bytes more, or raise Overloaded."""
        self._intake.take(count)
        self.bytes += count
