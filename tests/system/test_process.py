"""A real server process: it starts, answers, and says in one line why when it cannot."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.system.server import Server, free_port, run_command, running
from tests.system.workers import wait_for_workers
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as server:
        yield server


def test_every_shipped_sample_but_at_most_one_is_read_right(server: Server, samples: list[Path]) -> None:
    with httpx2.Client(base_url=server.url) as client:
        right = [
            client.post("/classify", content=path.read_bytes()).json()["predictions"][0]["label"] == path.stem
            for path in samples
        ]
    assert right.count(False) <= 1


def test_the_model_says_where_it_runs_and_that_it_was_replayed(server: Server) -> None:
    (version,) = server.get("/models/digits").json()["versions"]
    assert version["device"] == "cpu"
    assert version["golden_max_abs_diff"] < 1e-3
    assert version["card"]["accuracy"]["top1"] >= 0.985
    assert server.metric('model_golden_max_abs_diff{model="digits",version="1"}') < 1e-3
    info = 'model_info{architecture="resnet20",device="cpu",model="digits",precision="fp32",version="1"}'
    assert server.metric(info) == 1


def test_a_client_that_hangs_up_is_counted_and_leaves_nothing_behind(server: Server, samples: list[Path]) -> None:
    image = samples[0].read_bytes()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    port = server.port
    for sent in (head.encode(), head.encode() + image[:50]):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(sent)
    series = 'classify_requests_total{code="499",model="digits",version="1"}'
    eventually(lambda: server.counted(series) == 2)
    assert server.metric("classify_images_in_flight") == 0


@pytest.mark.parametrize("side", ["server", "exporter"])
def test_nothing_is_reported_to_anybody(digits_models: Path, tmp_path: Path, side: str) -> None:
    """onnxruntime keeps what it is about to send in its user's cache, and does not where it sees a CI."""
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    if side == "server":
        with running(digits_models, "--http-workers", "1", environment=environment) as server:
            wait_for_workers(server, 1)
    else:
        program = "import sys, model_export, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
        model = digits_models / "digits" / "1" / "model.onnx"
        subprocess.run([sys.executable, "-c", program, str(model)], env=environment, check=True, timeout=60)
    assert not list((tmp_path / "home").rglob("*onnxruntime*"))


def test_probes_answer_from_the_first_moment(digits_models: Path) -> None:
    with running(digits_models, ready=False) as server:
        give_up = time.monotonic() + 20
        seen = set()
        while "ready" not in seen:
            assert time.monotonic() < give_up
            try:
                assert server.get("/health/live").status_code == 200
                seen.add(server.get("/health/ready").json()["phase"])
            except httpx2.ConnectError:
                time.sleep(0.01)
        assert server.terminate() == 0


def test_check_prints_a_table_and_fails_with_the_stage_that_differs(digits_models: Path, tmp_path: Path) -> None:
    passed = run_command("check", "--models", str(digits_models))
    assert (passed.returncode, passed.stderr) == (0, "")
    assert "ok    digits version 1 on cpu: golden images within" in passed.stdout
    broken = tmp_path / "digits" / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    whole = (digits_models / "digits" / "1" / "model.onnx").read_bytes()
    broken.write_bytes(whole.replace(b"bilinear", b"bicubic\xc2"[:8].replace(b"\xc2", b" ")))
    failed = run_command("check", "--models", str(tmp_path))
    assert failed.returncode == 1
    assert "FAIL  digits version 1" in failed.stdout
    assert failed.stderr.startswith("resnet-serve: 1 of the models")


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (["--models", "/nowhere"], {}, 1, "resnet-export convert"),
        (["check", "--models", "/nowhere"], {}, 1, "resnet-export convert"),
        (["--port", "high"], {}, 2, "SERVICE_PORT=high"),
        ([], {"SERVICE_PROT": "1"}, 2, "SERVICE_PROT is not a setting"),
        (["--host", "203.0.113.1"], {}, 1, "cannot listen on 203.0.113.1"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line(
    arguments: list[str], environment: dict[str, str], code: int, said: str
) -> None:
    result = run_command(*arguments, **{"SERVICE_PORT": str(free_port())} | environment)
    assert result.returncode == code
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize("module", ["service.cli", "uvicorn"])  # at once, and while the first model is being opened
def test_a_start_that_is_interrupted_says_so_in_one_line(digits_models: Path, module: str) -> None:
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
class Interrupt:
    def find_spec(name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Interrupt)
from service.__main__ import main
sys.exit(main())
"""
    command = [sys.executable, "-c", program, "--models", str(digits_models), "--port", str(free_port())]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (1, "resnet-serve: interrupted\n")


def test_a_taken_port_is_named(digits_models: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        result = run_command("--models", str(digits_models), "--port", str(port))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_asked_for_cuda_without_one_it_exits_and_never_falls_back(digits_models: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    result = run_command("--models", str(digits_models), "--device", "cuda", "--port", str(free_port()))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "device cuda was asked for" in result.stderr


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "net" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "net" / "1" / "model.onnx")
    result = run_command("check", "--models", str(tmp_path))
    assert (result.returncode, "no model in" in result.stderr) == (1, True)


def test_a_default_model_that_is_not_there_stops_the_start(digits_models: Path) -> None:
    result = run_command("--models", str(digits_models), "--default-model", "letters", "--port", str(free_port()))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"SERVICE_DEFAULT_MODEL=letters is not in {digits_models}, where there is digits" in result.stderr


def test_when_no_model_can_be_served_it_exits_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage")
    result = run_command("--models", str(tmp_path), "--port", str(free_port()))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no model can be served: broken version 1: it is no ONNX file" in result.stderr


def test_help_documents_every_setting() -> None:
    text = run_command("--help").stdout
    for variable in ("SERVICE_MODELS", "SERVICE_DEVICE", "SERVICE_MAX_QUEUE", "SERVICE_DRAIN_DELAY_MS"):
        assert f"[{variable}]" in text.replace("\n", "")


def test_the_serving_process_never_imports_torch() -> None:
    code = "import service.app, service.cli, sys; print({'torch', 'onnx', 'model_export'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_every_log_line_is_json_and_a_requests_line_has_its_id_and_stages(
    digits_models: Path, samples: list[Path]
) -> None:
    with running(digits_models) as server:
        headers = {"x-request-id": "find-me"}
        server.post("/classify", content=samples[0].read_bytes(), headers=headers)
        assert server.terminate() == 0
        records = [json.loads(line) for line in server.lines("")]
    (record,) = [each for each in records if each.get("request_id") == "find-me"]
    assert (record["status"], record["model"], record["version"]) == (200, "digits", "1")
    assert set(record["ms"]) == {"decode", "queue", "inference", "respond", "total"}
    assert {"time", "level", "logger", "message"} <= set(records[0])
