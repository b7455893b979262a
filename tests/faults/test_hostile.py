"""Senders with bad intentions: nothing but a clear answer in bounded time, and no one else notices."""

import asyncio
import contextlib
import gzip
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from service.artifact import Preprocessing
from service.errors import ImageTooLarge, UndecodableImage
from service.image import preprocess
from tests.faults.mutations import mutated
from tests.system.server import Server, running

pytestmark = pytest.mark.faults
MEBIBYTE = 2**20
RECIPE = Preprocessing.model_validate(
    {"resize": 36, "crop": 32, "interpolation": "bilinear", "mean": (0, 0, 0), "std": (1, 1, 1), "exif": "transpose"}
)


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models, "--http-workers", "auto") as server:
        yield server


@pytest.mark.timeout(600)
def test_20000_damaged_images_give_pixels_or_a_refusal_in_time() -> None:
    outcomes = Counter[str]()
    slowest = 0.0
    for number, encoded in enumerate(mutated(20_000)):
        started = time.perf_counter()
        try:
            pixels = preprocess(encoded, RECIPE, 10**6)
            assert pixels.shape == (32, 32, 3), number
            outcomes["pixels"] += 1
        except (UndecodableImage, ImageTooLarge) as error:
            outcomes[error.code] += 1
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 1, slowest
    assert min(outcomes.values()) > 20, outcomes  # each way was gone


@pytest.mark.timeout(300)
def test_2000_damaged_images_through_the_server_leave_it_as_it_was(server: Server, samples: list[Path]) -> None:
    with httpx2.Client(base_url=server.url, timeout=10) as client:
        expected = client.post("/classify", content=samples[0].read_bytes()).json()
        for encoded in mutated(300, seed=1):
            client.post("/classify", content=encoded)
        before = server.resident_bytes()
        codes, slowest = Counter[int](), 0.0
        for encoded in mutated(2_000, seed=2):
            started = time.monotonic()
            codes[client.post("/classify", content=encoded).status_code] += 1
            slowest = max(slowest, time.monotonic() - started)
        assert set(codes) <= {200, 400, 413}, codes
        assert slowest < 1
        assert server.resident_bytes() - before < 16 * MEBIBYTE
        assert client.post("/classify", content=samples[0].read_bytes()).json() == expected
    assert server.metric("classify_images_in_flight") == 0


async def slow_senders(port: int, head: bytes, count: int) -> list[float]:
    """Connections that send a byte a second; after how many seconds each was cut."""

    async def send() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started = time.monotonic()
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof() and time.monotonic() < started + 60:
                writer.write(b"x")
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65536), 1)
        writer.close()
        return time.monotonic() - started

    return await asyncio.gather(*(send() for _ in range(count)))


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("head", "bound"),
    [
        (b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Slow: ", 10),
        (b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n", 30),
    ],
    ids=["headers", "body"],
)
def test_500_connections_at_a_byte_a_second_disturb_nobody_and_are_cut(
    head: bytes, bound: float, server: Server, samples: list[Path]
) -> None:
    def latencies(until: float) -> list[float]:
        taken = []
        with httpx2.Client(base_url=server.url, timeout=10) as client:
            while time.monotonic() < until:
                started = time.monotonic()
                assert client.post("/classify", content=samples[0].read_bytes()).status_code == 200
                taken.append(time.monotonic() - started)
                time.sleep(0.02)
        return taken

    alone = latencies(time.monotonic() + 3)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(lambda: asyncio.run(slow_senders(server.port, head, 500)))
        time.sleep(2)  # they are all there
        beside = latencies(time.monotonic() + bound - 4)
        cut = slow.result()
    assert bound - 1 < min(cut), min(cut)
    assert max(cut) < bound + 5, max(cut)
    assert statistics.quantiles(beside, n=100)[98] < statistics.quantiles(alone, n=100)[98] + 0.05
    assert server.metric("classify_images_in_flight") == 0


def test_lengths_that_lie_and_65537_chunks_are_answered(server: Server, samples: list[Path]) -> None:
    image = samples[0].read_bytes()
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (len(image) - 40) + image[:-40])
        assert b"undecodable_image" in connection.makefile("rb").read()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(image) + 40) + image)
        connection.shutdown(socket.SHUT_WR)  # it never comes
        connection.recv(65536)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        started = time.monotonic()
        chunks = b"".join(b"1\r\nx\r\n" for _ in range(65_537))
        connection.sendall(head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        assert b"undecodable_image" in connection.makefile("rb").read()
        assert time.monotonic() - started < 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 4")
    assert server.post("/classify", content=image).status_code == 200


@pytest.mark.parametrize("route", ["/classify", "/classify/batch"])
def test_forms_made_to_be_expensive_are_refused_in_time(route: str, server: Server, samples: list[Path]) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\nx\r\n'
    nested = b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n" + b"--c\r\n\r\n" * 5_000
    endless = b"--b" + b"-" * 100_000
    headers = b"--b\r\n" + b"X-Flood: y\r\n" * 50_000 + b"\r\nx\r\n--b--\r\n"
    before = server.resident_bytes()
    for body in (part * 10_000 + b"--b--\r\n", nested, endless, headers, b"--b\r\n" * 100_000):
        started = time.monotonic()
        answer = httpx2.post(
            server.url + route, content=body, headers={"content-type": "multipart/form-data; boundary=b"}, timeout=30
        )
        assert 400 <= answer.status_code < 500, answer.text
        assert time.monotonic() - started < 1
    boundary = "multipart/form-data; boundary=" + "b" * 10_000
    assert server.post(route, content=b"x", headers={"content-type": boundary}).status_code < 500
    assert server.resident_bytes() - before < 64 * MEBIBYTE


def test_a_compressed_bomb_costs_no_memory(server: Server) -> None:
    bomb = gzip.compress(b"\0" * 200 * MEBIBYTE)
    before = server.resident_bytes()
    headers = {"content-encoding": "gzip"}
    protocol = server.post("/v2/models/digits/infer", content=bomb, headers=headers, timeout=30)
    assert protocol.status_code in (400, 413)
    assert server.post("/classify", content=bomb, headers=headers).status_code in (400, 415)
    assert server.resident_bytes() - before < 64 * MEBIBYTE
