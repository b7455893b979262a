"""Workers whose images the server runs: what becomes of those that are on their way."""

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.system.digits import different_images
from tests.system.server import Server, running
from tests.system.test_http_workers import plain_models
from tests.system.test_load import pool, probabilities
from tests.system.wire import answers, connected, request
from tests.system.workers import (
    MADE_ID,
    own_answers,
    wait_for_workers,
    who_answers,
    with_a_worker,
    workers_of,
)
from tests.waiting import eventually

IN_FLIGHT = "classify_images_in_flight"


def refined(scans: int) -> bytes:
    """A progressive JPEG with so many scans more, of which each takes a decoder over all pixels."""
    encoded = BytesIO()
    Image.new("L", (500, 375), 128).save(encoded, "JPEG", progressive=True)
    whole, end = encoded.getvalue()[:-2], encoded.getvalue()[-2:]
    return whole + scans * bytes.fromhex("ffda 0008 01 01 00 01 3f 10 00 01".replace(" ", "")) + end


@contextmanager
def with_orders(models: Path, orders: Path, *flags: str, workers: int = 1) -> Iterator[Server]:
    """A server whose device takes longer than workers would run anything for, and obeys what the file says."""
    program = ("tests.faults.faulty", str(orders))
    with running(models, "--http-workers", str(workers), *flags, module=program) as server:
        wait_for_workers(server, workers)
        yield server


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device") / "orders"


@pytest.fixture(scope="module")
def server(digits_models: Path, orders: Path) -> Iterator[Server]:
    """With one worker, and one image in each run."""
    models = shutil.copytree(digits_models, orders.with_name("models"))  # aliases are written into it
    with with_orders(models, orders, "--max-batch-size", "1", "--model-control", "explicit") as started:
        yield started


@pytest.fixture(autouse=True)
def obeys_nobody_afterwards(orders: Path) -> Iterator[None]:
    yield
    orders.unlink(missing_ok=True)


def have_wait(server: Server, orders: Path, connections: Sequence[socket.socket], image: bytes) -> None:
    """Send a request on each, of which all are on their way to a device that is held until `orders` is gone."""
    orders.write_text("hold")
    for each in connections:
        each.sendall(request(image))
    eventually(lambda: server.metric(IN_FLIGHT) == len(connections))


def answered_by_workers(server: Server, own: str) -> int:
    """How many requests are logged under an id that the server itself, whose ids begin so, did not make."""
    return sum(not json.loads(line)["request_id"].startswith(own) for line in server.lines("service.request"))


