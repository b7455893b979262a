"""Who answers: the server, or which of its workers."""

import socket
from pathlib import Path

from tests.conftest import SAMPLES
from tests.system.server import Server
from tests.system.wire import answers, connected, request
from tests.waiting import eventually

SEVEN = SAMPLES / "seven.png"
MADE_ID = 16  # hexadecimal digits of a made request id that are its process's own


def wait_for_workers(server: Server, count: int, *headers: str) -> None:
    """Have a reason for workers, and wait until so many answer."""
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request(SEVEN.read_bytes(), *headers))
            ((status, _, _),) = answers(connection, 1)
            assert status == 200
    eventually(lambda: server.metric("service_http_workers") == count)


def workers_of(server: Server) -> list[int]:
    """The process ids of its workers."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
    return [int(each) for each in children if b"http_worker" in _command_line(each)]


def _command_line(process: str) -> bytes:
    """Nothing of one that has ended meanwhile."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def who_answers(connection: socket.socket, image: bytes) -> str:
    """What the process that answers a plain request puts first into the ids that it makes."""
    connection.sendall(request(image))
    ((status, headers, body),) = answers(connection, 1)
    assert (status, b"seven" in body) == (200, True)
    return headers["x-request-id"][:MADE_ID]


def own_answers(server: Server) -> str:
    """What the server itself puts first into the ids that it makes."""
    return server.get("/health/live").headers["x-request-id"][:MADE_ID]


def with_a_worker(server: Server, image: bytes) -> socket.socket:
    """A connection that a worker has."""
    connection = connected(server)
    assert who_answers(connection, image) != own_answers(server)
    return connection
