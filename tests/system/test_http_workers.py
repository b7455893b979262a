"""Worker processes: they answer what they can as the server would, and nobody notices when they come, go or fail."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from service.access import new_key
from tests.service.client import encode
from tests.service.test_loading import PLAIN_CONFIG, write_plain
from tests.system.server import Server, free_port, running
from tests.system.wire import INFER, answers, connected, form_request, is_closed, mixed, request, tensor_request
from tests.system.workers import (
    MADE_ID,
    own_answers,
    wait_for_workers,
    who_answers,
    with_a_worker,
    workers_of,
)
from tests.waiting import eventually

VOLATILE = {"x-request-id", "server-timing", "date"}
HEADER_LENGTH = "Inference-Header-Content-Length"
# Workers run the digits themselves; on a device whose runs take longer the server does it for them.
WHO_RUNS = {"worker": ("service",), "server": ("tests.faults.faulty", "/nowhere")}


@pytest.fixture(scope="module", params=list(WHO_RUNS.values()), ids=list(WHO_RUNS))
def module(request: pytest.FixtureRequest) -> tuple[str, ...]:
    program: tuple[str, ...] = request.param
    return program


@pytest.fixture(scope="module")
def server(digits_models: Path, module: tuple[str, ...]) -> Iterator[Server]:
    with running(digits_models, "--http-workers", "2", module=module) as started:
        wait_for_workers(started, 2)
        yield started


@pytest.fixture(scope="module")
def alone(digits_models: Path) -> Iterator[Server]:
    with running(digits_models, "--http-workers", "0") as started:
        yield started


def test_a_worker_answers_in_the_same_words(server: Server, image: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(request(image, "X-Priority: normal", target="/classify?top_k=3"))
        ((_, by_server, first),) = answers(connection, 1)
        connection.sendall(request(image, target="/classify?top_k=3"))
        ((status, by_worker, second),) = answers(connection, 1)
        assert by_worker["x-request-id"][:MADE_ID] != by_server["x-request-id"][:MADE_ID]
        assert (status, second) == (200, first)
        assert list(by_worker) == list(by_server)
        stable = by_server.keys() - VOLATILE
        assert {name: by_worker[name] for name in stable} == {name: by_server[name] for name in stable}
        stages = [
            [part.partition(";")[0] for part in each["server-timing"].split(", ")] for each in (by_server, by_worker)
        ]
        assert stages[0] == stages[1]
        connection.sendall(request(image, "X-Request-Id: mine"))
        ((_, headers, _),) = answers(connection, 1)
        assert headers["x-request-id"] == "mine"


def test_a_worker_answers_a_form_as_it_answers_its_image(server: Server, image: bytes) -> None:
    with connected(server) as connection:
        found = []
        for asked in (
            request(image),
            form_request(("file", image)),
            form_request(("comment", b"one"), ("file", image), headers=("Connection: close",)),
        ):
            connection.sendall(asked)
            ((status, headers, body),) = answers(connection, 1)
            assert (status, headers["x-request-id"][:MADE_ID] != own_answers(server)) == (200, True)
            found.append(body)
        assert found == [found[0]] * 3
        assert is_closed(connection)


CLASSES = [{"name": "logits", "parameters": {"classification": 3}}]
BINARY = {"binary_data_output": True}
PIXELS = bytes(range(256)) * 12
NUMBERS = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": list(PIXELS)}


@pytest.mark.parametrize(
    ("headers", "asked"),
    [
        ((), {}),
        ((), {"id": "one", "parameters": BINARY}),
        ((), {"outputs": CLASSES}),
        ((), {"outputs": CLASSES, "parameters": BINARY}),
        (("Accept-Encoding: gzip",), {"id": "long" * 500}),
        (("Accept-Encoding: gzip",), {}),
    ],
)
def test_a_worker_answers_tensors_in_the_same_words(
    server: Server, headers: tuple[str, ...], asked: dict[str, Any]
) -> None:
    by_server, by_worker = (
        tensor_request(*headers, pixels=PIXELS, target=each, **asked)
        for each in (INFER.replace("/infer", "/versions/1/infer"), INFER)
    )
    with connected(server) as connection:
        found = []
        for each in (by_server, by_worker):
            connection.sendall(each)
            ((status, told, body),) = answers(connection, 1)
            stages = [part.partition(";")[0] for part in told["server-timing"].split(", ")]
            stable = {name: value for name, value in told.items() if name not in VOLATILE}
            found.append((told.pop("x-request-id")[:MADE_ID], (status, list(told), stable, stages, body)))
    assert found[0][1] == found[1][1]
    assert found[0][1][0] == 200
    assert found[0][0] == own_answers(server) != found[1][0]


def test_a_worker_answers_a_tensor_that_comes_without_json(server: Server) -> None:
    with connected(server) as connection:
        connection.sendall(request(PIXELS, f"{HEADER_LENGTH}: 0", target=INFER))
        ((status, headers, body),) = answers(connection, 1)
        connection.sendall(tensor_request(pixels=PIXELS, parameters=BINARY))
        ((_, _, same),) = answers(connection, 1)
    assert (status, headers["x-request-id"][:MADE_ID] != own_answers(server)) == (200, True)
    assert body[-40:] == same[-40:]
    assert len(set(np.frombuffer(body[-40:], "<f4"))) == 10


def test_everybody_gets_the_logits_of_the_own_tensor(server: Server) -> None:
    tensors = np.random.default_rng(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    sent = [tensor_request(pixels=each.tobytes(), parameters=BINARY) for each in tensors]
    own = own_answers(server)

    def logits(connection: socket.socket, each: bytes) -> np.ndarray:
        connection.sendall(each)
        ((status, headers, body),) = answers(connection, 1)
        assert (status, headers["x-request-id"][:MADE_ID] != own) == (200, True)
        return np.frombuffer(body[-40:], "<f4")

    def ask(share: list[bytes]) -> list[np.ndarray]:
        with connected(server) as connection:
            return [logits(connection, each) for each in share]

    with ThreadPoolExecutor(10) as pool:
        together = [row for rows in pool.map(ask, [sent[at : at + 20] for at in range(0, 200, 20)]) for row in rows]
    with connected(server) as connection:
        alone = [logits(connection, each) for each in sent[:40]]
    np.testing.assert_allclose(together[:40], alone, atol=1e-3)
    assert len({tuple(each) for each in together}) > 150


def send_body_after_head(connection: socket.socket, asked: bytes) -> None:
    end = asked.index(b"\r\n\r\n") + 4
    connection.sendall(asked[:end])
    time.sleep(0.02)
    connection.sendall(asked[end:])


@pytest.mark.parametrize(
    "ask",
    [request, lambda image: form_request(("file", image)), lambda _: tensor_request()],
    ids=["image", "form", "tensor"],
)
def test_a_caller_who_sends_the_body_after_the_head_has_a_worker_too(
    server: Server, ask: Callable[[bytes], bytes], image: bytes
) -> None:
    own = own_answers(server)

    def comes_from_workers() -> bool:
        with connected(server) as connection:
            found = []
            for _ in range(2):
                send_body_after_head(connection, ask(image))
                found += answers(connection, 1)
        assert {status for status, _, _ in found} == {200}
        return not any(headers["x-request-id"].startswith(own) for _, headers, _ in found)

    assert any(comes_from_workers() for _ in range(5))  # a machine that is busy sends a body late at times


def test_workers_answer_a_crowd_of_connections(server: Server, image: bytes) -> None:
    own = own_answers(server)
    with ExitStack() as crowd:
        connections = [crowd.enter_context(connected(server)) for _ in range(300)]
        for _ in range(2):
            others = [who_answers(each, image) for each in connections]
            assert len([each for each in others if each != own]) > 285


def test_many_callers_who_send_one_request_each_have_workers_too(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "1") as server:
        own = own_answers(server)

        def ask() -> str:
            with connected(server) as connection:
                return who_answers(connection, image)

        assert {ask() for _ in range(20)} == {own}
        assert workers_of(server) == []
        for _ in range(100):
            ask()
        eventually(lambda: server.metric("service_http_workers") == 1)
        others = [ask() for _ in range(20)]
        assert own not in others
        eventually(lambda: server.metric('classify_requests_total{code="200",model="digits",version="1"}') == 140)


@pytest.mark.parametrize(
    ("version", "sent", "said"),
    [
        ("1.1", (), None),
        ("1.1", ("Connection: close",), "close"),
        ("1.0", (), "close"),
        ("1.0", ("Connection: Keep-Alive",), "keep-alive"),
        ("1.0", ("Connection: close",), "close"),
    ],
)
def test_a_connection_goes_on_or_ends_as_its_caller_wants_whoever_answers(
    server: Server, alone: Server, image: bytes, version: str, sent: tuple[str, ...], said: str | None
) -> None:
    own = {own_answers(server), own_answers(alone)}
    for asked in (request(image, *sent), tensor_request(*sent)):
        with connected(alone) as one, connected(server) as new, with_a_worker(server, image) as known:
            for connection in (one, new, known):
                connection.sendall(asked.replace(b" HTTP/1.1", f" HTTP/{version}".encode(), 1))
                ((status, headers, _),) = answers(connection, 1)
                assert (status, headers.get("connection")) == (200, said)
                assert (headers["x-request-id"][:MADE_ID] in own) is (connection is one)
                if said == "close":
                    assert is_closed(connection)
                else:
                    assert who_answers(connection, image)


def test_http_1_0_that_says_both_of_its_connection_has_it_closed(server: Server, image: bytes) -> None:
    asked = request(image, "Connection: close, keep-alive").replace(b" HTTP/1.1", b" HTTP/1.0", 1)
    with connected(server) as new, with_a_worker(server, image) as known:
        for connection in (new, known):
            connection.sendall(asked)
            ((status, headers, _),) = answers(connection, 1)
            assert (status, headers.get("connection")) == (200, "close")
            assert is_closed(connection)


def test_connections_are_shared_evenly(server: Server, image: bytes) -> None:
    connections = [with_a_worker(server, image) for _ in range(8)]
    try:
        by_worker = [who_answers(each, image) for each in connections]
    finally:
        for each in connections:
            each.close()
    assert sorted(by_worker.count(each) for each in set(by_worker)) == [4, 4]


@pytest.mark.parametrize(
    "sent",
    [
        lambda image: request(b"no image"),
        lambda image: request(image[:200]),
        lambda image: form_request(("file", image), ("file", image)),
        lambda image: form_request(("files", image)),
        lambda image: form_request(("file", image[:200])),
        lambda image: form_request(("file", image), end=b""),
        lambda image: form_request(("file", image)).replace(b"; boundary=XX", b""),
        lambda image: request(image, target="/classify?top_k=99"),
        lambda image: request(image, target="/classify?top_k=0"),
        lambda image: request(image, target="/classify?model=other"),
        lambda image: request(image, target="/classify?version=1"),
        lambda image: request(image, target="/classify?timeout_ms=5000"),
        lambda image: request(image, target="/classify?explain=cam"),
        lambda image: request(image, "X-Priority: low"),
        lambda image: request(image, "X-Priority: urgent"),
        lambda image: request(image + bytes(2**16)),
        lambda _: tensor_request(parameters={"timeout": 5_000_000}),
        lambda _: tensor_request(parameters={"priority": 1}),
        lambda _: tensor_request(parameters={"triton_secret": 1}),
        lambda _: tensor_request(pixels=bytes(2 * 3072)),
        lambda _: tensor_request(pixels=bytes(3000)),
        lambda _: tensor_request(target="/v2/models/other/infer"),
        lambda _: tensor_request(target="/v2/models/digits/infer?x=1"),
        lambda _: tensor_request(outputs=[{"name": "other"}]),
        lambda _: tensor_request(inputs=[NUMBERS]),
        lambda _: tensor_request(inputs=[]),
        lambda _: tensor_request(inputs=[{"name": "images", "datatype": "BYTES", "shape": [1]}]),
        lambda _: request(json.dumps({"inputs": [NUMBERS]}).encode(), target=INFER),
        lambda _: request(b"{" + PIXELS, f"{HEADER_LENGTH}: 1", target=INFER),
        lambda _: request(PIXELS, f"{HEADER_LENGTH}: many", target=INFER),
        lambda _: request(PIXELS, f"{HEADER_LENGTH}: 3999", target=INFER),
        lambda _: request(PIXELS, f"{HEADER_LENGTH}: 99999", target=INFER),
        lambda _: request(PIXELS, f"{HEADER_LENGTH}: 0", "Content-Encoding: gzip", target=INFER),
        lambda _: b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda _: b"nonsense\r\n\r\n",
    ],
)
def test_what_a_worker_does_not_answer_the_server_does_on_the_same_connection(
    server: Server, alone: Server, image: bytes, sent: Callable[[bytes], bytes]
) -> None:
    with connected(alone) as without, connected(server) as new, with_a_worker(server, image) as connection:
        found = []
        for each in (without, new, connection):
            each.sendall(sent(image))
            ((status, headers, body),) = answers(each, 1)
            found.append((status, headers.get("connection"), body))
        assert found[0] == found[1] == found[2]
        if found[2][1] == "close":
            assert is_closed(connection)
        else:
            assert who_answers(connection, image)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_the_bytes_are_cut_the_answers_come_whole_and_in_order(
    server: Server, image: bytes, data: st.DataObject
) -> None:
    requests = data.draw(mixed(image))
    pause = data.draw(st.sampled_from([0.0, 0.002, 0.15]))  # the last is longer than a worker waits for the rest
    with with_a_worker(server, image) as connection:
        requests.exchange(connection, pause)


def test_every_request_is_counted_and_logged_once_whoever_answers(
    digits_models: Path, module: tuple[str, ...], image: bytes
) -> None:
    with running(digits_models, "--http-workers", "2", module=module) as server:
        wait_for_workers(server, 2)

        def ask(number: int) -> None:
            with connected(server) as connection:
                for each in range(50):
                    own = f"X-Request-Id: {number}-{each}"
                    connection.sendall(tensor_request(own) if each % 5 == 4 else request(image, own))
                    ((status, _, _),) = answers(connection, 1)
                    assert status == 200

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(8)))
        total = 2 + 8 * 50  # with those that woke the workers
        answered = 'classify_requests_total{code="200",model="digits",version="1"}'
        eventually(lambda: server.metric(answered) == total)
        tensors = 8 * 10
        assert server.metric('classify_predictions_total{label="seven",model="digits"}') >= total - tensors
        assert server.metric("classify_batch_size_sum") == total
        assert server.metric("classify_confidence_count") == total
        assert server.metric("classify_request_seconds_count") == total
        for stage, images in {"decode": total - tensors, "queue": total, "respond": total}.items():
            assert server.metric(f'classify_stage_seconds_count{{stage="{stage}"}}') == images
        (statistics,) = server.get("/v2/models/digits/stats").json()["model_stats"]
        assert statistics["inference_count"] == total
        assert server.metric("classify_images_in_flight") == 0

        def lines() -> list[str]:
            return server.lines("service.request")

        eventually(lambda: len(lines()) == total)
        assert len({json.loads(line)["request_id"] for line in lines()}) == total
        assert len([line for line in lines() if INFER in line]) == tensors


def test_classes_of_the_same_label_are_counted_together(tmp_path: Path) -> None:
    write_plain(tmp_path, ["n", 3, 8, 8], [2, 3])
    config = PLAIN_CONFIG | {"labels": ["seven"] * 3}  # as ImageNet has two cranes, a bird and a machine
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    both = [encode("red"), encode("green")]
    with running(tmp_path, "--http-workers", "1") as server:
        wait_for_workers(server, 1)
        with with_a_worker(server, both[0]) as connection:
            for each in both * 20:
                who_answers(connection, each)
        total = 2 + 1 + 40  # with those that woke the worker
        eventually(lambda: server.metric("classify_batch_size_sum") == total)
        assert server.metric('classify_predictions_total{label="seven",model="plain"}') == total
        assert server.metric('classify_requests_total{code="200",model="plain",version="1"}') == total


def test_what_workers_use_is_in_the_metrics(digits_models: Path, image: bytes) -> None:
    cpu, memory = "service_http_worker_cpu_seconds_total", "service_http_worker_resident_memory_bytes"
    with running(digits_models, "--http-workers", "2") as server:
        wait_for_workers(server, 2)
        with connected(server) as connection:
            for _ in range(500):
                who_answers(connection, image)
        used, resident = used_and_resident(workers_of(server))
        eventually(lambda: server.metric(cpu) > used - 0.05)
        assert server.metric(cpu) < used + 0.2
        assert server.metric(memory) == pytest.approx(resident, rel=0.05)
        for each in workers_of(server):
            os.kill(each, signal.SIGKILL)
        seen: list[float] = []

        def are_gone() -> bool:
            seen[:] = server.metrics(cpu, memory)  # of one moment: those that follow use something soon
            return seen[1] == 0

        eventually(are_gone)
        assert used - 0.05 < seen[0] < used + 0.2


def used_and_resident(processes: list[int]) -> tuple[float, int]:
    """Their CPU time in seconds, and their memory in bytes."""
    used, resident = 0.0, 0
    for each in processes:
        fields = Path(f"/proc/{each}/stat").read_text().rpartition(") ")[2].split()
        used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        resident += int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return used, resident


def test_workers_end_with_a_server_that_is_killed(digits_models: Path) -> None:
    with running(digits_models, "--http-workers", "2") as server:
        wait_for_workers(server, 2)
        workers = workers_of(server)
        server.process.kill()
        eventually(lambda: not any(Path(f"/proc/{each}/cmdline").exists() and alive(each) for each in workers))


def alive(process: int) -> bool:
    """Whether it runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_stop_loses_no_request(digits_models: Path, module: tuple[str, ...], image: bytes) -> None:
    with running(digits_models, "--http-workers", "2", "--drain-delay-ms", "3000", module=module) as server:
        wait_for_workers(server, 2)
        stopping = threading.Event()
        counts = [0] * 8

        def ask(caller: int) -> None:
            with connected(server) as connection:
                while True:
                    connection.sendall(request(image))
                    ((status, headers, _),) = answers(connection, 1)
                    assert status == 200
                    counts[caller] += 1
                    if headers.get("connection") == "close":
                        assert stopping.is_set()
                        assert is_closed(connection)
                        return

        with ThreadPoolExecutor(8) as pool:
            asking = [pool.submit(ask, caller) for caller in range(8)]
            eventually(lambda: min(counts) > 2)
            workers = workers_of(server)
            stopping.set()
            assert server.terminate() == 0
            for each in asking:
                each.result()
        assert not any(alive(each) for each in workers)
        assert not server.tracebacks()