def noise(width: int, height: int, grain: int) -> bytes:
    """A JPEG of coloured squares; fine ones take many bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (height // grain, width // grain, 3), dtype=np.uint8)
    encoded = BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


@pytest.mark.anyio
async def test_everybody_gets_the_answer_for_the_own_image(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    images = different_images(samples, 600)
    with with_orders(digits_models, tmp_path / "orders", "--max-queue", "100", workers=2) as server:
        async with pool(server.url, 64) as client:
            together = await asyncio.gather(*(probabilities(client, each) for each in images))
        assert server.metric("classify_batch_size_count") < 600, "nothing was batched, so nothing was proved"
        own = own_answers(server)
        eventually(lambda: answered_by_workers(server, own) > 400)  # a body that comes late is the server's
        async with pool(server.url, 1) as client:
            alone = [await probabilities(client, each) for each in images[:100]]
    np.testing.assert_allclose(together[:100], alone, atol=1e-4)
    assert len({tuple(np.round(each, 9)) for each in together}) > 300


@pytest.mark.parametrize("side", [96, 32], ids=["the server runs", "the worker runs"])
def test_photographs_are_decoded_by_workers_and_what_takes_long_is_not(tmp_path: Path, side: int) -> None:
    with running(plain_models(tmp_path, side), "--http-workers", "1") as server, connected(server) as connection:
        wait_for_workers(server, 1)
        own = own_answers(server)
        photographs = [noise(500, 375, 8), noise(500, 375, 1), noise(1400, 1000, 8), refined(50), noise(500, 375, 8)]
        assert [len(each) > 2**17 for each in photographs] == [False, True, True, False, False]
        for encoded, by_worker in zip(photographs, (True, True, False, False, True), strict=True):
            alone = server.post("/classify?timeout_ms=9000", content=encoded)
            by = set()
            for _ in range(5):  # on a machine that stands still a body comes late, and is the server's
                connection.sendall(request(encoded))
                ((status, headers, body),) = answers(connection, 1)
                assert (status, body) == (alone.status_code, alone.content)
                by.add(headers["x-request-id"][:MADE_ID] != own)
            assert by_worker in by
            assert by_worker or by == {False}
        by_workers = 0
        for _ in range(10):
            with connected(server) as new:
                new.sendall(request(photographs[1]))
                ((status, headers, _),) = answers(new, 1)
                assert status == 200
                by_workers += headers["x-request-id"][:MADE_ID] != own
        assert by_workers >= 8


def test_a_caller_who_leaves_takes_the_image_out_of_the_queue(server: Server, orders: Path, image: bytes) -> None:
    with with_a_worker(server, image) as stays:
        crowd = [with_a_worker(server, image) for _ in range(8)]
        ran = server.metric("classify_batch_size_sum")
        have_wait(server, orders, crowd, image)
        for each in crowd:
            each.close()
        eventually(lambda: server.metric(IN_FLIGHT) == 1)
        stays.sendall(request(image))
        eventually(lambda: server.metric(IN_FLIGHT) == 2)
        orders.unlink()
        ((status, _, _),) = answers(stays, 1)
        assert status == 200
        eventually(lambda: server.metric(IN_FLIGHT) == 0)
        assert server.metric("classify_batch_size_sum") == ran + 2
        assert who_answers(stays, image) != own_answers(server)


def test_what_the_queue_has_no_room_for_is_refused_as_ever(digits_models: Path, image: bytes, tmp_path: Path) -> None:
    orders, narrow = tmp_path / "orders", ("--max-queue", "2", "--max-request-images", "2")
    with with_orders(digits_models, orders, "--max-batch-size", "1", *narrow) as server:
        with ExitStack() as crowd:
            connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(8)]
            orders.write_text("hold")
            for each in connections:
                each.sendall(request(image))
            refused = 'classify_rejected_total{reason="overloaded"}'
            eventually(lambda: server.counted(refused) >= 4)
            orders.unlink()
            found = [answers(each, 1)[0] for each in connections]
            statuses = [status for status, _, _ in found]
            assert set(statuses) == {200, 429}
            assert statuses.count(200) <= 4
            assert all("retry-after" in headers for status, headers, _ in found if status == 429)
            assert {who_answers(each, image) for each in connections} != {own_answers(server)}
        assert server.metric(refused) == statuses.count(429)


@pytest.mark.parametrize(("order", "status"), [("fail", 500), ("exhaust-all", 503)])
def test_a_run_that_fails_is_answered_as_ever(
    order: str, status: int, server: Server, orders: Path, image: bytes
) -> None:
    with with_a_worker(server, image) as connection:
        orders.write_text(order)
        connection.sendall(request(image))
        ((found, headers, body),) = answers(connection, 1)
        assert (found, headers["content-type"]) == (status, "application/problem+json")
        assert b"secret" not in body
        orders.unlink()
        assert who_answers(connection, image)


def test_requests_that_follow_before_the_answer_are_answered_in_order(
    server: Server, orders: Path, image: bytes
) -> None:
    with with_a_worker(server, image) as connection:
        orders.write_text("hold")
        connection.sendall(request(image, "X-Request-Id: 1"))
        eventually(lambda: server.metric(IN_FLIGHT) == 1)
        connection.sendall(request(image, "X-Request-Id: 2") + request(image, "X-Request-Id: 3"))
        orders.unlink()
        found = answers(connection, 3)
        assert [(status, headers["x-request-id"]) for status, headers, _ in found] == [(200, n) for n in "123"]


def test_a_change_of_models_does_not_wait_for_the_queue(server: Server, orders: Path, image: bytes) -> None:
    with ExitStack() as crowd:
        connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(20)]
        have_wait(server, orders, connections, image)
        moved = server.put("/models/digits/aliases/stable", json={"version": 1}, timeout=30)
        assert moved.status_code == 200
        orders.unlink()
        assert [answers(each, 1)[0][0] for each in connections] == [200] * 20
        assert server.metric(IN_FLIGHT) == 0


def test_a_worker_that_dies_leaves_nothing_in_the_queue(server: Server, orders: Path, image: bytes) -> None:
    with ExitStack() as crowd:
        connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(6)]
        have_wait(server, orders, connections, image)
        (worker,) = workers_of(server)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: server.metric(IN_FLIGHT) <= 1)  # that on the device
    orders.unlink()
    assert server.post("/classify", content=image).status_code == 200
    wait_for_workers(server, 1)
    assert Path(f"/proc/{server.process.pid}/maps").read_text().count("memfd:images") == 1


def test_a_change_of_models_does_not_wait_for_images_that_take_long(server: Server) -> None:
    encoded = BytesIO()
    Image.new("RGBA", (1000, 1000), "red").save(encoded, "PNG")  # 4 kB, and 20 ms of work
    with ExitStack() as crowd:
        connections = [crowd.enter_context(connected(server)) for _ in range(200)]
        for each in connections:
            each.sendall(request(encoded.getvalue()))
        moved = server.put("/models/digits/aliases/stable", json={"version": 1}, timeout=60)
        answered, _, _ = select.select(connections, [], [], 0)
        assert moved.status_code == 200
        assert len(answered) < 100
        assert {answers(each, 1)[0][0] for each in connections} == {200}
    assert len(workers_of(server)) == 1


def test_a_worker_that_comes_back_gets_its_share_of_busy_connections(
    digits_models: Path, image: bytes, tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    with with_orders(digits_models, orders, workers=2) as server, ExitStack() as crowd:
        killed = workers_of(server)[0]
        os.kill(killed, signal.SIGKILL)
        # The next one may be there before this looks.
        eventually(lambda: server.metric("service_http_workers") == 1 or len({*workers_of(server)} - {killed}) == 2)
        connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(6)]
        orders.write_text("slow")
        last: dict[socket.socket, str] = {}
        shared = threading.Event()

        def ask(connection: socket.socket) -> None:
            while not shared.is_set():  # the next request comes while others are being run
                last[connection] = who_answers(connection, image)

        with ThreadPoolExecutor(len(connections)) as callers:
            asking = [callers.submit(ask, each) for each in connections]
            try:
                eventually(lambda: sorted(Counter(list(last.values())).values()) == [3, 3])
            finally:
                shared.set()
            for each in asking:
                each.result()
        assert own_answers(server) not in last.values()


def test_a_deadline_passes_while_the_device_hangs(digits_models: Path, image: bytes, tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    with with_orders(digits_models, orders, "--request-timeout-ms", "1500") as server:
        with ExitStack() as crowd:
            connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(4)]
            orders.write_text("hang")
            began = time.monotonic()
            for each in connections:
                each.sendall(request(image))
            found = [answers(each, 1)[0][0] for each in connections]
            assert 1.4 < time.monotonic() - began < 4.5
        assert set(found) <= {429, 504}
