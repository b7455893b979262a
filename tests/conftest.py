"""What the tiers share: the colour model's folder, the converted digits, the shipped samples."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A machine may stand still for longer than an example should take; and what is found by chance, another run would not.
# The fuzzing of `make test-faults` looks elsewhere each time.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

SAMPLES = Path(__file__).parent.parent / "model_export" / "builtin" / "digits" / "samples"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def colour_models(tmp_path: Path) -> Path:
    """A model folder with one entry, `colours` version 1; the colour backend never reads the file."""
    file = tmp_path / "models" / "colours" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    return tmp_path / "models"


@pytest.fixture(scope="session")
def digits_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model folder with the built-in digits, converted by the real exporter once for the whole run. Only to be read:
    what is written into it would change what others test."""
    from model_export.cli import main

    folder = tmp_path_factory.mktemp("models")
    assert main(["convert", "builtin:digits", "--name", "digits", "--out", str(folder)]) == 0
    yield folder
    assert [each.name for each in folder.rglob("*")] == ["digits", "1", "model.onnx"]


@pytest.fixture(scope="session")
def digits_model(digits_models: Path) -> Path:
    return digits_models / "digits" / "1" / "model.onnx"


@pytest.fixture(scope="session")
def digits_by_precision(digits_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder with the digits at each precision, under the precision's name."""
    from model_export.cli import main

    folders = {"fp32": digits_models}
    for precision in ("fp16", "int8"):
        folders[precision] = tmp_path_factory.mktemp(precision)
        source = ["convert", "builtin:digits", "--name", "digits", "--precision", precision]
        assert main([*source, "--out", str(folders[precision])]) == 0
    return folders


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    """The shipped held-out digits; a file's name is its label."""
    found = sorted(SAMPLES.iterdir())
    assert len(found) >= 10
    return found


@pytest.fixture(scope="session")
def seven() -> Path:
    """One of them that is read with certainty."""
    return SAMPLES / "seven.png"


@pytest.fixture(scope="session")
def image(seven: Path) -> bytes:
    """Its bytes."""
    return seven.read_bytes()
