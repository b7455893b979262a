"""Waiting for what another thread or process is about to do."""

import time
from collections.abc import Callable

# Nobody waits so long where all is well: it is for machines that stand still for a while.
PATIENCE = 30.0


def eventually(holds: Callable[[], object], within: float = PATIENCE, pause: float = 0.02) -> None:
    """Look again and again, in seconds, until something is true."""
    give_up = time.monotonic() + within
    while not holds():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(pause)
