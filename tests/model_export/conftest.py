"""What several tests of the exporter look at, made once: an export takes seconds."""

from pathlib import Path

import onnx
import pytest

from model_export.cli import main
from model_export.datasets.digits import write_digits
from model_export.graph import export, served
from model_export.presets import PRESETS
from tests.model_export.networks import trained_like


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The digits as files: the folder of the training part and that of the held-out one. Only to be read."""
    return write_digits(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def _exported() -> bytes:
    recipe = PRESETS["cifar10"]
    return export(served(trained_like("resnet8", 10), recipe), recipe.crop).SerializeToString()


@pytest.fixture
def exported(_exported: bytes) -> onnx.ModelProto:
    """The graph of `trained_like("resnet8", 10)` with cifar10's preprocessing; each test may change its own."""
    return onnx.ModelProto.FromString(_exported)


@pytest.fixture(scope="session")
def stated_digits(scans: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in digits, converted with labels that the command line states and evaluated on the held-out scans."""
    folder = tmp_path_factory.mktemp("stated")
    labels = folder / "labels.txt"
    labels.write_text("\n".join(f"<script>alert({index})</script>" for index in range(10)))
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(folder), "--labels", str(labels)]
    assert main([*command, "--evaluate", str(scans[1])]) == 0
    return folder / "digits" / "1" / "model.onnx"
