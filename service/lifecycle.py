"""Where the process stands: loading, ready, draining, or broken beyond recovery.

Readiness says "send me traffic"; liveness says "do not restart me", and stays true while the process can recover.
"""

import logging
import time

log = logging.getLogger(__name__)

LOADING = "loading"
READY = "ready"
FAILED = "failed"
EMPTY = "empty"
DRAINING = "draining"


class Lifecycle:
    """The phase that /health/ready shows, and the verdict that ends the process."""

    def __init__(self) -> None:
        self.phase = LOADING
        self.reason = ""
        self.fatal = ""
        self.draining_since: float | None = None

    @property
    def draining(self) -> bool:
        """The process was told to stop; it answers what it has and what still arrives."""
        return self.draining_since is not None

    @property
    def ready(self) -> bool:
        """Every model is in service and nothing speaks against more traffic."""
        return self.phase == READY and not self.fatal

    def enter(self, phase: str, reason: str = "") -> None:
        """Move to a start-up phase, `failed` with a reason, or `ready`; draining is not left again."""
        if not self.draining:
            self.phase, self.reason = phase, reason

    def drain(self) -> None:
        """Turn readiness off for good."""
        self.enter(DRAINING, "the server is shutting down")
        self.draining_since = self.draining_since or time.monotonic()

    def grace(self, timeout: float) -> float:
        """Seconds that are left of a stop which may take `timeout` in all; a moment at least."""
        since = self.draining_since or time.monotonic()
        return max(0.5, since + timeout - time.monotonic())

    def fail(self, reason: str) -> None:
        """Nothing can be served any more: liveness turns 503 and the server stops with exit code 1."""
        log.critical("%s", reason)
        self.fatal = self.fatal or reason
