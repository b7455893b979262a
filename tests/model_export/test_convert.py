"""From a checkpoint to an artifact by the command line: what comes out, and what is refused with nothing written."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_export.architectures.vgg import VGG19
from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from model_export.errors import ExportError
from model_export.graph import ServedNetwork, check_graph, export, served
from model_export.images import colour_chart, images_in, noise, shipped_images, to_pixels
from model_export.parity import judge, reference_logits
from model_export.presets import PRESETS
from model_export.verify import card_of
from service.artifact import Preprocessing
from service.image import preprocess
from tests.model_export.networks import SHORT, trained_like

LABELS = [f"class {i}" for i in range(5)]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path


@pytest.fixture
def convert(tmp_path: Path, labels: Path) -> Callable[..., int]:
    def run(source: Path | str, *options: str) -> int:
        given = ["--arch", "resnet8", "--preset", "cifar10", "--labels", str(labels)]
        return main(["convert", str(source), "--name", "net", "--out", str(tmp_path / "models"), *given, *options])

    return run


MINE = colour_chart().encoded + b"trailing bytes tell it from ours"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with version 4 of `net`, made from a training loop's file with an image of the caller's own."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save({"epoch": 3, "state_dict": trained_like("resnet8", len(LABELS)).state_dict()}, folder / "net.pth")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "images").mkdir()
    (folder / "images" / "mine.png").write_bytes(MINE)
    command = ["convert", str(folder / "net.pth"), "--name", "net", "--out", str(folder / "models"), "--version", "4"]
    given = ["--preset", "cifar10", "--labels", str(folder / "labels.txt"), "--images", str(folder / "images")]
    assert main([*command, *given]) == 0
    return folder / "models"


def written(tmp_path: Path) -> list[str]:
    folder = tmp_path / "models"
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


# --- what comes out --------------------------------------------------------------------------------


def test_the_graph_has_the_contracts_inputs_and_outputs(digits_model: Path) -> None:
    session = onnxruntime.InferenceSession(digits_model)
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    outputs = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    assert outputs == {
        "logits": ("tensor(float)", ["batch", 10]),
        "features": ("tensor(float)", ["batch", 64, 8, 8]),
    }
    assert not (digits_model.parent / "model.onnx.data").exists()


def test_no_node_needs_the_cpu_when_the_rest_is_on_a_gpu(digits_model: Path) -> None:
    operators = {node.op_type for node in onnx.load(digits_model).graph.node}
    assert not operators & {"Shape", "Gather", "NonZero", "Loop", "If"}


def test_the_card_says_where_the_model_comes_from(digits_model: Path) -> None:
    card = card_of(digits_model)
    assert (card.architecture, card.precision, card.labels[3]) == ("resnet20", "fp32", "three")
    assert card.source is not None
    assert len(card.source.sha256) == 64
    assert card.export is not None
    assert card.export.opset == 18
    assert set(card.export.versions) >= {"torch", "onnx", "onnxscript", "onnxruntime"}
    assert card.parity is not None
    assert card.parity.batch_sizes == (1, 2, 7, 32)
    assert (card.parity.top1_agreement, card.parity.max_rel_diff < 1e-5) == (1.0, True)
    assert card.accuracy is not None
    assert card.accuracy.top1 >= 0.985
    assert 4 <= len(card.golden) <= 8
    assert {each.media_type for each in card.golden} == {"image/png", "image/jpeg"}


def test_golden_logits_are_torchs_own(digits_model: Path) -> None:
    checkpoint = read_checkpoint("builtin:digits", Given())
    network = checkpoint.build()
    for golden in card_of(digits_model).golden:
        pixels = preprocess(golden.encoded, checkpoint.preprocessing, 10**6)
        expected = reference_logits(network, checkpoint.preprocessing, pixels[np.newaxis])[0]
        np.testing.assert_allclose(golden.logits, expected, rtol=1e-5, atol=1e-5)


SMALL = Preprocessing.model_validate(PRESETS["imagenet-v1"].model_dump() | {"resize": 72, "crop": 64})
GREY = Preprocessing.model_validate(PRESETS["digits"].model_dump() | {"resize": 48, "crop": 48, "std": (0.3, 0.3, 0.3)})
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int, Preprocessing]] = {
    "basic blocks": (lambda: trained_like("resnet18", 9, blocks=SHORT), 3, SMALL),
    "basic blocks, option A": (lambda: trained_like("resnet34-a", 9, blocks=SHORT), 3, SMALL),
    "plain": (lambda: trained_like("plain18", 9, blocks=SHORT), 3, SMALL),
    "bottlenecks": (lambda: trained_like("resnet50", 9, blocks=SHORT), 3, SMALL),
    "bottlenecks, stride on the 1×1": (lambda: trained_like("resnet50-v1", 9, blocks=SHORT), 3, SMALL),
    "CIFAR, option C, grey": (lambda: trained_like("resnet8-c", 9, 1), 1, GREY),
}
LARGE = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vgg19", "vgg19_bn")
LARGE_VARIANTS = ("resnet34-a", "plain18", "resnet50-v1")


def assert_onnx_equals_torch(network: nn.Module, in_channels: int, recipe: Preprocessing, path: Path) -> None:
    onnx.save(export(served(network, recipe, in_channels), recipe.crop), path)
    session = onnxruntime.InferenceSession(path)
    pixels = noise(16, recipe.crop)
    expected = reference_logits(network, recipe, pixels)
    for size in (1, 3, 16):
        (logits,) = session.run(["logits"], {"images": pixels[:size]})
        np.testing.assert_allclose(logits, expected[:size], rtol=0, atol=1e-4 * np.abs(expected).max())
    outputs = {each.name for each in session.get_outputs()}
    assert outputs == ({"logits"} if isinstance(network, VGG19) else {"logits", "features"})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_converts_to_the_same_answers(family: str, tmp_path: Path) -> None:
    build, in_channels, recipe = FAMILIES[family]
    assert_onnx_equals_torch(build(), in_channels, recipe, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*LARGE, *LARGE_VARIANTS])
def test_the_large_networks_convert_to_the_same_answers(name: str, tmp_path: Path) -> None:
    assert_onnx_equals_torch(trained_like(name, 9), 3, PRESETS["imagenet-v1"], tmp_path / "model.onnx")


@pytest.mark.parametrize("form", ["safetensors", "state dict", "wrapped", "no num_batches_tracked"])
def test_every_form_of_a_state_dict_gives_the_same_answers(form: str, converted: Path, tmp_path: Path) -> None:
    """One artifact answers as torch does, and as the network that each form of the same weights is read as."""
    network = trained_like("resnet8", len(LABELS))
    state: dict[str, Tensor] = network.state_dict()
    source = tmp_path / "checkpoint.bin"
    if form == "safetensors":
        save_file(state, source)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, source)
    else:
        old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        torch.save(state if form == "state dict" else old, source)
    model = converted / "net" / "4" / "model.onnx"
    assert main(["verify", str(model), "--source", str(source)]) == 0
    session = onnxruntime.InferenceSession(model)
    pixels = noise(3, 32)
    (logits,) = session.run(["logits"], {"images": pixels})
    expected = reference_logits(network, PRESETS["cifar10"], pixels)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_versions_count_up_and_a_taken_one_is_refused(
    converted: Path, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.safetensors"
    save_file(trained_like("resnet8", len(LABELS)).state_dict(), source)
    shutil.copytree(converted, tmp_path / "models")
    assert written(tmp_path) == ["net/4/model.onnx"], "converted with --version 4"
    (tmp_path / "models/net" / ("9" * 30)).mkdir()  # which nothing serves, and nothing counts on from
    assert convert(source) == 0
    assert written(tmp_path) == ["net/4/model.onnx", "net/5/model.onnx"]
    before = (tmp_path / "models/net/4/model.onnx").read_bytes()
    capsys.readouterr()
    assert convert(source, "--version", "4") == 1
    (refused,) = capsys.readouterr().err.splitlines()  # at once: a conversion can take minutes
    assert "4 is there already; choose another --version" in refused
    assert (tmp_path / "models/net/4/model.onnx").read_bytes() == before


def test_the_callers_images_become_the_golden_ones(converted: Path) -> None:
    assert MINE in [each.encoded for each in card_of(converted / "net/4/model.onnx").golden]


def test_inspect_prints_the_card(digits_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(digits_model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architecture"] == "resnet20"
    assert main(["inspect", str(digits_model)]) == 0
    assert "resnet20" in capsys.readouterr().out


def test_verify_accepts_the_source_and_refuses_another(
    digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(digits_model), "--source", "builtin:digits"]) == 0
    other = tmp_path / "other.safetensors"
    save_file(trained_like("resnet20", 10).state_dict(), other)
    capsys.readouterr()
    assert main(["verify", str(digits_model), "--source", str(other)]) == 1
    assert "parity failed" in capsys.readouterr().err


def test_verify_accepts_labels_that_the_command_line_stated(stated_digits: Path) -> None:
    assert card_of(stated_digits).labels[3] != "three"
    assert main(["verify", str(stated_digits), "--source", "builtin:digits"]) == 0


# --- what is refused, with one line and nothing written ----------------------------------------------


class Malice:
    """A pickle that would leave a mark if it were executed."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def write_malice(path: Path) -> None:
    torch.save({"state_dict": Malice(path.parent / "executed")}, path)


