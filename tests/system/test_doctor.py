"""`resnet-serve doctor` names what is wrong and what to do, and has a good word for what is right."""

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.doctor import _missing
from tests.system.server import free_port, run_command


def test_a_machine_in_order_has_nothing_to_fix(digits_models: Path) -> None:
    done = run_command("doctor", "--models", str(digits_models), "--port", str(free_port()))
    assert (done.returncode, done.stderr) == (0, "")
    assert "FAIL" not in done.stdout
    assert "ok    models: 1 in" in done.stdout
    assert "ok    resize kernel: compiled" in done.stdout


def test_what_is_wrong_is_named_with_its_fix(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command(
            "doctor", "--models", str(tmp_path), "--port", str(port), "--device", "cuda", "--threads", "1000"
        )
    assert done.returncode == 1
    assert done.stderr == "resnet-serve: 3 of these keep it from serving\n"
    lines = done.stdout.splitlines()
    assert any(each.startswith("FAIL  device: ") and "resnet-service[gpu]" in each for each in lines)
    assert any(each.startswith("FAIL  models: ") and "resnet-export convert" in each for each in lines)
    assert any(each.startswith(f"FAIL  port {port}: ") and "choose another" in each for each in lines)
    assert any(each.startswith("warn  threads: 1000 on ") and "SERVICE_THREADS" in each for each in lines)


def test_too_few_file_descriptors_are_a_warning(digits_models: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "doctor", "--models", str(digits_models), "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)),
    )
    assert "warn  file descriptors: 512, one for each connection; raise it to 4096" in done.stdout


@pytest.mark.parametrize(
    ("library", "wheel"),
    [("libcudnn.so.9", "nvidia-cudnn"), ("libcublasLt.so.13", "nvidia-cublas"), ("libelse.so.1", "onnxruntime-gpu")],
)
def test_a_missing_library_is_named_with_its_wheel(library: str, wheel: str) -> None:
    message = f"{library}: cannot open shared object file: No such file or directory"
    finding = str(_missing("CUDA", message, fatal=True))
    assert finding.startswith(f"FAIL  CUDA provider: {library} is missing; install the wheel {wheel}")
