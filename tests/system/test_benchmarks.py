"""The benchmarks as commands: those for a GPU too, as far as a machine without one can tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]


def test_a_gpu_is_asked_for_no_int8() -> None:
    """CUDA has no int8 convolutions: a server that may not fall back to the CPU would refuse them."""
    for workload in WORKLOADS.values():
        on_gpu = workload.on_gpu()
        assert "int8" not in {precision for _, precision in on_gpu.models.values()}
        assert "int8" not in on_gpu.title
    assert WORKLOADS["W4"].on_gpu().models == {"resnet50": ("resnet50", "fp16")}
    assert WORKLOADS["W4f"].on_gpu() == WORKLOADS["W4f"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ways_of_running_a_network_are_compared(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.cuda", "--device", "cpu", "--networks", "resnet18"]
    command += ["--precisions", "fp32", "--sizes", "1", "2", "--seconds", "0.1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| session", "| torch"))]
    assert {row[0].removeprefix("| ") for row in rows} >= {"session, as served", "session, IO binding", "torch, eager"}
    for _, *rates, difference in rows:
        assert all(float(rate.replace(",", "")) > 0 for rate in rates)
        assert float(difference.removesuffix(" |")) < 1e-4
    assert "of the best of torch" in done.stdout
