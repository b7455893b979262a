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
    assert WORKLOADS["W4"].on_gpu().models == {"resnet50": ("resnet50", "fp16")}
    assert WORKLOADS["W4f"].on_gpu() == WORKLOADS["W4f"]
    assert WORKLOADS["W6"].on_gpu().title == "ResNet-18 float16, binary uint8 tensors under /v2"


def benchmark(name: str, *flags: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one in a folder of its own, to its end."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--device", "cpu", "--seconds", "0.1", *flags],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ways_of_running_a_network_are_compared(tmp_path: Path) -> None:
    flags = ("--networks", "resnet18", "--precisions", "fp32", "--sizes", "1", "2")
    done = benchmark("cuda", *flags, folder=tmp_path)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| session", "| torch"))]
    assert {row[0].removeprefix("| ") for row in rows} >= {"session, as served", "session, IO binding", "torch, eager"}
    for _, *rates, difference in rows:
        assert all(float(rate.replace(",", "")) > 0 for rate in rates)
        assert float(difference.removesuffix(" |")) < 1e-4
    assert "of the best of torch" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ways_of_decoding_are_compared(tmp_path: Path) -> None:
    done = benchmark("decoding", "--sizes", "1", "4", folder=tmp_path)
    rows = {row[0]: row[1:] for line in done.stdout.splitlines() if (row := line.strip("| ").split(" | "))[1:]}
    served, other = "as served, a thread a core", "nvImageCodec, CPU_ONLY"
    assert served in rows
    assert other in rows or f"{other} is left out: " in done.stderr
    for name in {served, other} & rows.keys():
        *rates, most, mean, logits = rows[name]
        assert all(float(rate.replace(",", "")) > 0 for rate in rates)
        assert (most, mean, logits) == ("0", "0.000", "0.00")
    assert "a process for each core" in done.stdout