def test_no_answer_comes_from_a_version_that_was_replaced(
    digits_models: Path, module: tuple[str, ...], image: bytes, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models / "digits" / "1", models / "digits" / "1")
    with running(models, "--http-workers", "2", "--model-control", "explicit", module=module) as server:
        wait_for_workers(server, 2)
        least = 1
        asked_enough = threading.Event()
        # Large enough, and by enough callers, that the way to a worker is full at times.
        asked = request(image + bytes(14_000))

        def ask() -> set[int]:
            versions = set()
            with connected(server) as connection:
                while not asked_enough.is_set():
                    expected = least
                    connection.sendall(asked)
                    ((status, _, body),) = answers(connection, 1)
                    version = json.loads(body)["version"]
                    assert status == 200
                    assert version >= expected
                    versions.add(version)
                    time.sleep(0.01)  # a load yields to traffic
            return versions

        with ThreadPoolExecutor(24) as pool:
            asking = [pool.submit(ask) for _ in range(24)]
            try:
                for version in range(2, 4):
                    time.sleep(0.5)
                    shutil.copytree(digits_models / "digits" / "1", models / "digits" / str(version))
                    loaded = server.post("/v2/repository/models/digits/load", json={}, timeout=60)
                    assert loaded.status_code == 200
                    least = version
                wait_for_workers(server, 2)
                time.sleep(0.5)
            finally:
                asked_enough.set()
            assert set.union(*(each.result() for each in asking)) == {1, 2, 3}
        with with_a_worker(server, image):
            unloaded = server.post("/v2/repository/models/digits/unload", json={}, timeout=60)
            assert unloaded.status_code == 200
            assert server.post("/classify", content=image).status_code == 503
        assert not server.tracebacks()


