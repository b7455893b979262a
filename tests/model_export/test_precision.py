"""Reduced precision: what it is made of, what it costs, and that its price is measured on images it has not seen."""

import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from model_export.checkpoints import Given, read_checkpoint
from model_export.cli import main
from model_export.datasets.digits import load_digits
from model_export.errors import ExportError
from model_export.evaluate import labelled_images
from model_export.evidence import Plan, gather
from model_export.graph import export, served
from model_export.half import to_half
from model_export.images import image_files, images_in, noise, read_image, to_pixels
from model_export.integer_form import integer_form
from model_export.parity import FLOAT32, Standard, agreement, judge, kl_divergence, reference_logits
from model_export.presets import PRESETS
from model_export.quantise import find_ranges, layer_errors, quantise
from model_export.verify import card_of
from service.artifact import Int8Target, Preprocessing, Quantisation
from tests.model_export.networks import SHORT, trained_like

SMALL = Preprocessing.model_validate(PRESETS["imagenet-v1"].model_dump() | {"resize": 72, "crop": 64})
# 7×7 with stride 2 makes 31 columns of it.
ODD = Preprocessing.model_validate(SMALL.model_dump() | {"crop": 61})
GREY = Preprocessing.model_validate(PRESETS["digits"].model_dump() | {"std": (0.3, 0.3, 0.3)})


def artifact(folder: Path) -> Path:
    return folder / "digits" / "1" / "model.onnx"


