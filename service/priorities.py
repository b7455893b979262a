"""Who goes first: the images that wait for one model, by priority, in fair shares.

While all priorities wait, 16 high images leave for 4 normal and 1 low, so nobody starves (weighted fair queueing:
Demers, Keshav and Shenker, 1989, with images as packets). A priority that was absent comes back without credit or debt.
When the queue is full, whoever arrives with a higher priority takes the place of the youngest image of the lowest one.

Not thread-safe: the batcher holds its lock around each call.
"""

from collections.abc import Iterator

from service.tickets import Pixels, Priority, Ticket

# An enumeration is slow to walk through, and this is done for every image.
PRIORITIES = tuple(Priority)
WEIGHTS = {Priority.SHADOW: 0.25, Priority.LOW: 1.0, Priority.NORMAL: 4.0, Priority.HIGH: 16.0}


class Waiting:
    """The admitted images of one model that are not on the device yet: being decoded, or decoded and queued."""

    def __init__(self) -> None:
        self._admitted: dict[Priority, dict[Ticket, None]] = {each: {} for each in PRIORITIES}
        self._decoded: dict[Priority, dict[Ticket, Pixels]] = {each: {} for each in PRIORITIES}
        self._next = dict.fromkeys(PRIORITIES, 0.0)  # virtual finish time of each priority's next image
        self._now = 0.0
        self.admitted = 0
        self.decoded = 0

    def admit(self, ticket: Ticket) -> None:
        """Take a place."""
        self._admitted[ticket.priority][ticket] = None
        self.admitted += 1

    def holds(self, ticket: Ticket) -> bool:
        """Whether the image still has its place."""
        return ticket in self._admitted[ticket.priority]

    def leave(self, ticket: Ticket) -> bool:
        """Give a place up; False if it was given up already."""
        if not self.holds(ticket):
            return False
        del self._admitted[ticket.priority][ticket]
        self.admitted -= 1
        if self._decoded[ticket.priority].pop(ticket, None) is not None:
            self.decoded -= 1
        return True

    def queue(self, ticket: Ticket, pixels: Pixels) -> None:
        """The image of a place is decoded and can run."""
        line = self._decoded[ticket.priority]
        if not line:
            self._next[ticket.priority] = self._now + 1 / WEIGHTS[ticket.priority]
        line[ticket] = pixels
        self.decoded += 1

    def take(self) -> tuple[Ticket, Pixels]:
        """The image that goes next; its place is free."""
        priority = min((each for each in PRIORITIES if self._decoded[each]), key=lambda each: (self._next[each], -each))
        self._now = self._next[priority]
        self._next[priority] += 1 / WEIGHTS[priority]
        ticket, pixels = next(iter(self._decoded[priority].items()))
        self.leave(ticket)
        return ticket, pixels

    def tickets(self) -> Iterator[Ticket]:
        """All that are decoded and can run."""
        for line in self._decoded.values():
            yield from line

    def ahead(self, priority: Priority, images: int) -> float:
        """How many images will have run before the last of `images` more of this priority, those not counted."""
        own = len(self._admitted[priority])
        if own == self.admitted:
            return own
        turns = (own + images) / WEIGHTS[priority]
        others = (
            min(float(len(self._admitted[each])), turns * WEIGHTS[each]) for each in PRIORITIES if each is not priority
        )
        return own + sum(others)

    def displaceable(self, priority: Priority, images: int) -> list[Ticket]:
        """Up to `images` of lower priority, the lowest and youngest first."""
        lower = (ticket for each in PRIORITIES if each < priority for ticket in reversed(self._admitted[each]))
        return [ticket for ticket, _ in zip(lower, range(images), strict=False)]
