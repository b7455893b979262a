"""What the server and a worker process tell each other, and how a connection goes from one to the other.

Both ends of a pair of Unix sockets send messages, in order, long ones in parts; a connection's file descriptor travels
with the bytes that were read from it and not answered.
"""

import errno
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Self

from pydantic import TypeAdapter

from service.logs import LogFormat
from service.tally import Tally
from service.watched import Fingerprint

# What a socket is read in at once, and what a message of an end that does not wait has at most. Not every socket has
# room for it.
MOST_BYTES = 2**18
# What any Linux has room for in a Unix socket. An end that waits sends what is longer in parts.
PART_BYTES = 2**17
_DESCRIPTOR = struct.Struct("i")
_RETURNED = struct.Struct("dI?")


class Kind(Enum):
    """What a message says, and who says it."""

    SETUP = b"S"  # server, once: how to work (Setup)
    OFFER = b"O"  # server: the models to answer for from now on (list[Route])
    READY = b"Y"  # worker: they are loaded and proved
    UNABLE = b"U"  # worker: they are not, and why (text)
    CONNECTION = b"C"  # server: a connection to answer
    BACK = b"B"  # worker: one that goes back (Returned)
    CLOSED = b"X"  # worker: one that has ended
    SPARE = b"P"  # server: give so many idle ones back (a number)
    RECALL = b"R"  # server: give all connections back
    IDLE = b"I"  # worker: that is done
    RUN = b"N"  # worker: run these images (Asked)
    DROP = b"A"  # worker: nobody waits for an image any more (its place)
    RAN = b"D"  # server: what became of them (Ran)
    PART = b"M"  # worker: what the next message begins with
    TALLY = b"T"  # worker: what was measured since the last one (Tally); also a sign of life


class Message(NamedTuple):
    """What was received."""

    kind: Kind
    content: bytes
    connection: socket.socket | None


@dataclass(frozen=True)
class Setup:
    """What a worker has to know of the settings."""

    log_format: LogFormat
    log_level: str
    max_image_bytes: int
    max_image_pixels: int
    max_request_bytes: int
    request_timeout_ms: int
    api_keys: str
    api_keys_file: str
    signers: str


@dataclass(frozen=True)
class Route:
    """A model that workers answer for: under the names in `asked`, where "" stands for requests that name none.

    `number` is the load that the server has in service, of files whose state was `seen`; `input` and `output` are its
    graph's names. With `run_by_server` a worker decodes, and the server runs.
    """

    name: str
    version: int
    number: int
    path: str
    seen: Fingerprint
    asked: tuple[str, ...]
    input: str
    output: str
    batch_size: int
    run_by_server: bool


@dataclass(frozen=True)
class Asked:
    """Images that the server is to run with a load of a model: their places (`SharedImages`), and deadlines in seconds
    of `time.monotonic()`, which all processes of a machine share."""

    number: int
    deadlines: dict[int, float]


@dataclass(frozen=True)
class Ran:
    """What became of images, by their places: how long they waited, ran, and when they were done, all in seconds; None
    where the server is to answer."""

    stages: dict[int, tuple[float, float, float] | None]


SETUP = TypeAdapter(Setup)
ROUTES = TypeAdapter(list[Route])
ASKED = TypeAdapter(Asked)
RAN = TypeAdapter(Ran)
TALLY = TypeAdapter(Tally)


class Returned(NamedTuple):
    """What goes back with a connection.

    `since`: when what is unanswered began, in seconds of `time.monotonic()`; `received`: its bytes so far; `unsent`:
    what its caller has not had room for of the last answer; `ends`: the connection does, once that is sent.
    """

    since: float
    received: bytes
    unsent: bytes = b""
    ends: bool = False

    def to_bytes(self) -> bytes:
        """As a message's content."""
        return _RETURNED.pack(self.since, len(self.unsent), self.ends) + self.unsent + self.received

    @classmethod
    def of(cls, content: bytes) -> Self:
        """From a message's content."""
        (since, unsent, ends), begin = _RETURNED.unpack_from(content), _RETURNED.size
        return cls(since, content[begin + unsent :], content[begin : begin + unsent], ends)


# A worker says something so often, if only that it lives.
SIGN_OF_LIFE_SECONDS = 0.5


class Channel:
    """One end of the way between the server and a worker."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MOST_BYTES)
        self._begun = b""

    def fileno(self) -> int:
        """For polling."""
        return self._end.fileno()

    def send(self, kind: Kind, content: bytes = b"", connection: int | None = None) -> None:
        """Send a message, and a connection by its file descriptor, which stays open here.

        Raises:
            BlockingIOError: the other end is behind, and this one does not wait.
            OSError: there is no other end; or the message is long, and an end that does not wait may get stuck in it.
        """
        while len(content) > PART_BYTES and self._end.getblocking():
            self._end.sendmsg([Kind.PART.value, content[:PART_BYTES]])
            content = content[PART_BYTES:]
        if len(content) > MOST_BYTES:
            raise OSError(errno.EMSGSIZE, "too long for one message")
        descriptors = [] if connection is None else [connection]
        socket.send_fds(self._end, [kind.value, content], descriptors)

    def receive(self, *, wait: bool = False) -> Message | None:
        """The next message; None when the other end is gone.

        Raises:
            BlockingIOError: there is none at the moment.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        while True:
            try:
                # Not by socket.recv_fds, which ignores its flags.
                data, ancillary, *_ = self._end.recvmsg(1 + MOST_BYTES, socket.CMSG_LEN(_DESCRIPTOR.size), flags)
            except ConnectionResetError:
                return None
            if not data:
                return None
            kind, self._begun = Kind(data[:1]), self._begun + data[1:]
            if kind is not Kind.PART:
                break
        content, self._begun = self._begun, b""
        descriptors = [_DESCRIPTOR.unpack(each)[0] for _, _, each in ancillary]
        connection = socket.socket(fileno=descriptors[0]) if descriptors else None
        return Message(kind, content, connection)

    def refuse_more(self) -> None:
        """Let the other end's messages fail from now on; those on their way can be received."""
        self._end.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """The other end learns by it that this one is gone."""
        self._end.close()
