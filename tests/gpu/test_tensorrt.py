"""The digits on TensorRT, where its libraries are: in each precision, with engines that the next start finds again."""

from pathlib import Path

import pytest

from model_export.cli import main
from service.runtime import DeviceError, open_onnx
from service.tensorrt import engine_options, prepare_tensorrt
from tests.system.server import run_command


def there_is_tensorrt(model: Path) -> bool:
    """Whether a session of a small network opens there."""
    prepare_tensorrt()
    try:
        open_onnx(model, "tensorrt", 1, options=engine_options(model, 2, None))
    except DeviceError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def _tensorrt(digits_model: Path) -> None:
    if not there_is_tensorrt(digits_model):
        pytest.skip("TensorRT is not here")


@pytest.mark.gpu
def test_every_precision_passes_its_golden_images(digits_by_precision: dict[str, Path], tmp_path: Path) -> None:
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(tmp_path / "int8"), "--precision", "int8"]
    assert main([*command, "--int8-target", "tensorrt", "--calibration-method", "minmax"]) == 0
    for models in (digits_by_precision["fp32"], digits_by_precision["fp16"], tmp_path / "int8"):
        done = run_command("check", "--models", str(models), "--device", "tensorrt")
        assert done.returncode == 0, done.stdout
        assert "on tensorrt" in done.stdout


@pytest.mark.gpu
def test_the_next_start_finds_the_engine(digits_models: Path, tmp_path: Path) -> None:
    command = ["check", "--models", str(digits_models), "--device", "tensorrt", "--tensorrt-cache", str(tmp_path)]
    built: list[dict[str, int]] = []
    for _ in range(2):
        assert run_command(*command).returncode == 0
        built.append({each.name: each.stat().st_mtime_ns for each in tmp_path.rglob("*.engine")})
    assert built[0]
    assert built[0] == built[1]
