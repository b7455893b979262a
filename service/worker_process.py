"""A worker as its server sees it: a process, what is known of it, and the messages that go to it and come from it."""

import asyncio
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from service.errands import Errands
from service.handover import Channel, Kind, Message
from service.shared_images import SharedImages, new_memory

# How long it has to end.
END_SECONDS = 2.0
# Whoever is behind with its messages gets a turn of the event loop's time at once, and not more.
MESSAGES_AT_ONCE = 64
# The same modules as here, wherever they were found.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from service.http_worker import main; sys.exit(main())"


@dataclass(eq=False)
class WorkerProcess:
    """A process, and what is known of it. Used on the event loop only.

    `loading` counts the offers that it has not answered, `recalls` those that it has not followed, and `silent` the
    seconds for which it has not been heard of; `resident_bytes` is what it had in memory when it was last heard of.
    """

    errands: Errands
    _process: subprocess.Popen[bytes]
    _channel: Channel
    loading: int = 0
    recalls: int = 0
    connections: int = 0
    silent: float = 0.0
    resident_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    _unsent: deque[tuple[Kind, bytes]] = field(default_factory=deque)

    @classmethod
    def start(cls) -> Self:
        """Start one; OSError says why there is none."""
        own, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setblocking(False)
        try:
            with others, new_memory() as memory:
                images, descriptors = SharedImages(memory.fileno()), (others.fileno(), memory.fileno())
                command = [sys.executable, "-c", _PROGRAM.format(path=sys.path), *map(str, descriptors)]
                # In a group of its own, so that a terminal's Ctrl-C is the server's alone.
                process = subprocess.Popen(  # noqa: S603
                    command, pass_fds=descriptors, stdin=subprocess.DEVNULL, process_group=0
                )
                return cls(Errands(images), process, Channel(own))
        except OSError:
            own.close()
            raise

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.loading == 0 and not self._unsent

    def listen(self, on_message: Callable[[Self, Message], None], on_end: Callable[[Self], None]) -> None:
        """Hear what it says from now on, and that it has ended."""
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._hear, on_message, on_end)

    def hand_over(self, connection: int, received: bytes) -> bool:
        """Give it a connection, by its file descriptor, with what was read from it; whether it has room for it."""
        try:
            self._channel.send(Kind.CONNECTION, received, connection)
        except OSError:  # it is behind, or gone
            return False
        self.connections += 1
        return True

    def tell(self, kind: Kind, content: bytes = b"") -> None:
        """Send a message, as soon as there is room for it."""
        self._unsent.append((kind, content))
        if len(self._unsent) == 1:
            self._send()

    def kill(self) -> None:
        """Its end is heard of as any other."""
        self._process.kill()

    def part(self) -> None:
        """Run nothing for it and hear nothing of it any more: it ends as soon as it finds its channel closed."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._channel.fileno())
        loop.remove_writer(self._channel.fileno())
        self.errands.abandon()
        self.idle.set()
        self._channel.close()

    def wait(self) -> None:
        """Until it has ended, after `part`, which takes END_SECONDS at most. On any thread."""
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self) -> None:
        """Send what is unsent, now or as soon as there is room."""
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._channel.fileno())
        while self._unsent:
            try:
                self._channel.send(*self._unsent[0])
            except BlockingIOError:
                loop.add_writer(self._channel.fileno(), self._send)
                return
            except OSError:  # it is gone, which its end of the channel says as well
                self._unsent.clear()
                return
            self._unsent.popleft()

    def _hear(self, on_message: Callable[[Self, Message], None], on_end: Callable[[Self], None]) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                message = self._channel.receive()
            except BlockingIOError:
                return
            if message is None:
                on_end(self)
                return
            self.silent = 0.0
            on_message(self, message)
            if self._channel.fileno() < 0:  # parted with
                return
