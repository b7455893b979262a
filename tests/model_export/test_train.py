"""Training: the recipe, going on after a kill, the log, and the checkpoint that ships."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from model_export.datasets.digits import DIGIT_LABELS, DigitData, enlarge, load_digits
from model_export.fitting import Epoch, Recipe, held_out_error, learning_rate
from model_export.verify import card_of
from tests.model_export.cifar_archive import LABELS, small_cifar10
from tests.model_export.killed import end_after_an_epoch

SHIPPED = Path(__file__).parents[2] / "model_export" / "builtin" / "digits" / "model.safetensors"


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"cifar10:{small_cifar10(tmp_path_factory.mktemp('cifar'))}"


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_shipped_checkpoint_reaches_the_accuracy_it_states() -> None:
    checkpoint = read_checkpoint("builtin:digits", Given())
    assert checkpoint.accuracy is not None
    measured = 1 - held_out_error(checkpoint.build(), DigitData())
    assert measured == pytest.approx(checkpoint.accuracy.top1, abs=1e-6)
    assert measured >= 0.985


def test_the_samples_are_held_out_scans_under_their_labels(samples: list[Path]) -> None:
    digits = load_digits()
    scans = enlarge(digits.test_scans, Image.Resampling.BILINEAR).numpy().astype(int)
    for path in samples:
        pixels = np.asarray(Image.open(path).convert("L")).astype(int)
        distances = np.abs(scans - pixels).mean(axis=(1, 2))
        assert distances.min() < (0.001 if path.suffix == ".png" else 4), path.name
        assert DIGIT_LABELS[digits.test_targets[distances.argmin()]] == path.stem


def test_the_same_command_gives_the_same_weights_and_another_seed_others(cifar: str, tmp_path: Path) -> None:
    def train(name: str, seed: str) -> dict[str, torch.Tensor]:
        out = tmp_path / name
        assert (
            main(["train", "--arch", "resnet8", "--data", cifar, "--epochs", "2", "--seed", seed, "--out", str(out)])
            == 0
        )
        return load_file(out)

    first, again, other = train("first", "3"), train("again", "3"), train("other", "4")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_a_killed_training_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    data = f"cifar10:{small_cifar10(tmp_path / 'cifar', count=200)}"
    killed, undisturbed = tmp_path / "killed.safetensors", tmp_path / "undisturbed.safetensors"
    command = ["train", "--arch", "resnet8", "--data", data, "--epochs", "6", "--skip-schedule", "0.5:layer2", "--out"]

    ended = end_after_an_epoch([*command, str(killed)], signal.SIGKILL)
    assert ended.returncode == -signal.SIGKILL
    assert not killed.exists()
    subprocess.run([sys.executable, "-m", "model_export", *command, str(killed)], check=True, capture_output=True)
    assert main([*command, str(undisturbed)]) == 0

    assert killed.read_bytes() == undisturbed.read_bytes()
    assert not list(tmp_path.glob("*.training.safetensors")), "the state of a run that is over is removed"
    logs = [log_of(path.with_suffix(".jsonl")) for path in (killed, undisturbed)]
    figures = [[{**line, "seconds": 0} for line in log] for log in logs]
    assert figures[0] == figures[1]
    assert [line["number"] for line in logs[0][1:]] == [1, 2, 3, 4, 5, 6]


def test_the_log_tells_settings_and_epochs_as_json_lines(cifar: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = ["train", "--arch", "resnet8", "--data", cifar, "--epochs", "4", "--batch-size", "16", "--seed", "7"]
    assert main([*command, "--out", str(tmp_path / "a"), "--log", str(log)]) == 0
    settings, *epochs = log_of(log)
    assert settings["architecture"] == "resnet8"
    assert settings["data"] == "CIFAR-10"
    assert (settings["batch_size"], settings["seed"], settings["weight_decay"]) == (16, 7, 1e-4)
    assert [epoch["learning_rate"] for epoch in epochs] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert epochs[-1]["train_error"] < epochs[0]["train_error"], "images of one colour are easy to remember"
    assert all(0 <= epoch["test_error"] <= 1 and epoch["seconds"] > 0 for epoch in epochs)


def test_a_state_of_other_settings_is_not_mixed_in(
    cifar: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--arch", "resnet8", "--data", cifar, "--out", str(tmp_path / "net.safetensors"), "--epochs"]
    (tmp_path / "net.training.safetensors").write_bytes(b"no safetensors")
    assert main([*command, "2"]) == 1
    assert "remove it to begin anew" in capsys.readouterr().err
    (tmp_path / "net.training.safetensors").unlink()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("model_export.training_state.TrainingState.remove", interrupt)
        assert main([*command, "2"]) == 1
    capsys.readouterr()
    assert main([*command, "3"]) == 1
    assert "with epochs 2, not 3" in capsys.readouterr().err


def test_an_interrupt_says_that_the_training_goes_on(cifar: str, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    command = ["train", "--arch", "resnet8", "--data", cifar, "--epochs", "10000", "--out", str(out)]
    ended = end_after_an_epoch(command, signal.SIGINT)
    assert ended.returncode == 1
    assert "of 10000 epochs: the same command goes on from there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_warm_up_ends_when_a_fifth_is_right() -> None:
    def epochs(*errors: float) -> list[Epoch]:
        return [Epoch(number, 1.0, error, error, 0.1, 1.0) for number, error in enumerate(errors, start=1)]

    recipe = Recipe(epochs=8, warm_up=True)
    rates = [
        learning_rate(recipe, epochs(*errors)) for errors in ((), (0.9,), (0.9, 0.85), (0.9, 0.79), (0.9, 0.7, 0.9))
    ]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.1, 0.1])
    assert learning_rate(recipe, epochs(0.9, 0.7, 0.7, 0.7)) == pytest.approx(0.01), "half of the epochs are over"


@pytest.mark.parametrize(
    ("architecture", "flags", "warm"),
    [
        ("resnet110", (), True),
        ("resnet8", (), False),
        ("resnet8", ("--warm-up",), True),
        ("resnet50", (), False),
        ("plain8", (), False),
    ],
)
def test_networks_of_every_family_train_and_only_110_layers_warm_up(
    architecture: str, flags: tuple[str, ...], warm: bool, cifar: str, tmp_path: Path
) -> None:
    command = ["train", "--arch", architecture, "--data", cifar, "--epochs", "1", "--batch-size", "20", *flags]
    assert main([*command, "--out", str(tmp_path / "net")]) == 0
    settings, epoch = log_of(tmp_path / "net.jsonl")
    assert epoch["learning_rate"] == pytest.approx(0.01 if warm else 0.1)
    assert settings["warm_up"] == warm


def test_a_network_trained_on_a_folder_converts_with_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, shade in (("bright", 220), ("dark", 30)):
        (tmp_path / "digits" / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (300, 260), (shade + number,) * 3).save(tmp_path / "digits" / label / f"{number}.jpg")
    out = tmp_path / "net.safetensors"
    command = ["train", "--arch", "resnet8", "--data", f"folder:{tmp_path / 'digits'}", "--epochs", "1"]
    assert main([*command, "--out", str(out)]) == 0
    assert main(["convert", str(out), "--name", "shades", "--out", str(tmp_path / "models")]) == 0
    card = card_of(tmp_path / "models" / "shades" / "1" / "model.onnx")
    assert card.labels == ("bright", "dark")
    assert card.preprocessing.crop == 32
    assert card.accuracy is not None
    assert (card.accuracy.data, card.accuracy.images) == ("digits, held-out 20 %", 2)
    # A folder of this name is not the data set of this name, which int8 would calibrate on.
    assert main(["convert", str(out), "--name", "small", "--precision", "int8", "--out", str(tmp_path / "models")]) == 1
    assert "int8 needs --calibration" in capsys.readouterr().err


def test_cifar_checkpoints_carry_labels_preprocessing_and_recipe(cifar: str, tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    assert main(["train", "--arch", "resnet8", "--data", cifar, "--epochs", "1", "--out", str(out)]) == 0
    checkpoint = read_checkpoint(str(out), Given())
    assert checkpoint.labels == LABELS["cifar10"]
    assert checkpoint.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    assert checkpoint.accuracy is not None
    assert checkpoint.accuracy.data == "CIFAR-10, test set"


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--data", "cifar10:nowhere"), 1, "nowhere is neither a folder nor an archive"),
        (("--data", "folder:nowhere"), 1, "nowhere is not a folder of images"),
        (("--data", "mnist"), 2, "give digits, cifar10:DIR"),
        (("--data", "cifar10"), 2, "give digits, cifar10:DIR"),
        (("--arch", "resnet21"), 1, "unknown architecture resnet21"),
        (("--device", "cuda"), 1, "torch finds no CUDA device"),
        (("--learning-rate", "1e30"), 1, "give a lower --learning-rate than 1e+"),
        (("--learning-rate", "0"), 2, "must be a positive number"),
        (("--skip-schedule", "layer2"), 2, "give SHARE:NAME"),
        (("--skip-schedule", "2:layer2"), 2, "give SHARE:NAME"),
        (("--skip-schedule", "0.2:layer9"), 1, "give one of layer1, layer2, layer3, or a block of it as in layer1.1"),
        (("--skip-schedule", "0.2:layer2", "--arch", "plain8"), 1, "a plain network has no shortcuts"),
    ],
)
def test_what_cannot_be_trained_ends_in_one_line(
    flags: tuple[str, ...], code: int, said: str, cifar: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    command = ["train", "--arch", "resnet8", "--data", cifar, "--epochs", "2", "--out", str(tmp_path / "net"), *flags]
    try:
        ended = main(command)
    except SystemExit as error:
        ended = int(str(error.code))
    assert ended == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "net").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("architecture", ["vgg19", "vgg19_bn", "plain34", "resnet152", "cifar-resnet50-c"])
def test_the_large_networks_train_as_well(architecture: str, cifar: str, tmp_path: Path) -> None:
    command = ["train", "--arch", architecture, "--data", cifar, "--epochs", "1", "--learning-rate", "0.001"]
    assert main([*command, "--out", str(tmp_path / "net")]) == 0


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
