"""Workers that are killed or hang: their own callers lose their connections, and nobody else notices."""

import os
import select
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.system.server import running
from tests.system.wire import answers, form_request, is_closed, request
from tests.system.workers import wait_for_workers, who_answers, with_a_worker, workers_of
from tests.waiting import PATIENCE, eventually

pytestmark = pytest.mark.faults


def test_a_worker_that_is_killed_is_replaced_and_the_others_go_on(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "2") as server:
        wait_for_workers(server, 2)
        killed, left = workers_of(server)
        with with_a_worker(server, image) as one, with_a_worker(server, image) as other:
            os.kill(killed, signal.SIGKILL)
            (gone,), _, _ = select.select([one, other], [], [], PATIENCE)
            assert is_closed(gone)
            assert who_answers(one if gone is other else other, image)
        assert server.post("/classify", content=image).status_code == 200
        wait_for_workers(server, 2)
        eventually(lambda: left in workers_of(server))
        assert killed not in workers_of(server)
        assert server.get("/health/live").status_code == server.get("/health/ready").status_code == 200


def test_a_worker_that_hangs_is_replaced(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "1", "--device-timeout-ms", "1500") as server:
        wait_for_workers(server, 1)
        (hanging,) = workers_of(server)
        with with_a_worker(server, image) as connection:
            os.kill(hanging, signal.SIGSTOP)
            assert is_closed(connection, within=10)
        eventually(lambda: workers_of(server) not in ([hanging], []))
        wait_for_workers(server, 1)
        with with_a_worker(server, image):
            pass


# A form parser with a bug, as python-multipart had one: it raises what nobody expects of it.
BUGGY_PARSER = """
from python_multipart.multipart import MultipartParser

write = MultipartParser.write

def buggy(self, data):
    if b"unforeseen" in data:
        raise IndexError("a secret of the inside")
    return write(self, data)

MultipartParser.write = buggy
"""


def test_a_bug_that_one_request_meets_is_answered_and_ends_no_worker(
    digits_models: Path, image: bytes, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUGGY_PARSER)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with running(digits_models, "--http-workers", "1", environment=os.environ | {"PYTHONPATH": path}) as server:
        wait_for_workers(server, 1)
        (worker,) = workers_of(server)
        with with_a_worker(server, image) as connection, with_a_worker(server, image) as other:
            connection.sendall(form_request(("unforeseen", b""), ("file", image)))
            ((status, headers, body),) = answers(connection, 1)
            assert (status, headers["content-type"]) == (500, "application/problem+json")
            assert b"secret" not in body
            assert who_answers(connection, image) == who_answers(other, image)
            assert workers_of(server) == [worker]
        assert server.lines("a worker cannot read a request")


def test_workers_that_hang_together_hold_a_change_up_as_long_as_one(
    digits_models: Path, image: bytes, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    with running(models, "--http-workers", "3", "--model-control", "explicit") as server:
        wait_for_workers(server, 3)
        for hanging in workers_of(server):
            os.kill(hanging, signal.SIGSTOP)
        began = time.monotonic()
        moved = server.put("/models/digits/aliases/stable", json={"version": 1}, timeout=60)
        assert moved.status_code == 200
        assert time.monotonic() - began < 8
        assert server.post("/classify", content=image).status_code == 200
        wait_for_workers(server, 3)


def test_callers_who_come_once_in_a_while_start_none(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "1") as server:
        for _ in range(2):
            for _ in range(60):
                assert server.post("/classify", content=image).status_code == 200
            time.sleep(11)
        assert workers_of(server) == []


def test_a_short_limit_on_runs_leaves_workers_alone(digits_models: Path) -> None:
    with running(digits_models, "--http-workers", "1", "--device-timeout-ms", "400") as server:
        wait_for_workers(server, 1)
        first = workers_of(server)
        time.sleep(2.5)
        assert workers_of(server) == first


def test_photographs_on_connections_of_small_images_are_answered_in_time_or_refused(
    digits_models: Path, image: bytes
) -> None:
    encoded = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (1020, 1020, 3), dtype=np.uint8)
    Image.fromarray(noise).save(encoded, "JPEG", quality=70)
    photograph = request(encoded.getvalue())  # 15 ms to decode, so all of them take longer than they may
    with (
        running(digits_models, "--http-workers", "1", "--request-timeout-ms", "1000") as server,
        ExitStack() as crowd,
        ThreadPoolExecutor(150) as callers,
    ):
        wait_for_workers(server, 1)
        connections = [crowd.enter_context(with_a_worker(server, image)) for _ in range(150)]

        def ask(connection: socket.socket) -> tuple[int, float]:
            began = time.monotonic()
            connection.sendall(photograph)
            ((status, _, _),) = answers(connection, 1)
            return status, time.monotonic() - began

        found = list(callers.map(ask, connections))
        statuses = Counter(status for status, _ in found)
        assert set(statuses) <= {200, 429, 504}
        assert 20 < statuses[200] < 150
        assert max(seconds for _, seconds in found) < 1.5
        assert who_answers(connections[0], image)
