"""The seal: a byte changed anywhere in an artifact keeps it out of service, and the line names what was changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from service.artifact import CARD_PROPERTY, ModelCard
from service.cli import main
from service.seal import changed_parts


def card_of(path: Path) -> ModelCard:
    (entry,) = onnx.load(path).metadata_props
    return ModelCard.model_validate_json(entry.value)


@pytest.fixture
def copy(digits_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "models" / "digits" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copy(digits_model, path)
    return path


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["check", "--models", str(path.parent.parent.parent)])
    return code, capsys.readouterr().out


def test_an_artifact_as_it_was_written_passes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert changed_parts(card_of(copy), copy) == []
    code, said = check(copy, capsys)
    assert (code, said.startswith("ok")) == (0, True)


def in_the_weights(content: bytes) -> bytes:
    """The lowest bit of one weight of a convolution, which no golden image would show."""
    model = onnx.load_model_from_string(content)
    weights = next(each for each in model.graph.initializer if each.name == "network.layer2.1.conv1.weight")
    at = content.index(weights.raw_data) + 400
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def in_the_graphs_mean(content: bytes) -> bytes:
    model = onnx.load_model_from_string(content)
    (shift,) = [each for each in model.graph.initializer if each.name == "normalisation.shift"]
    return content.replace(shift.raw_data, (numpy_helper.to_array(shift) + np.float32(1e-6)).tobytes())


def in_the_card(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert len(old) == len(new)
        assert content.count(old) == 1
        return content.replace(old, new)

    return change


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "a weight": (in_the_weights, "the graph or its weights differ"),
    "the mean in the graph": (in_the_graphs_mean, "the graph or its weights differ"),
    "a label": (in_the_card(b'"seven"', b'"sevem"'), "labels differ"),
    "the mean in the card": (in_the_card(b'"mean":[0.5,', b'"mean":[0.6,'), "preprocessing.mean differ"),
    "the resize size": (in_the_card(b'"resize":32', b'"resize":33'), "preprocessing.resize differ"),
    "the interpolation": (in_the_card(b'"bilinear"', b'"bicubic" '), "preprocessing.interpolation differ"),
    "the architecture": (in_the_card(b'"resnet20"', b'"resnet32"'), "architecture differ"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_names_what_was_changed_and_exits_1(what: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = CHANGES[what]
    copy.write_bytes(change(copy.read_bytes()))
    code, table = check(copy, capsys)
    assert code == 1
    assert table.startswith("FAIL  digits version 1: ")
    assert said in table


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_the_graph_can_change_unnoticed(
    place: float, bit: int, digits_model: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(digits_model.read_bytes())
    card = card_of(digits_model)
    assert card.seal is not None
    content[int(place * card.seal.graph_bytes)] ^= 1 << bit
    copy.write_bytes(content)
    code, table = check(copy, capsys)
    assert (code, "the graph or its weights differ" in table) == (1, True)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_the_card_can_change_unnoticed(
    place: float, bit: int, digits_model: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(digits_model.read_bytes())
    start = content.index(b'{"schema_version"')
    at = start + int(place * (len(content) - start - 1))
    content[at] ^= 1 << bit
    try:
        same = json.loads(content[start:]) == json.loads(digits_model.read_bytes()[start:])
    except ValueError:
        same = False
    if same:  # a digit of a float beyond what it holds, or the case of an exponent
        return
    copy.write_bytes(content)
    capsys.readouterr()
    assert main(["check", "--models", str(copy.parent.parent.parent)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("field", ["labels", "preprocessing.mean", "preprocessing.resize"])
def test_any_bit_of_what_decides_an_answer_is_named(
    field: str, bit: int, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(copy.read_bytes())
    starts = {"labels": b'"seven"', "preprocessing.mean": b'"mean":[0.5', "preprocessing.resize": b'"resize":32'}
    at = content.index(starts[field]) + len(starts[field]) - 2
    content[at] ^= 1 << bit
    copy.write_bytes(content)
    code, table = check(copy, capsys)
    assert code == 1
    assert field.rpartition(".")[2] in table


def test_nothing_can_be_added_behind_the_card(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = copy.read_bytes()
    more = onnx.ModelProto()
    more.graph.initializer.append(numpy_helper.from_array(np.ones(10, np.float32), "network.fc.bias"))
    other = onnx.ModelProto()
    card = card_of(copy).model_copy(update={"labels": tuple("abcdefghij"), "seal": None})
    onnx.helper.set_model_props(other, {CARD_PROPERTY: card.model_dump_json()})
    for added, said in ((more, "the bytes around the card differ"), (other, "the seal of its card is gone")):
        copy.write_bytes(whole + added.SerializeToString())
        code, table = check(copy, capsys)
        assert (code, said in table) == (1, True), table


def test_saving_an_artifact_anew_leaves_it_as_it_was(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(onnx.load(copy), copy)
    assert check(copy, capsys)[0] == 0


def test_an_artifact_that_was_cut_short_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = card_of(copy)
    copy.write_bytes(copy.read_bytes()[: card.seal.graph_bytes // 2 if card.seal else 0])
    assert changed_parts(card, copy) == ["the graph or its weights"]


def test_the_seal_cannot_be_taken_away(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load(copy)
    card = card_of(copy).model_copy(update={"seal": None})
    onnx.helper.set_model_props(model, {CARD_PROPERTY: card.model_dump_json()})
    onnx.save(model, copy)
    code, table = check(copy, capsys)
    assert (code, "the seal of its card is gone" in table) == (1, True)


def test_a_file_from_before_the_card_had_a_structure_is_served(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = card_of(copy).model_dump(mode="json")
    del card["structure"], card["seal"]["card"]["structure"]
    behind = onnx.ModelProto()
    onnx.helper.set_model_props(behind, {CARD_PROPERTY: json.dumps(card)})
    copy.write_bytes(copy.read_bytes()[: card["seal"]["graph_bytes"]] + behind.SerializeToString())
    code, said = check(copy, capsys)
    assert (code, said.startswith("ok")) == (0, True)
