"""Ten times what the server can do, for a minute: it does what it can, says no quickly, and is itself again at once."""

import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from benchmarks.load import Shot, closed_loop, open_loop
from benchmarks.workloads import WORKLOADS, jpegs, post, prepare
from tests.system.server import Server, running

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
SECONDS = 60.0
DEADLINE_MS = 1000
# The load and the refusals run on the same two cores as the network: they take 15 to 20 % of them.
GOODPUT = 0.7
# More often than any orchestrator or scraper; the asking itself takes some of the cores.
PROBE_SECONDS = 0.3
PROBES = ("/health/live", "/health/ready", "/metrics")


@pytest.fixture(scope="module")
def slow_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 with random weights: honest work of tens of ms an image, beside which the load costs little."""
    return prepare(WORKLOADS["W4f"], tmp_path_factory.mktemp("slow"))


class Probing(threading.Thread):
    """Asks for probes and metrics three times a second, and notes how long they take."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server
        self.ended = threading.Event()
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.statuses: set[int] = set()

    def run(self) -> None:
        with httpx2.Client(base_url=self._server.url) as client:
            while not self.ended.wait(PROBE_SECONDS):
                for path in PROBES:
                    began = time.perf_counter()
                    self.statuses.add(client.get(path).status_code)
                    self.seconds[path].append(time.perf_counter() - began)


def p99(values: list[float]) -> float:
    return float(np.percentile(values, 99)) * 1000


def test_ten_times_the_capacity_for_a_minute(slow_models: Path) -> None:
    images = jpegs(256, 256, 8)
    headers = {"Content-Type": "image/jpeg"}
    shots = [Shot(post(f"/classify?timeout_ms={DEADLINE_MS}", headers, image)) for image in images]
    with running(slow_models) as server:
        port = server.port
        closed_loop(port, shots, 8, 2.0)
        before = closed_loop(port, shots, 8, 8.0).per_second
        probing = Probing(server)
        probing.start()
        flood = open_loop(port, shots, 10 * before, SECONDS)
        probing.ended.set()
        probing.join()
        time.sleep(2)
        after = open_loop(port, shots, 0.5 * before, 4.0)
        peak = (before + closed_loop(port, shots, 8, 8.0).per_second) / 2  # a machine may slow down within the minute
        figures: dict[str, Any] = {
            "capacity before, requests/s": before,
            "capacity before and after, mean": peak,
            "offered": sum(flood.statuses.values()) / SECONDS,
            "goodput": len(flood.latencies) / SECONDS,
            "codes": dict(flood.statuses),
            "p99 of refusals, ms": p99(flood.refusals),
            "p99 of answers, ms": p99(flood.latencies),
            "codes two seconds after": dict(after.statuses),
        } | {f"p99 of {path}, ms": p99(seconds) for path, seconds in probing.seconds.items()}
        sys.stdout.write(f"{figures}\n")
        assert set(flood.statuses) <= {200, 429, 504}, figures
        assert p99(flood.refusals) < 10, figures
        assert p99(flood.latencies) < DEADLINE_MS + 50, figures
        assert figures["goodput"] > GOODPUT * peak, figures
        assert flood.statuses[504] < 0.01 * flood.statuses[200], figures
        assert probing.statuses == {200}
        assert all(p99(seconds) < 50 for seconds in probing.seconds.values()), figures
        assert set(after.statuses) == {200}, figures
