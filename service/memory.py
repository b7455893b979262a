"""The C library's heap, kept from growing while models come and go.

glibc keeps what is freed in one of many arenas, by the thread that allocated it. A session's weights and buffers are
tens of megabytes in many pieces: with many arenas, 50 loads of a ResNet-18 left 20 % more than two. With a second one
the memory went up and down by 20 MiB, because `malloc_trim` gives back the end of the first one alone.
"""

import ctypes
import gc
import resource
import sys
from pathlib import Path

# mallopt's number for the most arenas, from malloc.h.
_M_ARENA_MAX = -8


def use_one_arena() -> None:
    """Let all threads share one arena, where the C library is glibc; to be called before there are threads."""
    if (mallopt := _function("mallopt")) is not None:
        mallopt(_M_ARENA_MAX, 1)


def postpone_collection() -> None:
    """Collect no garbage until `settle`: a start makes objects that stay, and looking for others takes 0.1 s of it."""
    gc.disable()


def set_aside() -> None:
    """Take all that there is out of the garbage collector's sight, unseen: imports leave next to no garbage, and
    `settle` would look for it for 45 ms of the start."""
    gc.freeze()


def settle() -> None:
    """Take what start-up left out of the garbage collector's sight; to be called when all models are loaded.

    A full collection would look at 70,000 objects of the libraries, for 16 ms, with every request waiting.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def give_back() -> None:
    """Return free pages to the system, where the C library is glibc; takes milliseconds, on any thread."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


def resident_bytes() -> int:
    """What this process has in memory, as Linux counts it."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _function(name: str) -> "ctypes._FuncPointer | None":
    """A function of the C library; None where there is none of the name, as in musl, which needs neither."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
