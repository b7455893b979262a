"""Training on the digits, and the checkpoint that ships."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from model_export.data import DIGIT_LABELS, augment, enlarge, load_digits
from model_export.train import evaluate

SHIPPED = Path(__file__).parents[2] / "model_export" / "builtin" / "digits" / "model.safetensors"


def test_the_split_is_fixed_stratified_and_apart() -> None:
    digits, again = load_digits(), load_digits()
    assert (len(digits.train_scans), len(digits.test_scans)) == (1437, 360)
    np.testing.assert_array_equal(digits.test_scans, again.test_scans)
    assert np.bincount(digits.test_targets).min() >= 34
    seen = {scan.tobytes() for scan in digits.train_scans}
    assert not any(scan.tobytes() in seen for scan in digits.test_scans)


def test_augmentation_keeps_the_range_and_inverts_about_half() -> None:
    torch.manual_seed(0)
    images = enlarge(load_digits().train_scans[:200], Image.Resampling.BILINEAR).unsqueeze(1).float() / 255
    augmented = augment(images)
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    corners = augmented[:, 0, 0, 0] > 0.5
    assert 60 < corners.sum() < 140


def test_the_shipped_checkpoint_reaches_the_accuracy_it_states() -> None:
    checkpoint = read_checkpoint("builtin:digits", Given())
    assert checkpoint.accuracy is not None
    measured = evaluate(checkpoint.build(), load_digits())
    assert measured.top1 == pytest.approx(checkpoint.accuracy.top1, abs=1e-6)
    assert measured.top1 >= 0.985


def test_the_samples_are_held_out_scans_under_their_labels(samples: list[Path]) -> None:
    digits = load_digits()
    scans = enlarge(digits.test_scans, Image.Resampling.BILINEAR).numpy().astype(int)
    for path in samples:
        pixels = np.asarray(Image.open(path).convert("L")).astype(int)
        distances = np.abs(scans - pixels).mean(axis=(1, 2))
        assert distances.min() < (0.001 if path.suffix == ".png" else 4), path.name
        assert DIGIT_LABELS[digits.test_targets[distances.argmin()]] == path.stem


def test_the_same_command_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    def train(name: str, seed: str) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        command = ["train", "--arch", "resnet8", "--data", "digits", "--epochs", "1", "--seed", seed]
        assert main([*command, "--out", str(out)]) == 0
        return load_file(out)

    first, again, other = train("first", "3"), train("again", "3"), train("other", "4")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_again_reproduces_the_shipped_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "again.safetensors"
    assert main(["train", "--arch", "resnet20", "--data", "digits", "--out", str(out)]) == 0
    again, shipped = read_checkpoint(str(out), Given()), read_checkpoint(str(SHIPPED), Given())
    assert again.accuracy is not None
    assert shipped.accuracy is not None
    assert again.accuracy.top1 >= 0.985
    # Bit for bit on the same processor with the same number of threads; elsewhere sums round differently.
    assert abs(again.accuracy.top1 - shipped.accuracy.top1) <= 0.006
