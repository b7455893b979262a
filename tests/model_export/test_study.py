"""The degradation experiment: it can be stopped and goes on, and its order is the paper's."""

import csv
from pathlib import Path

import pytest

from model_export.cli import main
from model_export.study import RUNS, Row

SMALL = ["study", "--depths", "8", "--epochs", "1", "--out"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / RUNS).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_that_was_stopped_goes_on_and_draws_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, str(tmp_path), "--variants", "plain"]) == 0
    first = (tmp_path / RUNS).read_text()
    assert main([*SMALL, str(tmp_path), "--variants", "plain,a"]) == 0
    assert (tmp_path / RUNS).read_text().startswith(first), "what is done is not done again"
    found = rows(tmp_path)
    assert [(each["variant"], each["depth"], each["epoch"]) for each in found] == [("plain", "8", "1"), ("a", "8", "1")]
    assert tuple(found[0]) == Row._fields
    table = (tmp_path / "study.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert "| 8 | " in table
    for name in ("figure.png", "gradients.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    gradients = (tmp_path / "gradients.csv").read_text().splitlines()
    assert len(gradients) == 1 + 2 * 2 * 7, "seven 3×3 convolutions, at initialisation and after training, twice"


@pytest.mark.parametrize(("flag", "value"), [("--depths", "9"), ("--variants", "d"), ("--epochs", "0")])
def test_a_plan_that_cannot_be_is_wrong_usage(flag: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["study", "--out", str(tmp_path), flag, value])
    assert caught.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_depth_harms_plain_networks_and_not_residual_ones(tmp_path: Path) -> None:
    assert main(["study", "--depths", "8,32", "--epochs", "8", "--variants", "plain,a", "--out", str(tmp_path)]) == 0
    last = {
        (each["variant"], each["depth"]): float(each["train_error"]) for each in rows(tmp_path) if each["epoch"] == "8"
    }
    assert last["plain", "32"] > last["plain", "8"], "degradation: a deeper plain network has the higher training error"
    assert last["plain", "32"] > 2 * last["a", "32"], "with shortcuts it has not"
