"""Whether files have changed: replaced, written to, gone or come."""

import time
from collections.abc import Iterable
from pathlib import Path

# Between two looks at files that are asked for at every request.
LOOK_SECONDS = 1.0
# Inode, size and time of the last change of each file; None for one that is not there.
Fingerprint = tuple[tuple[int, int, int] | None, ...]


def fingerprint(paths: Iterable[Path]) -> Fingerprint:
    """What differs once one of the files was exchanged or written to."""
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Watched:
    """Files that are looked at again no more often than each LOOK_SECONDS."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = fingerprint(paths)
        self._looked_at = time.monotonic()

    def changed(self) -> bool:
        """Whether one of them differs from the last look; said once for each change."""
        now = time.monotonic()
        if now < self._looked_at + LOOK_SECONDS:
            return False
        self._looked_at, before = now, self._seen
        self._seen = fingerprint(self._paths)
        return self._seen != before
