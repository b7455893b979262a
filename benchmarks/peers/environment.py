"""Installing a peer into an environment of its own, running it, and leaving nothing of it behind."""

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import psutil

from benchmarks.peers.catalog import FOLDER, Peer
from benchmarks.peers.common import HOST, MODEL_VARIABLE, PORT_VARIABLE, WORKERS_VARIABLE, Model
from service.cpus import available_cpus

MARKER = "requirements.sha256"
# All that a run starts has this variable in its environment, also what left the process group.
RUN_VARIABLE = "PEER_RUN"
START_SECONDS = 120
ANSWER_SECONDS = 30
STOP_SECONDS = 15
POLL_SECONDS = 0.2
LOG_LINES = 15


class PeerUnavailable(Exception):
    """A peer cannot be installed or started on this machine. The message's first line is the reason."""


class Example(NamedTuple):
    """An encoded image, and the label that onnxruntime alone finds for it."""

    image: bytes
    label: str


def prepare(peer: Peer, folder: Path) -> Path:
    """Make the peer's virtual environment `folder/<name>` if it is not there as the requirements want it.

    Raises:
        PeerUnavailable: pip fails, or a program that the peer needs is missing.
    """
    for program in peer.needs:
        if shutil.which(program) is None:
            raise PeerUnavailable(f"it needs {program}, which is not installed")
    environment = folder / peer.name
    marker = environment / MARKER
    wanted = sha256(sys.version.encode() + peer.requirements.read_bytes()).hexdigest()
    if not marker.exists() or marker.read_text() != wanted:
        print(f"{peer.name}: installing {peer.version} into {environment}; this takes minutes …", file=sys.stderr)
        venv.create(environment, clear=True, symlinks=True, with_pip=True)
        _install(environment, peer.requirements)
        marker.write_text(wanted)
    return environment


def _install(environment: Path, requirements: Path) -> None:
    pip: list[str | Path] = [
        environment / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    done = subprocess.run(  # noqa: S603
        [*pip, "-r", requirements], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()] or ["no output"]
        errors = [line for line in lines if line.startswith("ERROR:")]
        raise PeerUnavailable(f"pip: {(errors or lines)[-1]}")


@contextmanager
def running(peer: Peer, environment: Path, model: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The peer, serving `model` on 127.0.0.1 at `port`, from its first right answer to the end of the block.

    Right is the label that onnxruntime alone finds for a golden image of the model.

    Raises:
        PeerUnavailable: the port is taken, or the peer ends, answers wrongly, or is not ready within 120 s; with the
            end of its log from the second line on.
    """
    example = _golden(model)
    _require_free(port)
    run = uuid4().hex
    # Short, as Unix sockets will lie deep inside.
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        process = _start(peer, environment, log, _variables(environment, model, port) | {RUN_VARIABLE: run})
        try:
            _await_answer(peer, process, port, example, log)
            yield process
        finally:
            _stop(process, run)


def ask(peer: Peer, port: int, image: bytes) -> str:
    """The label that the running peer finds most probable for an encoded image.

    Raises:
        OSError, http.client.HTTPException: it cannot be reached.
        ValueError: it answers with something else; the message says what.
    """
    request = peer.request(image)
    connection = http.client.HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", request.path, request.body, request.headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ValueError(f"it answers {response.status}: {body[:200]!r}")
    try:
        return peer.top1(body)
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"it answers without a label: {body[:200]!r}") from error


def _golden(path: Path) -> Example:
    model = Model(path)
    image = b64decode(model.card["golden"][0]["image_base64"])
    return Example(image, str(model.classify([image])[0][0]["label"]))


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PeerUnavailable(f"port {port} is taken") from error


def _variables(environment: Path, model: Path, port: int) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return inherited | {
        "PATH": f"{environment.absolute() / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(FOLDER.parent.parent),
        "PYTHONUNBUFFERED": "1",
        MODEL_VARIABLE: str(model.absolute()),
        PORT_VARIABLE: str(port),
        WORKERS_VARIABLE: str(available_cpus()),
    }


def _start(peer: Peer, environment: Path, log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    # Some write into their working directory, and all into the temporary one.
    folder = log.parent
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603
            [environment.absolute() / "bin" / "python", peer.serve],
            cwd=folder,
            env=variables | {"TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_answer(peer: Peer, process: subprocess.Popen[bytes], port: int, example: Example, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    problem = "it does not listen"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerUnavailable(f"it ended with status {process.returncode}\n{_tail(log)}")
        try:
            label = ask(peer, port, example.image)
        except (OSError, http.client.HTTPException):
            pass
        except ValueError as error:
            # Several listen before their model is loaded.
            problem = str(error)
        else:
            if label != example.label:
                raise PeerUnavailable(f"it answers {label!r} where onnxruntime finds {example.label!r}\n{_tail(log)}")
            return
        time.sleep(POLL_SECONDS)
    raise PeerUnavailable(f"not ready after {START_SECONDS} s: {problem}\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])


def _stop(process: subprocess.Popen[bytes], run: str) -> None:
    """End the peer as an administrator would, then whatever outlives it."""
    left = _family(run, process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        left = {member for member in left | _family(run, process.pid) if member.is_running()}
        for member in left:
            _signal(member, signum)
        psutil.wait_procs(left, STOP_SECONDS)
    process.wait()


def _signal(member: psutil.Process, signum: int) -> None:
    try:
        member.send_signal(signum)
    except psutil.NoSuchProcess:
        return


def _family(run: str, pid: int) -> set[psutil.Process]:
    """All that the run started and that lives.

    Known by its environment, its session or its ancestors: those that set their title lose the first, those that
    start sessions the second, and those whose parent died the third.
    """
    family: set[psutil.Process] = set()
    for member in psutil.process_iter():
        try:
            if os.getsid(member.pid) == pid or member.environ().get(RUN_VARIABLE) == run:
                family |= {member, *member.children(recursive=True)}
        except (psutil.Error, OSError):
            continue
    return family