def write_state(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        state = dict(trained_like("resnet8", len(LABELS)).state_dict())
        change(state)
        torch.save(state, path)

    return write


def write_half(path: Path) -> None:
    write_state(lambda state: None)(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Malice(path.parent / "executed")))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "malicious pickle": (write_malice, "could run code"),
    "bare pickle": (write_bare_pickle, "could run code"),
    "whole module": (lambda path: torch.save(trained_like("resnet8", len(LABELS)), path), "could run code"),
    "truncated zip": (write_half, "is damaged"),
    "another zip": (write_zip, "is damaged"),
    "text": (lambda path: path.write_text("hello, this is text"), "neither a torch checkpoint nor a safetensors"),
    "markdown": (lambda path: path.write_text("# A title"), "neither a torch checkpoint nor a safetensors"),
    "empty": (lambda path: path.touch(), "is damaged"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds no state dict"),
    "cut safetensors": (lambda path: path.write_bytes(b'\x40\0\0\0\0\0\0\0{"a":'), "damaged safetensors"),
    "missing keys": (write_state(lambda state: state.pop("bn1.bias")), "has no bn1.bias"),
    "unknown keys": (write_state(lambda state: state.update(extra=torch.zeros(1))), "has unknown extra"),
    "other depth": (
        lambda path: torch.save(trained_like("resnet32", len(LABELS)).state_dict(), path),
        "are those of resnet32",
    ),
    "other shape": (write_state(lambda state: state.update({"bn1.bias": torch.zeros(17)})), "bn1.bias [17]"),
    "other names": (lambda path: torch.save({3: torch.zeros(1)}, path), "holds no state dict"),
    "sparse": (lambda path: torch.save({"fc.bias": torch.zeros(5).to_sparse()}, path), "holds no state dict"),
    "NaN": (write_state(lambda state: state["fc.bias"].fill_(float("nan"))), "NaN"),
    "other classes": (lambda path: torch.save(trained_like("resnet8", 7).state_dict(), path), "7 classes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_source_that_cannot_be_converted_says_why_in_one_line(
    kind: str, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, said = REFUSED[kind]
    source = tmp_path / "source.pth"
    write(source)
    assert convert(source) == 1
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1]
    assert [line for line in lines if line.startswith("resnet-export: ")] == lines[-1:]
    assert not (tmp_path / "models").exists() or written(tmp_path) == []
    assert not (tmp_path / "executed").exists(), "code in the checkpoint was executed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere.pth"], "neither a file nor a folder"),
        (["builtin:letters"], "builtin:digits"),
        (["builtin:digits", "--arch", "resnet21"], "unknown architecture resnet21"),
        (["builtin:digits", "--preset", "mnist"], "unknown preset mnist"),
        (["builtin:digits", "--labels", "/nowhere.txt"], "/nowhere.txt"),
        (["builtin:digits", "--images", "/nowhere"], "/nowhere is not a folder"),
        (["builtin:digits", "--name", "a/b"], "cannot be a model's name"),
        (["builtin:digits", "--out", "/dev/null/models"], "/dev/null"),
    ],
)
def test_arguments_that_cannot_work_say_why_in_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "--name", "net", "--out", str(tmp_path / "models"), *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("resnet-export: ")
    assert said in error


