"""A server under test as a tree of processes: how soon it is ready, what CPU time and memory it takes."""

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

START_SECONDS = 60
# The kernel walks every page of a process to share its memory out. Ten times a second that took 3 % of two cores from
# whoever was measured.
SAMPLE_SECONDS = 1.0
MEBIBYTE = 2**20


class SubjectError(Exception):
    """The server does not start. The message is one line."""


def resident(root: psutil.Process) -> int:
    """Bytes that a process and its descendants hold, each page divided by the processes that share it."""
    total = 0
    for process in _tree(root):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):
            continue
    return total


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


class Usage:
    """Samples a process and its descendants until it is stopped. Memory is resident, shared pages counted once each."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self.peak_mebibytes = 0.0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def cpu_seconds(self) -> float:
        """User and system time of all that live."""
        total = 0.0
        for process in _tree(self._root):
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            total += times.user + times.system
        return total

    def stop(self) -> None:
        """Sample no more."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak_mebibytes = max(self.peak_mebibytes, resident(self._root) / MEBIBYTE)


@contextmanager
def serving(models: Path, port: int, log: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """This project's server with its defaults but for `flags`, and the seconds from its start to ready.

    Raises:
        SubjectError: the port is taken, or it ends, or is not ready within a minute.
    """
    command = [
        sys.executable,
        "-m",
        "service",
        "--models",
        str(models),
        "--port",
        str(port),
        "--drain-delay-ms",
        "0",
        *flags,
    ]
    _refuse_taken(port)
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
    try:
        _await_ready(process, port, began, log)
        yield process, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def _refuse_taken(port: int) -> None:
    """Somebody else's server would be measured in this one's place."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise SubjectError(f"port {port} is taken: end what listens there") from error


def _await_ready(process: subprocess.Popen[bytes], port: int, began: float, log: Path) -> None:
    while time.perf_counter() < began + START_SECONDS:
        if process.poll() is not None:
            lines = log.read_text().splitlines() or ["no output"]
            raise SubjectError(f"resnet-serve ended with {process.returncode}: {lines[-1]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.01)
    raise SubjectError(f"resnet-serve is not ready after {START_SECONDS} s; see {log}")
