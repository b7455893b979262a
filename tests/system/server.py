"""A real `resnet-serve` process on a port of its own."""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2


@dataclass
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str, **sent: Any) -> httpx2.Response:
        """One request on a connection of its own."""
        return self._request("GET", path, sent)

    def post(self, path: str, **sent: Any) -> httpx2.Response:
        """One request on a connection of its own."""
        return self._request("POST", path, sent)

    def put(self, path: str, **sent: Any) -> httpx2.Response:
        """One request on a connection of its own."""
        return self._request("PUT", path, sent)

    def _request(self, method: str, path: str, sent: dict[str, Any]) -> httpx2.Response:
        # To read whom to trust, for which a server without TLS has no use, takes longer than most requests.
        return httpx2.request(method, self.url + path, verify=False, **({"timeout": 10} | sent))

    def terminate(self, timeout: float = 30) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def tracebacks(self) -> list[str]:
        """The lines of its log that have one."""
        return self.lines("Traceback")

    def lines(self, having: str) -> list[str]:
        """Those of its log with these words; one that is still being written does not count."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [line for line in whole.splitlines() if having in line]

    def resident_bytes(self) -> int:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def metric(self, series: str) -> float:
        """The value of one series, written as in the text format."""
        (value,) = self.metrics(series)
        return value

    def metrics(self, *series: str) -> list[float]:
        """The values of several at one moment."""
        found = self._series()
        return [found[each] for each in series]

    def counted(self, series: str) -> float:
        """As `metric`; 0 for a series of which nothing was counted yet."""
        return self._series().get(series, 0.0)

    def _series(self) -> dict[str, float]:
        lines = (line for line in self.get("/metrics").text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


@contextmanager
def running(
    models: Path,
    *flags: str,
    ready: bool = True,
    scheme: str = "http",
    module: tuple[str, ...] = ("service",),
    output: str = "",
    environment: dict[str, str] | None = None,
) -> Iterator[Server]:
    """Start a server over a model folder and, unless told otherwise, wait until it is ready.

    `module` is what Python runs, with its first arguments; `output` is where it writes instead of its log.
    """
    port = free_port()
    # Workers are for the tests of them: starting them takes longer than most tests do. A flag in `flags` wins.
    command = [
        sys.executable,
        "-m",
        *module,
        "--models",
        str(models),
        "--port",
        str(port),
        "--http-workers",
        "0",
        *flags,
    ]
    with (
        tempfile.NamedTemporaryFile(prefix="resnet-serve-", suffix=".log") as log,
        open(output or log.name, "wb") as to,
    ):
        # To a file: a pipe that nobody reads would fill up and stop the server.
        process = subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT, env=environment)
        server = Server(process, f"{scheme}://127.0.0.1:{port}", Path(log.name))
        try:
            if ready:
                wait_until_ready(server)
            yield server
        finally:
            process.kill()
            process.wait()


def wait_until_ready(server: Server) -> None:
    """Poll /health/ready as a load balancer would."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        assert server.process.poll() is None, server.log.read_text()
        try:
            if server.get("/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `resnet-serve` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )


def free_port() -> int:
    """A port that nobody else gets before these tests end."""
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # with it, a server may listen beside
    probe.bind(("127.0.0.1", 0))
    atexit.register(probe.close)
    port: int = probe.getsockname()[1]
    return port