def test_a_version_that_is_withdrawn_after_a_load_has_failed_answers_nothing(
    digits_models: Path, image: bytes, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models / "digits" / "1", models / "digits" / "1")
    with running(models, "--http-workers", "1", "--model-control", "explicit") as server:
        wait_for_workers(server, 1)
        with with_a_worker(server, image) as connection:
            (models / "broken" / "1").mkdir(parents=True)
            (models / "broken" / "1" / "model.onnx").write_bytes(b"nothing")
            failed = server.post("/v2/repository/models/broken/load", json={}, timeout=60)
            assert failed.status_code == 400
            unloaded = server.post("/v2/repository/models/digits/unload", json={}, timeout=60)
            assert unloaded.status_code == 200
            connection.sendall(request(image, target="/classify?model=digits"))
            ((status, _, _),) = answers(connection, 1)
            assert status == 404
        assert not server.tracebacks()


def test_an_answer_that_its_caller_has_no_room_for_comes_whole(tmp_path: Path, image: bytes) -> None:
    with running(plain_models(tmp_path, 8, classes=4000), "--http-workers", "1") as server:
        wait_for_workers(server, 1)
        goes_on, ends = (
            tensor_request(*said, pixels=bytes(192), target="/v2/models/plain/infer", side=8, name="x")
            for said in ((), ("Connection: close",))
        )
        own = own_answers(server)

        def ask_unread(*requests: bytes) -> socket.socket:
            connection = connected(server)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for number, each in enumerate(requests):
                connection.sendall(each)  # each on its own, and nothing is read
                time.sleep(0.05 if number < 3 else 0.005)  # a slow machine finds at least the first ones alone
            return connection

        found, room = [], 0
        for _ in range(3):  # what a worker finds late, together with the next, it leaves to the server as well
            with ask_unread(*[goes_on] * 80) as connection:  # 5.6 MB, where Linux keeps 4 at most
                these = answers(connection, 80)
                by_server = [headers["x-request-id"].startswith(own) for _, headers, _ in these]
                assert True in by_server, "the caller had room for everything, so nothing was proved"
                for _ in range(2):
                    connection.sendall(goes_on)
                    last = answers(connection, 1)
                assert last[0][1]["x-request-id"].startswith(own) is False, "the connection goes to a worker again"
            room = max(room, by_server.index(True))
            found += these + last
        assert room > 1
        for before in range(room - 2, room + 1):  # so one of them ends with the one without room
            with ask_unread(*[goes_on] * before, ends) as connection:
                found += answers(connection, before + 1)
                assert is_closed(connection)
        assert {status for status, _, _ in found} == {200}
        assert len({body for _, _, body in found}) == 1
        assert len(found[0][2]) > 2**14


