"""Three replicas behind a real nginx and a real HAProxy are replaced under load: nobody notices.

The balancers are set as docs/operations.md tells an operator to set them: its blocks are what runs here.
"""

import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from benchmarks.load import Shot, open_loop
from benchmarks.workloads import post
from tests.system.server import Server, free_port, running, wait_until_ready

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
REQUESTS, RATE = 20_000, 200.0
PLACES = ("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000")


def documented(language: str, listen: int, ports: list[int]) -> str:
    """The block of that language in the documentation, with this machine's addresses."""
    found = re.search(rf"```{language}\n(.*?)```", OPERATIONS.read_text(), re.DOTALL)
    assert found is not None
    text = found[1]
    for place, port in zip(PLACES, ports, strict=True):
        assert place in text
        text = text.replace(place, f"127.0.0.1:{port}")
    return text.replace("listen 8080", f"listen 127.0.0.1:{listen}").replace("bind :8080", f"bind 127.0.0.1:{listen}")


@contextmanager
def nginx(listen: int, ports: list[int], folder: Path) -> Iterator[None]:
    temporary = "".join(
        f"{kind}_temp_path {folder};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{documented('nginx', listen, ports)}}}\n"
    )
    with balancer(["nginx", "-c", str(file), "-e", str(folder / "error.log")]):
        yield


@contextmanager
def haproxy(listen: int, ports: list[int], folder: Path) -> Iterator[None]:
    file = folder / "haproxy.cfg"
    file.write_text(documented("haproxy", listen, ports))
    with balancer(["haproxy", "-db", "-f", str(file)]):
        yield


@contextmanager
def balancer(command: list[str]) -> Iterator[None]:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


def restart(server: Server, sign: signal.Signals) -> None:
    """End a replica and start it again on its port, as an orchestrator would."""
    server.process.send_signal(sign)
    code = server.process.wait(30)
    assert code == (0 if sign == signal.SIGTERM else -sign), code
    command = server.process.args
    assert isinstance(command, list)
    server.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until_ready(server)


def end(server: Server) -> None:
    """Of the process that runs now, which `running` has not started."""
    server.process.kill()
    server.process.wait()


@pytest.mark.parametrize("start", [nginx, haproxy], ids=["nginx", "haproxy"])
def test_replicas_are_replaced_one_after_the_other_and_no_request_of_20000_fails(
    start: Callable[[int, list[int], Path], AbstractContextManager[None]],
    digits_models: Path,
    samples: list[Path],
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        replicas = [stack.enter_context(running(digits_models, "--http-workers", "auto")) for _ in PLACES]
        for replica in replicas:
            stack.callback(end, replica)
        listen = free_port()
        ports = [each.port for each in replicas]
        stack.enter_context(start(listen, ports, tmp_path))
        wait_until_reachable(f"http://127.0.0.1:{listen}/health/ready")
        replaced, done = [0], threading.Event()

        def replace() -> None:
            while not done.is_set():
                restart(replicas[replaced[0] % len(replicas)], signal.SIGTERM)
                replaced[0] += 1
                time.sleep(1)  # HAProxy sees it twice before it trusts it

        replacing = threading.Thread(target=replace)
        replacing.start()
        shots = [Shot(post("/classify", {"Content-Type": "image/png"}, each.read_bytes())) for each in samples]
        outcome = open_loop(listen, shots, RATE, REQUESTS / RATE)
        done.set()
        replacing.join()
    sys.stdout.write(f"{dict(outcome.statuses)}, {replaced[0]} replaced, p99 {outcome.quantile(0.99) * 1000:.1f} ms\n")
    assert replaced[0] >= 9
    assert set(outcome.statuses) == {200}
    assert outcome.statuses[200] > 0.99 * REQUESTS


def wait_until_reachable(url: str) -> None:
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"nothing answers at {url}")


def test_a_replica_that_is_killed_comes_back_as_it_was(digits_models: Path, samples: list[Path]) -> None:
    with running(digits_models, "--http-workers", "auto") as server:
        image = samples[0].read_bytes()
        before = server.post("/classify", content=image).json()
        restart(server, signal.SIGKILL)
        try:
            assert server.post("/classify", content=image).json() == before
            assert server.terminate() == 0
        finally:
            end(server)