def held_out_accuracy(model: Path) -> float:
    """On the held-out scans, by plain onnxruntime and an enlargement of our own."""
    digits = load_digits()
    pixels = np.stack([np.asarray(Image.fromarray(scan).resize((32, 32), 2)) for scan in digits.test_scans])
    images = np.repeat(pixels[..., np.newaxis], 3, axis=3)
    (logits,) = onnxruntime.InferenceSession(model).run(["logits"], {"images": images})
    return float((logits.argmax(axis=1) == digits.test_targets).mean())


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_inputs_and_outputs_keep_their_types(precision: str, digits_by_precision: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(artifact(digits_by_precision[precision]))
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert {each.name: (each.type, each.shape) for each in session.get_outputs()} == {
        "logits": ("tensor(float)", ["batch", 10]),
        "features": ("tensor(float)", ["batch", 64, 8, 8]),
    }


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_the_digits_lose_less_than_half_a_point(precision: str, digits_by_precision: dict[str, Path]) -> None:
    before = held_out_accuracy(artifact(digits_by_precision["fp32"]))
    after = held_out_accuracy(artifact(digits_by_precision[precision]))
    assert before >= 0.985
    assert after >= before - 0.005


def test_the_int8_card_states_its_price(digits_by_precision: dict[str, Path]) -> None:
    model = artifact(digits_by_precision["int8"])
    card = card_of(model)
    assert card.precision == "int8"
    assert card.accuracy is not None
    assert card.accuracy.images == 360
    assert card.accuracy.top1 == pytest.approx(held_out_accuracy(model))
    assert card.accuracy.float32_top1 == pytest.approx(held_out_accuracy(artifact(digits_by_precision["fp32"])))
    assert card.parity is not None
    assert (card.parity.images, card.parity.min_agreement) == (360, 0.99)
    assert card.parity.top1_agreement >= 0.99
    assert card.parity.tolerance >= 2 * card.parity.max_rel_diff
    quantisation = card.quantisation
    assert quantisation is not None
    assert (quantisation.target, quantisation.images) == ("cpu", 256)
    assert len(quantisation.layers) == 21
    assert all(10 < each.sqnr_db < 80 for each in quantisation.layers)
    assert quantisation.layers[0].layer == "conv1"


def test_auto_tries_every_method_and_keeps_the_one_that_agrees_best(digits_by_precision: dict[str, Path]) -> None:
    quantisation = card_of(artifact(digits_by_precision["int8"])).quantisation
    assert quantisation is not None
    assert {each.method for each in quantisation.trials} == {"minmax", "entropy", "percentile"}
    assert len({each.kl_divergence for each in quantisation.trials}) == 3, "two methods gave one and the same graph"
    best = max(quantisation.trials, key=lambda each: (each.top1_agreement, -each.kl_divergence))
    assert quantisation.method == best.method


def test_int8_is_uint8_by_int8_per_channel_and_the_head_stays_float(digits_by_precision: dict[str, Path]) -> None:
    graph = onnx.load(artifact(digits_by_precision["int8"])).graph
    stored = {each.name: each for each in graph.initializer}
    weights = [each for each in stored.values() if each.name.endswith("weight_quantized")]
    assert len(weights) == 21
    assert {each.data_type for each in weights} == {TensorProto.INT8}
    scales = [numpy_helper.to_array(stored[f"{each.name.removesuffix('_quantized')}_scale"]) for each in weights]
    assert all(scale.shape == (weight.dims[0],) for scale, weight in zip(scales, weights, strict=True))
    zero_points = {stored[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points == {TensorProto.UINT8}
    assert stored["network.fc.weight"].data_type == TensorProto.FLOAT


def test_all_of_the_network_runs_in_integers(digits_by_precision: dict[str, Path], tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(artifact(digits_by_precision["int8"]), options)
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("QLinearConv") == 21
    assert operators.count("QLinearAdd") == 9
    assert not set(operators) & {"Conv", "Relu", "Pad", "Slice"}
    assert not set(operators) & {"Cast", "QuantizeLinear"}, "the pixels are integers already"


def test_the_tensorrt_form_is_symmetric(tmp_path: Path) -> None:
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(tmp_path), "--precision", "int8"]
    assert main([*command, "--int8-target", "tensorrt", "--calibration-method", "minmax"]) == 0
    card = card_of(artifact(tmp_path))
    assert card.quantisation is not None
    assert (card.quantisation.target, card.quantisation.method) == ("tensorrt", "minmax")
    assert len(card.quantisation.trials) == 1
    graph = onnx.load(artifact(tmp_path)).graph
    stored = {each.name: each for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert stored[node.input[2]].data_type == TensorProto.INT8
            assert not numpy_helper.to_array(stored[node.input[2]]).any()
    assert held_out_accuracy(artifact(tmp_path)) >= 0.98


def test_float16_weights_are_half_and_the_normalisation_and_the_head_are_not(
    digits_by_precision: dict[str, Path],
) -> None:
    model = artifact(digits_by_precision["fp16"])
    types = {each.name: each.data_type for each in onnx.load(model).graph.initializer}
    assert types["network.layer1.0.conv1.weight"] == TensorProto.FLOAT16
    assert types["network.fc.weight"] == types["normalisation.scale"] == TensorProto.FLOAT
    card = card_of(model)
    assert card.parity is not None
    assert (card.precision, card.parity.tolerance, card.parity.images) == ("fp16", 1e-2, 361)
    assert card.accuracy is not None
    assert card.accuracy.top1 == pytest.approx(held_out_accuracy(model))
    assert model.stat().st_size < 0.6 * artifact(digits_by_precision["fp32"]).stat().st_size


# --- the same function in another form ---------------------------------------------------------------


FORMS: dict[str, tuple[Callable[[], nn.Module], int, Preprocessing]] = {
    "option A": (lambda: trained_like("resnet8", 7), 3, PRESETS["cifar10"]),
    "option C, grey": (lambda: trained_like("resnet8-c", 7, 1), 1, GREY),
    "7×7 first, no whole blocks": (lambda: trained_like("resnet18", 7, blocks=SHORT), 3, ODD),
}
LARGE_FORMS = ("plain34", "resnet18", "resnet50", "vgg19_bn")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", LARGE_FORMS)
def test_the_large_networks_compute_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    assert_every_form_computes_the_same(trained_like(form, 7), 3, PRESETS["imagenet-v1"], tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_the_integer_form_and_float16_compute_the_same(form: str, tmp_path: Path) -> None:
    build, in_channels, recipe = FORMS[form]
    assert_every_form_computes_the_same(build(), in_channels, recipe, tmp_path)


def assert_every_form_computes_the_same(
    network: nn.Module, in_channels: int, recipe: Preprocessing, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pixels = noise(8, recipe.crop)
    expected = reference_logits(network, recipe, pixels)
    path = tmp_path / "model.onnx"
    targets: tuple[Int8Target, ...] = ("cpu", "tensorrt")
    for target in targets:
        onnx.save(export(integer_form(network, recipe, in_channels, target), recipe.crop), path)
        assert judge(path, expected, pixels, FLOAT32).max_rel_diff < 1e-5
    onnx.save(to_half(export(served(network, recipe, in_channels), recipe.crop)), path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert judge(path, expected, pixels, Standard(1e-2, 1.0)).max_rel_diff > 1e-6
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items()), "the original changed"


def quantised(network: nn.Module, recipe: Preprocessing, folder: Path) -> tuple[onnx.ModelProto, dict[str, float]]:
    """Its int8 form, calibrated on noise, and the signal to quantisation noise behind each convolution, in dB."""
    pixels = noise(8, recipe.crop)
    float32, int8 = folder / "float32.onnx", folder / "int8.onnx"
    onnx.save(export(integer_form(network, recipe, 3, "cpu"), recipe.crop), float32)
    quantise(float32, find_ranges(float32, pixels, "minmax", "cpu", folder), "cpu", int8)
    onnx.checker.check_model(onnx.load(int8), full_check=True)
    return onnx.load(int8), {each.layer: each.sqnr_db for each in layer_errors(float32, int8, pixels, folder)}


MEANS = {"black": (0.0, 0.0, 0.0), "halves": (100.5 / 255, 101.5 / 255, 101 / 255)}


@pytest.mark.parametrize("mean", MEANS.values(), ids=MEANS)
def test_the_first_convolution_reads_pixels_whatever_their_mean(mean: tuple[float, ...], tmp_path: Path) -> None:
    recipe = Preprocessing.model_validate(PRESETS["cifar10"].model_dump() | {"mean": mean})
    model, decibels = quantised(trained_like("resnet8", 7), recipe, tmp_path)
    assert "Cast" not in {node.op_type for node in model.graph.node}
    assert decibels["conv1"] > 40


def test_a_mean_that_is_no_colour_is_normalised_apart(tmp_path: Path) -> None:
    recipe = Preprocessing.model_validate(PRESETS["cifar10"].model_dump() | {"mean": (-0.5, 1.5, 0.3)})
    _, decibels = quantised(trained_like("resnet8", 7), recipe, tmp_path)
    assert decibels["conv1"] > 35


def test_channels_that_were_pruned_keep_their_bias(tmp_path: Path) -> None:
    network = trained_like("resnet8", 7)
    assert isinstance(network.bn1, nn.BatchNorm2d)
    with torch.no_grad():
        network.bn1.weight[:5] = 0
        network.bn1.bias[:5] = torch.tensor([0.3, 2.0, 0.0, 0.01, 8.0])
    _, decibels = quantised(network, PRESETS["cifar10"], tmp_path)
    assert decibels["conv1"] > 40


# --- calibration, verdict and accuracy are on different images ----------------------------------------


def test_calibration_images_under_other_names_take_no_part_in_the_verdict(
    scans: tuple[Path, Path], tmp_path: Path
) -> None:
    training, held_out = scans[0], shutil.copytree(scans[1], tmp_path / "held out")
    for path in image_files(training):
        if path.stem.endswith("0"):
            target = held_out / path.parent.name / f"copy-{path.name}"
            shutil.copy(path, target)
    plan = Plan(precision="int8", calibration=training)
    evidence = gather(read_checkpoint("builtin:digits", Given()), plan, None, held_out, tmp_path)
    assert evidence.calibration is not None
    seen = {pixels.tobytes() for pixels in evidence.calibration}
    assert len(seen) == 256
    assert not seen & {pixels.tobytes() for pixels in evidence.verdict}
    assert len(evidence.verdict) > 300
    assert evidence.labelled is not None
    calibrated_on = {image.encoded for image in images_in(training, 256)}
    assert not [path for path, _ in evidence.labelled.files if path.read_bytes() in calibrated_on]


def test_without_other_images_a_part_of_the_calibration_folder_is_kept_for_the_verdict(
    scans: tuple[Path, Path], tmp_path: Path
) -> None:
    source = tmp_path / "net.safetensors"
    save_file(trained_like("resnet20", 10).state_dict(), source)
    checkpoint = read_checkpoint(str(source), Given(labels=tuple("abcdefghij"), preprocessing=PRESETS["digits"]))
    plan = Plan(precision="int8", calibration=scans[1])
    evidence = gather(checkpoint, plan, None, None, tmp_path)
    assert evidence.calibration is not None
    assert (len(evidence.calibration), len(evidence.verdict)) == (256, 90)
    assert not {each.tobytes() for each in evidence.calibration} & {each.tobytes() for each in evidence.verdict}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_labelled_images_stand_in_where_no_others_are_given(
    precision: Literal["fp32", "fp16"], scans: tuple[Path, Path], tmp_path: Path
) -> None:
    source = tmp_path / "net.safetensors"
    save_file(trained_like("resnet20", 10).state_dict(), source)
    checkpoint = read_checkpoint(str(source), Given(labels=tuple("0123456789"), preprocessing=PRESETS["digits"]))
    evidence = gather(checkpoint, Plan(precision=precision), None, scans[1], tmp_path)
    labelled = {path.read_bytes() for path in image_files(scans[1])}
    assert len(evidence.real) == 16
    assert {image.encoded for image in evidence.real} <= labelled


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., int]:
    def run(*options: str) -> int:
        source = tmp_path / "net.safetensors"
        if not source.exists():
            save_file(trained_like("resnet8", 10).state_dict(), source)
        (tmp_path / "labels.txt").write_text("\n".join("abcdefghij"))
        given = ["--preset", "cifar10", "--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "models")]
        return main(["convert", str(source), "--name", "net", *given, *options])

    return run


def write_images(folder: Path, count: int, low: int, high: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        blocks = Image.fromarray(rng.integers(low, high, (8, 8, 3), dtype=np.uint8))
        blocks.resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


def test_int8_that_disagrees_too_often_is_not_written(
    scans: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated in the dark and judged in the light: the ranges are far too small."""
    dark = write_images(tmp_path / "dark", 16, 126, 130, seed=0)
    command = ["convert", "builtin:digits", "--name", "net", "--out", str(tmp_path / "models"), "--precision", "int8"]
    options = ["--calibration", str(dark), "--evaluate", str(scans[1]), "--calibration-method", "minmax"]
    assert main([*command, *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("resnet-export: parity failed")
    assert "of 360 images where 99.0% is asked for" in error
    assert not (tmp_path / "models" / "net").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--precision", "int8"], "int8 needs --calibration DIR"),
        (["--precision", "int8", "--calibration", "{empty}"], "no PNG, JPEG, WebP or GIF"),
        (["--precision", "int8", "--calibration", "{few}"], "too few"),
        (["--precision", "int8", "--calibration", "/nowhere"], "/nowhere is not a folder"),
        (["--evaluate", "{few}"], "has no folder for each class"),
        (["--evaluate", "{strange}"], "strange/unknown is neither a label nor a class index"),
    ],
)
def test_what_cannot_be_measured_says_why_in_one_line(
    options: list[str], said: str, convert: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "few", 5, 0, 256, seed=0)
    write_images(tmp_path / "strange" / "unknown", 5, 0, 256, seed=0)
    names = {name: str(tmp_path / name) for name in ("empty", "few", "strange")}
    assert convert(*(option.format(**names) for option in options)) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("resnet-export: ")
    assert said in error


def test_the_accuracy_on_a_labelled_folder_is_in_the_card(stated_digits: Path) -> None:
    accuracy = card_of(stated_digits).accuracy
    assert accuracy is not None
    assert (accuracy.data, accuracy.images) == ("digits, held-out 20 %", 360)
    assert accuracy.top1 == pytest.approx(held_out_accuracy(stated_digits))


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("cat", "dog"), ("dog", "cat", "eel"), [1, 0]),
        (("0", "10", "2"), tuple("abcdefghijk"), [0, 10, 2]),
        (("n01", "n02", "n03"), ("tench", "goldfish", "shark"), [0, 1, 2]),
    ],
    ids=["labels", "indices", "sorted names"],
)
def test_classes_are_found_by_label_by_index_or_by_order(
    names: tuple[str, ...], labels: tuple[str, ...], expected: list[int], tmp_path: Path
) -> None:
    for name in names:
        write_images(tmp_path / "set" / name, 1, 0, 256, seed=0)
    found = labelled_images(tmp_path / "set", labels)
    assert [target for _, target in found.files] == expected
    assert found.name == "set"


def test_hidden_files_are_no_images_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "set" / "cat", 2, 0, 256, seed=0)
    for path in (folder / "._0.png", tmp_path / "set" / ".git" / "0.png", tmp_path / "set" / "__MACOSX" / "0.png"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    assert len(image_files(tmp_path / "set")) == 2
    assert len(labelled_images(tmp_path / "set", ("cat", "dog")).files) == 2
    (folder / "2.PNG").write_bytes(b"no image")
    with pytest.raises(ExportError, match=r"2\.PNG cannot be used, remove it"):
        to_pixels(read_image(folder / "2.PNG"), SMALL)


@pytest.mark.parametrize(
    ("names", "labels", "said"),
    [
        (("Eel", "cat", "dog"), ("cat", "dog", "eel"), "set/Eel is neither a label"),
        (("1", "2", "3"), ("one", "two", "three"), "neither a label nor a class index"),
        (("crane", "dog"), ("crane", "dog", "crane"), "set/crane: two classes have this label"),
    ],
    ids=["a capital letter", "counted from one", "a label of two classes"],
)
def test_a_folder_that_may_be_meant_otherwise_is_refused(
    names: tuple[str, ...], labels: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    for name in names:
        write_images(tmp_path / "set" / name, 1, 0, 256, seed=0)
    with pytest.raises(ExportError, match=said):
        labelled_images(tmp_path / "set", labels)


def test_large_photographs_and_other_formats_become_golden_images_of_their_own(
    convert: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (600, 800, 3), dtype=np.uint8)).save(folder / "large.png")
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / "small.webp")
    assert convert("--images", str(folder)) == 0
    card = card_of(tmp_path / "models" / "net" / "1" / "model.onnx")
    pictures = [Image.open(BytesIO(each.encoded)) for each in card.golden]
    assert [(each.format, each.size) for each in pictures[1:3]] == [("JPEG", (640, 480)), ("JPEG", (64, 64))]
    assert all(len(each.encoded) <= 2**18 for each in card.golden)


def test_a_set_with_fewer_classes_and_strange_names_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "n01", 1, 0, 256, seed=0)
    with pytest.raises(ExportError, match="name each folder by its label"):
        labelled_images(tmp_path / "set", ("tench", "goldfish"))


# --- verification, and the figures themselves ----------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_verify_holds_an_artifact_to_the_tolerance_it_states(
    precision: str,
    digits_by_precision: dict[str, Path],
    scans: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = artifact(digits_by_precision[precision])
    stated = card_of(model).parity
    assert stated is not None
    capsys.readouterr()
    assert main(["verify", str(model), "--source", "builtin:digits"]) == 0
    assert f"allowed, relative    {stated.tolerance:.3g}" in capsys.readouterr().out
    assert main(["verify", str(model), "--source", "builtin:digits", "--images", str(scans[1])]) == 0
    assert "on 360 images" in capsys.readouterr().out
    other = tmp_path / "other.safetensors"
    save_file(trained_like("resnet20", 10).state_dict(), other)
    assert main(["verify", str(model), "--source", str(other)]) == 1
    assert "parity failed" in capsys.readouterr().err


def test_verify_names_what_was_changed(digits_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(digits_model.read_bytes().replace(b'"seven"', b'"sevem"'))
    assert main(["verify", str(path), "--source", "builtin:digits"]) == 1
    assert "labels of" in capsys.readouterr().err


def test_agreement_and_divergence_are_what_their_names_say() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [5.0, 5.00001]], dtype=np.float32)
    got = np.array([[0.9, 0.0], [1.0, 0.0], [3.0, 2.5], [5.00001, 5.0]], dtype=np.float32)
    assert agreement(expected, got) == 0.75  # the last pair is closer together than float32 tells apart
    p, q = (torch.softmax(torch.from_numpy(each).double(), dim=1).numpy() for each in (expected, got))
    assert kl_divergence(expected, got) == pytest.approx(float((p * np.log(p / q)).sum(axis=1).mean()))
    assert kl_divergence(expected, expected) == 0


def test_small_logits_and_outliers_excuse_no_disagreement() -> None:
    small = np.array([[2e-6, 1e-6], [2e-6, 1e-6]], dtype=np.float32)
    assert agreement(small, small[:, ::-1]) == 0
    outlier = np.array([[2, 0], [2, 0], [3e4, 0]], dtype=np.float32)
    assert agreement(outlier, np.array([[0, 2], [0, 2], [3e4, 0]], dtype=np.float32)) == pytest.approx(1 / 3)


def test_one_image_without_a_number_fails_the_verdict(exported: onnx.ModelProto, tmp_path: Path) -> None:
    """An overflow that only the last of many images meets."""
    pixels = noise(40, 32)
    expected = reference_logits(trained_like("resnet8", 10), PRESETS["cifar10"], pixels)
    limit = float(np.sort(pixels.sum(axis=(1, 2, 3)))[-2:].mean())
    _break_above(exported, limit, float("inf"))
    path = tmp_path / "model.onnx"
    onnx.save(exported, path)
    with pytest.raises(ExportError, match="1 images get NaN or infinite logits"):
        judge(path, expected, pixels, Standard(None, 0.0))


def test_few_disagreements_count_as_many_as_they_are_wherever_they_stand(
    exported: onnx.ModelProto, tmp_path: Path
) -> None:
    pixels = noise(40, 32)
    expected = reference_logits(trained_like("resnet8", 10), PRESETS["cifar10"], pixels)
    path = tmp_path / "model.onnx"
    onnx.save(exported, path)
    for place in (0, 39):
        wrong = expected.copy()
        wrong[place, wrong[place].argmin()] = wrong[place].max() + 1e-2 * np.abs(wrong).max()
        assert judge(path, wrong, pixels, Standard(10.0, 0.9)).top1_agreement == pytest.approx(39 / 40)


def _break_above(model: onnx.ModelProto, limit: float, value: float) -> None:
    """Add a value to the logits of every image whose pixels sum to more than a limit."""
    graph = model.graph
    make = onnx.helper.make_node
    constants = {"limit": np.float32(limit), "value": np.float32(value), "zero": np.float32(0), "axes": [1, 2, 3]}
    for name, content in constants.items():
        kind = np.int64 if name == "axes" else np.float32
        graph.initializer.append(numpy_helper.from_array(np.array(content, dtype=kind), f"break_{name}"))
    last = next(node for node in graph.node if "logits" in node.output)
    last.output[0] = "sound_logits"
    graph.node.extend(
        [
            make("Cast", ["images"], ["break_images"], to=TensorProto.FLOAT),
            make("ReduceSum", ["break_images", "break_axes"], ["break_sum"], keepdims=0),
            make("Greater", ["break_sum", "break_limit"], ["break_where"]),
            make("Where", ["break_where", "break_value", "break_zero"], ["break_added"]),
            make("Unsqueeze", ["break_added", "break_last"], ["break_column"]),
            make("Add", ["sound_logits", "break_column"], ["logits"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "break_last"))


def test_the_card_of_int8_survives_its_own_schema(digits_by_precision: dict[str, Path]) -> None:
    quantisation = card_of(artifact(digits_by_precision["int8"])).quantisation
    assert quantisation is not None
    assert Quantisation.model_validate_json(quantisation.model_dump_json()) == quantisation