def test_a_tensor_over_the_limit_is_refused_by_workers_too(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "1", "--max-request-bytes", "3100") as server:
        wait_for_workers(server, 1)
        with with_a_worker(server, image) as connection:
            connection.sendall(tensor_request())
            ((status, _, body),) = answers(connection, 1)
            assert (status, b"the limit is 3100" in body) == (413, True)


def test_there_are_none_for_a_network_whose_answers_are_long(tmp_path: Path, image: bytes) -> None:
    with running(plain_models(tmp_path, 8, classes=5000), "--http-workers", "1") as server:
        with connected(server) as connection:
            for _ in range(3):
                connection.sendall(request(image))
                ((status, _, _),) = answers(connection, 1)
                assert status == 200
        time.sleep(0.5)
        assert workers_of(server) == []


def test_the_rest_of_a_request_that_was_given_up_is_no_request(server: Server, image: bytes) -> None:
    with connected(server) as connection:
        who_answers(connection, image)
        inner = request(image)
        late = request(b"." * 100 + inner, target="/classify?timeout_ms=300")
        connection.sendall(late[: -len(inner)])
        ((status, headers, _),) = answers(connection, 1)
        assert (status, headers["connection"]) == (504, "close")
        connection.sendall(inner)
        assert is_closed(connection)


