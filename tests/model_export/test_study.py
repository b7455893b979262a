"""The degradation experiment: it can be stopped and goes on, and its order is the paper's."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model_export.cli import main
from model_export.study import RUNS, Row
from tests.model_export.cifar_archive import small_cifar10
from tests.model_export.killed import end_after_an_epoch

SMALL = ["study", "--depths", "8", "--epochs", "1", "--out"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / RUNS).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_that_was_stopped_goes_on_and_draws_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    command = [*SMALL, str(out), "--data", f"cifar10:{small_cifar10(tmp_path / 'data')}", "--variants"]
    assert main([*command, "plain"]) == 0
    first = (out / RUNS).read_text()
    assert main([*command, "plain,a"]) == 0
    assert (out / RUNS).read_text().startswith(first), "what is done is not done again"
    found = rows(out)
    assert [(each["variant"], each["depth"], each["epoch"]) for each in found] == [("plain", "8", "1"), ("a", "8", "1")]
    assert tuple(found[0]) == Row._fields
    table = (out / "study.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| 8 | " in table
    for name in ("figure.png", "signals.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    signals = (out / "signals.csv").read_text().splitlines()
    assert len(signals) == 1 + 2 * 2 * 7, "seven 3×3 convolutions, at initialisation and after training, twice"


def test_runs_that_cannot_be_compared_are_not_put_into_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    command = [*SMALL, str(out), "--data", f"cifar10:{small_cifar10(tmp_path / 'data')}", "--variants", "plain"]
    assert main(command) == 0
    before = (out / RUNS).read_text()
    for flags, said in ((["--epochs", "2"], "epochs 1, not 2"), (["--batch-size", "64"], "batch_size 32, not 64")):
        assert main([*command, *flags]) == 1
        assert f"holds a study with {said}" in capsys.readouterr().err
    assert (out / RUNS).read_text() == before


@pytest.mark.slow
def test_a_killed_study_goes_on_within_its_run_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    data = small_cifar10(tmp_path / "data", count=200)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = ["study", "--depths", "8", "--epochs", "3", "--variants", "a", "--data", f"cifar10:{data}", "--out"]
    assert end_after_an_epoch([*command, str(killed)], signal.SIGKILL).returncode == -signal.SIGKILL
    assert not (killed / RUNS).exists()
    for out in (killed, undisturbed):
        subprocess.run([sys.executable, "-m", "model_export", *command, str(out)], check=True, capture_output=True)
    for name in (RUNS, "signals.csv", "study.md"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes()
    assert "CIFAR-10, 3 epochs" in (killed / "study.md").read_text()
    assert not list(killed.glob("*.training.safetensors"))


@pytest.mark.parametrize(("flag", "value"), [("--depths", "9"), ("--variants", "d"), ("--epochs", "0")])
def test_a_plan_that_cannot_be_is_wrong_usage(flag: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["study", "--out", str(tmp_path), flag, value])
    assert caught.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_depth_harms_plain_networks_and_not_residual_ones(tmp_path: Path) -> None:
    assert main(["study", "--depths", "8,32", "--epochs", "6", "--variants", "plain,a", "--out", str(tmp_path)]) == 0
    last = {
        (each["variant"], each["depth"]): float(each["train_error"]) for each in rows(tmp_path) if each["epoch"] == "6"
    }
    assert last["plain", "32"] > last["plain", "8"], "degradation: a deeper plain network has the higher training error"
    assert last["plain", "32"] > 2 * last["a", "32"], "with shortcuts it has not"
