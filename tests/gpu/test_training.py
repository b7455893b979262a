"""Training in mixed precision on CUDA: it learns, and a run that was stopped goes on."""

import json
import signal
from pathlib import Path

import pytest

from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from tests.model_export.cifar_archive import small_cifar10
from tests.model_export.killed import end_after_an_epoch

pytestmark = pytest.mark.gpu


def test_digits_are_learned_in_mixed_precision(tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    command = ["train", "--arch", "resnet20", "--data", "digits", "--epochs", "20", "--device", "cuda"]
    assert main([*command, "--out", str(out)]) == 0
    accuracy = read_checkpoint(str(out), Given()).accuracy
    assert accuracy is not None
    assert accuracy.top1 > 0.95


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    out, data = tmp_path / "net.safetensors", f"cifar10:{small_cifar10(tmp_path / 'cifar', count=2000)}"
    command = ["train", "--arch", "resnet8", "--data", data, "--epochs", "8", "--device", "cuda", "--out", str(out)]
    assert end_after_an_epoch(command, signal.SIGKILL).returncode == -signal.SIGKILL
    assert not out.exists()
    assert main(command) == 0
    epochs = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()][1:]
    assert [epoch["number"] for epoch in epochs] == [1, 2, 3, 4, 5, 6, 7, 8]