@pytest.mark.parametrize("missing", ["--preset", "--labels"])
def test_a_bare_state_dict_needs_what_it_does_not_say(
    missing: str, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.pth"
    torch.save(trained_like("resnet20", len(LABELS)).state_dict(), source)
    options = {"--arch": "resnet20", "--preset": "cifar10", "--labels": str(labels)}
    given = [word for option, value in options.items() if option != missing for word in (option, value)]
    assert main(["convert", str(source), "--name", "net", "--out", str(tmp_path / "models"), *given]) == 1
    assert f"give {missing}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["convert"],
        ["convert", "x", "--name", "n", "--version", "0"],
        ["fly"],
        ["convert", "x", "--name", "n", "--version", "1" * 16],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


# --- parity is a verdict -----------------------------------------------------------------------------


def fault_conv_bias(model: onnx.ModelProto) -> None:
    # Two convolutions that share an input share a bias: what onnxscript 0.5.0 to 0.5.6 did to every ResNet.
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 3]
    convolutions[2].input[2] = convolutions[1].input[2]


def fault_channel_order(model: onnx.ModelProto) -> None:
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    flipped = onnx.helper.make_node("Slice", [cast.output[0], "last", "first", "axis", "back"], ["flipped"])
    for name, value in {"last": 2, "first": -4, "axis": 1, "back": -1}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    position = list(model.graph.node).index(cast)
    model.graph.node[position + 1].input[0] = "flipped"
    model.graph.node.insert(position + 1, flipped)


