"""The examples, run as their readers would run them: against a real server, and against one that is busy at first."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from examples.classify import AsyncClassifier, Classifier, Refused
from tests.system.server import Server, running

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
COMMANDS: dict[str, Callable[[Path, str], list[str]]] = {
    "curl": lambda image, url: [str(EXAMPLES / "curl.sh"), str(image), url],
    "python": lambda image, url: [sys.executable, str(EXAMPLES / "classify.py"), "--url", url, str(image)],
    "javascript": lambda image, url: ["node", str(EXAMPLES / "classify.mjs"), str(image), url],
    "go": lambda image, url: ["go", "run", str(EXAMPLES / "classify.go"), str(image), url],
}
TOOLS = {"curl": "curl", "python": sys.executable, "javascript": "node", "go": "go"}


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as server:
        yield server


@pytest.mark.parametrize("language", COMMANDS)
def test_an_example_reads_a_digit(language: str, server: Server, seven: Path) -> None:
    if shutil.which(TOOLS[language]) is None:
        pytest.skip(f"{TOOLS[language]} is not installed")
    command = COMMANDS[language](seven, server.url)
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert "seven" in result.stdout


class _BusyAtFirst(BaseHTTPRequestHandler):
    """Refuses the first request with 429 and answers the second."""

    refusals: ClassVar[list[float]] = []
    answers: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        busy = not self.refusals
        (self.refusals if busy else self.answers).append(time.monotonic())
        body = json.dumps({"predictions": [{"label": "seven", "index": 7, "probability": 1.0}]}).encode()
        self.send_response(429 if busy else 200)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def busy() -> Iterator[str]:
    _BusyAtFirst.refusals.clear()
    _BusyAtFirst.answers.clear()
    with HTTPServer(("127.0.0.1", 0), _BusyAtFirst) as stand_in:
        thread = threading.Thread(target=stand_in.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{stand_in.server_port}"
        stand_in.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", ["blocking", "asyncio", "javascript", "curl"])
def test_a_busy_server_is_asked_again_no_sooner_than_it_says(kind: str, busy: str, samples: list[Path]) -> None:
    image = samples[0].read_bytes()
    if kind == "blocking":
        with Classifier(busy) as classifier:
            assert classifier.classify(image)[0]["label"] == "seven"
    elif kind == "asyncio":
        assert asyncio.run(_classify(busy, image)) == "seven"
    else:
        if shutil.which(TOOLS[kind]) is None:
            pytest.skip(f"{TOOLS[kind]} is not installed")
        subprocess.run(COMMANDS[kind](samples[0], busy), capture_output=True, timeout=60, check=True)
    assert (len(_BusyAtFirst.refusals), len(_BusyAtFirst.answers)) == (1, 1)
    # A timer may be a millisecond early.
    assert _BusyAtFirst.answers[0] - _BusyAtFirst.refusals[0] > 0.95


async def _classify(url: str, image: bytes) -> str:
    async with AsyncClassifier(url) as classifier:
        label: str = (await classifier.classify(image))[0]["label"]
        return label


def test_what_the_server_refuses_is_an_exception_with_its_code(server: Server) -> None:
    with Classifier(server.url) as classifier, pytest.raises(Refused, match="not a complete") as refused:
        classifier.classify(b"no image")
    assert refused.value.code == "undecodable_image"
