"""A device that fails, in a real process: callers hear in time, probes tell, and only what cannot recover ends."""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.system.server import Server, running
from tests.system.wire import answers, connected
from tests.waiting import eventually

WATCHDOG_MS = 1000


@contextmanager
def faulty(models: Path, orders: Path, *flags: str) -> Iterator[Server]:
    with running(
        models, "--device-timeout-ms", str(WATCHDOG_MS), *flags, module=("tests.faults.faulty", str(orders))
    ) as server:
        yield server


def post(server: Server, image: Path) -> httpx2.Response:
    return server.post("/classify", content=image.read_bytes(), timeout=30)


@pytest.mark.parametrize("order", ["hang", "die", "lose"])
def test_a_device_that_is_gone_turns_live_503_answers_everybody_and_ends_the_process(
    order: str, digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    with faulty(digits_models, orders) as server, ThreadPoolExecutor(20) as pool:
        assert post(server, samples[0]).status_code == 200
        orders.write_text(order)
        started = time.monotonic()
        waiting = [pool.submit(post, server, sample) for sample in samples]
        codes = []
        for each in waiting:
            try:
                codes.append(each.result().status_code)
            except httpx2.TransportError:  # it came when the listener was closed already
                continue
        assert time.monotonic() - started < WATCHDOG_MS / 1000 + 3
        assert codes
        assert set(codes) == {503}
        assert server.process.wait(10) == 1
        log = server.log.read_text()
        assert "resnet-serve: the device" in log


def test_probes_say_that_it_hangs_before_the_process_ends(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    with faulty(digits_models, orders) as server, connected(server) as live, connected(server) as ready:
        probes = {
            live: b"GET /health/live HTTP/1.1\r\nHost: x\r\n",
            ready: b"GET /health/ready HTTP/1.1\r\nHost: x\r\n",
        }
        for connection, head in probes.items():
            connection.sendall(head + b"\r\n")
            assert answers(connection, 1)[0][0] == 200
            connection.sendall(head)  # and the rest when it hangs, which is shortly before nobody listens any more
        orders.write_text("hang")
        assert post(server, samples[0]).status_code == 503
        for connection in probes:
            connection.sendall(b"\r\n")
            assert answers(connection, 1)[0][0] == 503
        assert server.process.wait(10) == 1


def test_a_batch_without_memory_is_split_and_served(digits_models: Path, samples: list[Path], tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    with faulty(digits_models, orders) as server:
        files = [("files", (sample.name, sample.read_bytes())) for sample in samples]

        def labels() -> list[str]:
            answer = server.post("/classify/batch", files=files).json()
            return [each["predictions"][0]["label"] for each in answer["results"]]

        whole = labels()
        orders.write_text("exhaust")
        give_up = time.monotonic() + 20
        while not server.metric('device_failures_total{kind="out_of_memory"}'):
            assert time.monotonic() < give_up
            assert labels() == whole, "on a busy machine each image may have gone alone: then once more"
        orders.write_text("exhaust-all")
        refused = post(server, samples[0])
        assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
        assert server.get("/health/live").status_code == 200
        orders.unlink()
        assert post(server, samples[0]).status_code == 200


def test_a_run_that_fails_costs_its_batch_and_tells_nothing(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    with faulty(digits_models, orders) as server:
        orders.write_text("fail")
        failed = post(server, samples[0])
        assert (failed.status_code, failed.json()["code"]) == (500, "internal_error")
        assert "secret" not in failed.text
        orders.unlink()
        assert post(server, samples[0]).status_code == 200
        assert server.terminate() == 0
        assert "a secret of the inside" in server.log.read_text()


def test_a_full_disk_under_the_log_costs_lines_and_no_answer(digits_models: Path, samples: list[Path]) -> None:
    with running(digits_models, output="/dev/full") as server:
        assert [post(server, sample).status_code for sample in samples] == [200] * len(samples)
        time.sleep(0.2)  # the lines are written by now, or not
        assert post(server, samples[0]).status_code == 200
        assert server.terminate() == 0


def test_a_folder_that_vanishes_takes_no_model_with_it(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    with running(models, "--model-control", "poll", "--model-poll-ms", "100") as server:
        shutil.rmtree(models)
        time.sleep(0.5)
        assert post(server, samples[0]).status_code == 200
        assert server.get("/health/ready").status_code == 200


def test_a_file_that_is_half_written_is_left_alone_until_it_is_whole(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    content = (models / "digits" / "1" / "model.onnx").read_bytes()
    with running(models, "--model-control", "poll", "--model-poll-ms", "100") as server:
        (models / "digits" / "2").mkdir()
        with (models / "digits" / "2" / "model.onnx").open("wb", buffering=0) as file:
            for start in range(0, len(content), len(content) // 20):
                file.write(content[start : start + len(content) // 20])
                assert post(server, samples[0]).json()["version"] == 1
                time.sleep(0.05)
        eventually(lambda: post(server, samples[0]).json()["version"] == 2)
        assert server.get("/health/ready").status_code == 200


@pytest.mark.skipif(not Path("/usr/lib/x86_64-linux-gnu/faketime").exists(), reason="libfaketime is not installed")
def test_a_clock_that_jumps_moves_no_deadline(digits_models: Path, samples: list[Path], tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with running(digits_models, environment=os.environ | environment) as server:
        for jump in ("+2d", "-30d", "+0"):
            clock.write_text(jump)
            answer = post(server, samples[0])
            assert answer.status_code == 200
            total = float(answer.headers["server-timing"].rpartition("total;dur=")[2])
            assert 0 < total < 60_000
        assert server.terminate() == 0
