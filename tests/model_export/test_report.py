"""The page about an artifact: complete, in one file, true to the card, and safe whatever the labels are."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from model_export import speed
from model_export.cli import main
from model_export.verify import card_of


class _Page(HTMLParser):
    """Every address that a browser would load, and the text that a person would read."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUND_SECONDS", 0.001)


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Path], _Page]:
    def write(model: Path) -> _Page:
        out = tmp_path / "pages" / "report.html"
        assert main(["report", str(model), "--out", str(out)]) == 0
        return _Page(out.read_text(encoding="utf-8"))

    return write


def test_the_page_stands_alone_and_shows_every_golden_image_with_its_map(
    digits_model: Path, report: Callable[[Path], _Page]
) -> None:
    page = report(digits_model)
    assert all(address.startswith("data:") for address in page.addresses)
    assert page.tags.count("figure") == len(card_of(digits_model).golden)
    assert page.tags.count("img") == 2 * page.tags.count("figure")
    assert "script" not in page.tags
    text = " ".join(page.words)
    for said in ("resnet20 in fp32", "99.72 %", "intact", "269,722", "40,551,040", "bilinear", "onnxruntime"):
        assert said in text, said
    source = card_of(digits_model).source
    assert source is not None
    assert source.sha256 in text


def test_versions_of_one_checkpoint_are_compared_and_strangers_are_not(
    digits_by_precision: dict[str, Path], tmp_path: Path, report: Callable[[Path], _Page]
) -> None:
    folder = tmp_path / "models" / "digits"
    for number, precision in enumerate(("fp32", "fp16", "int8"), start=1):
        shutil.copytree(digits_by_precision[precision] / "digits" / "1", folder / str(number))
    (folder / "4").mkdir()
    (folder / "4" / "model.onnx").write_bytes(b"no model")
    shutil.copytree(folder / "1", folder / "5")
    whole = (folder / "5" / "model.onnx").read_bytes()
    (folder / "5" / "model.onnx").write_bytes(whole.replace(b'"seven"', b'"sevem"'))
    page = report(folder / "3" / "model.onnx")
    cells = [word for word in page.words if re.fullmatch(r"\d+ · \w+", word)]
    assert cells == ["1 · fp32", "2 · fp16", "3 · int8"]
    quantisation = card_of(folder / "3" / "model.onnx").quantisation
    assert quantisation is not None
    assert page.tags.count("i") == len(quantisation.layers)
    assert f"{quantisation.method} (kept)" in " ".join(page.words)


def test_labels_are_text_and_never_markup(stated_digits: Path, report: Callable[[Path], _Page]) -> None:
    assert card_of(stated_digits).labels[7] == "<script>alert(7)</script>"
    page = report(stated_digits)
    assert "script" not in page.tags
    assert "<script>alert(7)</script>" in " ".join(page.words)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.replace(b'"seven"', b'"sevem"'), "labels of"),
        (lambda content: content[:1000], "is no artifact"),
    ],
    ids=["a changed label", "half a file"],
)
def test_a_damaged_artifact_gets_no_page(
    change: Callable[[bytes], bytes], said: str, digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(change(digits_model.read_bytes()))
    assert main(["report", str(path), "--out", str(tmp_path / "report.html")]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "report.html").exists()