@pytest.mark.parametrize("fault", [fault_conv_bias, fault_channel_order])
def test_a_fault_planted_in_the_graph_fails_the_verdict(
    fault: Callable[[onnx.ModelProto], None], exported: onnx.ModelProto, tmp_path: Path
) -> None:
    network, recipe = trained_like("resnet8", 10), PRESETS["cifar10"]
    pixels = noise(32, 32)
    path = tmp_path / "model.onnx"
    onnx.save(exported, path)
    assert judge(path, reference_logits(network, recipe, pixels), pixels).top1_agreement == 1
    fault(exported)
    onnx.save(exported, path)
    with pytest.raises(ExportError, match="parity failed"):
        judge(path, reference_logits(network, recipe, pixels), pixels)


def test_swapped_mean_and_std_fail_the_verdict(tmp_path: Path) -> None:
    network, recipe = trained_like("resnet8", len(LABELS)), PRESETS["cifar10"]
    swapped = Preprocessing.model_validate(recipe.model_dump() | {"mean": recipe.std, "std": recipe.mean})
    pixels = noise(32, 32)
    path = tmp_path / "model.onnx"
    onnx.save(export(served(network, swapped), recipe.crop), path)
    with pytest.raises(ExportError, match="parity failed"):
        judge(path, reference_logits(network, recipe, pixels), pixels)


def test_a_batch_fixed_at_one_fails_the_verdict(digits_model: Path, tmp_path: Path) -> None:
    model = onnx.load(digits_model)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    pixels = noise(32, 32)
    expected = reference_logits(read_checkpoint("builtin:digits", Given()).build(), PRESETS["digits"], pixels)
    with pytest.raises(ExportError, match="does not run at batch 2"):
        judge(path, expected, pixels)


def test_a_fixed_batch_or_another_opset_is_refused(digits_model: Path) -> None:
    fixed = onnx.load(digits_model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="fixed batch of 2"):
        check_graph(fixed)
    older = onnx.load(digits_model)
    older.opset_import[0].version = 17
    with pytest.raises(ExportError, match="opsets"):
        check_graph(older)


def test_a_failed_parity_writes_nothing_and_exits_1(
    convert: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.safetensors"
    save_file(trained_like("resnet8", len(LABELS)).state_dict(), source)

    def faulty(network: ServedNetwork, size: int) -> onnx.ModelProto:
        model = export(network, size)
        fault_conv_bias(model)
        return model

    monkeypatch.setattr("model_export.convert.export", faulty)
    assert convert(source) == 1
    assert "parity failed" in capsys.readouterr().err
    assert not (tmp_path / "models" / "net").exists()


def test_the_shipped_images_are_of_both_kinds_and_the_chart_has_colours() -> None:
    assert {each.media_type for each in shipped_images()} == {"image/png", "image/jpeg"}
    chart = to_pixels(colour_chart(), PRESETS["cifar10"]).astype(int)
    assert np.abs(chart[..., 0] - chart[..., 2]).mean() > 50


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ExportError, match="no PNG, JPEG, WebP or GIF"):
        images_in(tmp_path, 4)
