"""The digits on TensorRT, where its libraries are: in each precision, with engines that the next start finds again."""

import ctypes
from pathlib import Path

import pytest

from model_export.cli import main
from service.runtime import load_libraries
from tests.system.server import run_command

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def _tensorrt() -> None:
    """Nothing but the library decides, so that whatever fails with it is a failure."""
    load_libraries("tensorrt")
    try:
        ctypes.CDLL("libnvinfer.so.10")
    except OSError:
        pytest.skip("TensorRT 10 is not here")


def test_every_precision_passes_its_golden_images(digits_by_precision: dict[str, Path], tmp_path: Path) -> None:
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(tmp_path / "int8"), "--precision", "int8"]
    assert main([*command, "--int8-target", "tensorrt", "--calibration-method", "minmax"]) == 0
    for models in (digits_by_precision["fp32"], digits_by_precision["fp16"], tmp_path / "int8"):
        done = run_command("check", "--models", str(models), "--device", "tensorrt")
        assert done.returncode == 0, done.stdout
        assert "on tensorrt" in done.stdout


def test_the_next_start_finds_the_engine(digits_models: Path, tmp_path: Path) -> None:
    command = ["check", "--models", str(digits_models), "--device", "tensorrt", "--tensorrt-cache", str(tmp_path)]
    built: list[dict[str, int]] = []
    for _ in range(2):
        assert run_command(*command).returncode == 0
        built.append({each.name: each.stat().st_mtime_ns for each in tmp_path.rglob("*.engine")})
    assert built[0]
    assert built[0] == built[1]