def test_the_server_goes_on_where_no_worker_can_be_started(digits_models: Path, image: bytes) -> None:
    program = "import sys; from service.cli import main; sys.executable = '/nowhere/python'; sys.exit(main())"
    port = free_port()
    flags = ["--models", str(digits_models), "--port", str(port), "--http-workers", "1"]
    command = [sys.executable, "-c", program, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("ready:" in line for line in process.stdout)
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client:
                for _ in range(3):
                    assert client.post("/classify", content=image).status_code == 200
        finally:
            process.terminate()
        assert any("no worker can be started" in line for line in process.stdout)


def test_a_key_that_is_taken_away_opens_nothing_any_more(digits_models: Path, image: bytes, tmp_path: Path) -> None:
    key, line = new_key()
    keys = tmp_path / "keys"
    keys.write_text(line + "\n")
    with running(digits_models, "--http-workers", "1", "--api-keys-file", str(keys)) as server:
        wait_for_workers(server, 1, f"X-Api-Key: {key}")
        with connected(server) as connection:
            connection.sendall(request(image, f"X-Api-Key: {key}"))
            ((status, headers, _),) = answers(connection, 1)
            assert (status, headers["x-request-id"][:MADE_ID] != own_answers(server)) == (200, True)
            keys.write_text("# nobody\n")
            time.sleep(1.5)
            connection.sendall(request(image, f"X-Api-Key: {key}"))
            ((status, _, _),) = answers(connection, 1)
            assert status == 401


def test_there_are_none_without_anything_for_them(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--http-workers", "2") as server:
        for _ in range(3):
            assert server.post("/classify", content=image).status_code == 200
        time.sleep(0.5)
        assert workers_of(server) == []


def test_there_are_none_by_themselves_for_a_network_that_they_cannot_run(tmp_path: Path, image: bytes) -> None:
    with running(plain_models(tmp_path, 96), "--http-workers", "auto") as server, connected(server) as connection:
        for _ in range(3):
            send_body_after_head(connection, request(image))
            ((status, _, _),) = answers(connection, 1)
            assert status == 200
        time.sleep(0.5)
        assert workers_of(server) == []


def plain_models(folder: Path, side: int, classes: int = 3) -> Path:
    """A network of next to no work, for images of so many pixels a side."""
    path = write_plain(folder, ["n", side, side, 3], [1, 2])
    if classes != 3:
        proto = onnx.load(path)
        weights = np.arange(3 * classes, dtype=np.float32).reshape(3, classes)
        proto.graph.initializer.append(numpy_helper.from_array(weights, "weights"))
        proto.graph.node[0].output[0] = "means"
        proto.graph.node.append(helper.make_node("MatMul", ["means", "weights"], ["y"]))
        proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
        onnx.save(proto, path)
    config = {"labels": [f"class {each}" for each in range(classes)]} if classes != 3 else {}
    recipe = PLAIN_CONFIG["preprocessing"] | {"resize": side, "crop": side}
    (folder / "plain" / "config.json").write_text(json.dumps(PLAIN_CONFIG | config | {"preprocessing": recipe}))
    return folder


def test_they_end_when_nothing_is_left_for_them_and_come_back(
    digits_models: Path, image: bytes, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    with running(models, "--http-workers", "2", "--model-control", "explicit") as server:
        wait_for_workers(server, 2)
        for action, status in (("unload", 503), ("load", 200)):
            done = server.post(f"/v2/repository/models/digits/{action}", json={}, timeout=60)
            assert done.status_code == 200
            assert server.post("/classify", content=image).status_code == status
            eventually(lambda: workers_of(server) == [])
        wait_for_workers(server, 2)


@pytest.mark.faults  # for its five seconds
def test_an_idle_connection_leaves_its_place_to_others_and_gets_one_with_its_next_request(
    server: Server, image: bytes
) -> None:
    def sockets() -> int:
        open_files = [each for pid in workers_of(server) for each in Path(f"/proc/{pid}/fd").iterdir()]
        return sum("socket:" in os.readlink(each) for each in open_files)

    eventually(lambda: sockets() == 2)  # the channel of each
    with with_a_worker(server, image) as connection:
        assert sockets() == 3
        eventually(lambda: sockets() == 2)
        assert who_answers(connection, image) != own_answers(server)


@pytest.mark.parametrize(
    "flags",
    [
        ("--http-workers", "0"),
        ("--http-workers", "2", "--rate-limit", "1000", "--api-keys", "k"),
        ("--http-workers", "2", "--request-timeout-ms", "900"),
    ],
)
def test_there_are_none_where_they_are_not_wanted(digits_models: Path, image: bytes, flags: tuple[str, ...]) -> None:
    with running(digits_models, *flags) as server, connected(server) as connection:
        for _ in range(2):
            connection.sendall(request(image, "X-Api-Key: k"))
            ((status, _, _),) = answers(connection, 1)
            # Within a second, on a machine that may stand still.
            assert status == 200 or (status, "--request-timeout-ms" in flags) == (504, True)
        time.sleep(0.5)
        assert workers_of(server) == []
        assert server.metric("service_http_workers") == 0
