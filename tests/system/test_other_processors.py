"""An artifact on a processor without VNNI, emulated: it answers as it should, or is kept out of service."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_export.cli import main

EMULATOR = "qemu-x86_64"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which(EMULATOR) is None, reason="needs qemu-user"),
]


def check_on_haswell(models: Path) -> subprocess.CompletedProcess[str]:
    command = [EMULATOR, "-cpu", "Haswell", sys.executable, "-m", "service", "check", "--models", str(models)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)


def test_float32_and_float16_pass(digits_by_precision: dict[str, Path]) -> None:
    for precision in ("fp32", "fp16"):
        result = check_on_haswell(digits_by_precision[precision])
        assert result.returncode == 0, result.stdout


def test_int8_for_vnni_is_kept_out_with_what_to_do(digits_by_precision: dict[str, Path]) -> None:
    result = check_on_haswell(digits_by_precision["int8"])
    assert result.returncode == 1
    assert "golden logits differ" in result.stdout
    assert "convert with --int8-target cpu-avx2" in result.stdout


def test_int8_for_avx2_passes(tmp_path: Path) -> None:
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(tmp_path), "--precision", "int8"]
    assert main([*command, "--int8-target", "cpu-avx2", "--calibration-method", "minmax"]) == 0
    result = check_on_haswell(tmp_path)
    assert result.returncode == 0, result.stdout
