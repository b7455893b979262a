"""Every form in which people keep a trained ResNet: recognised by its content, or refused by name. One test a row of
docs/checkpoints.md."""

import argparse
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_export.checkpoints import Checkpoint, Given, read_checkpoint, read_labels
from model_export.errors import ExportError
from model_export.presets import PRESETS, find_preset
from model_export.recipes import imagenet_labels
from service.artifact import Preprocessing
from tests.model_export.networks import hollow, shaken, trained_like

LABELS = ("ant", "bee", "cat", "dog", "eel")
GIVEN = Given(labels=LABELS, preprocessing=PRESETS["cifar10"])
# sha256 of "key shape" lines of the state dicts of torchvision 0.28; timm 1.0's resnets have the same.
TORCHVISION_KEYS = {
    "resnet18": (122, "66b04efc1dfd4b8081ba80fd7b23ab4d63039fdd0a7f5cef3c8bd7aea780b487"),
    "resnet34": (218, "4aa3e2bbbdc5e2fdb7bfcf1e886271e8e822af6b754d4023a9ab60bf1453a693"),
    "resnet50": (320, "614cd53ddf84966979ca9f6b3cf723cba0ad398675e7d0db3550943789819c17"),
    "resnet101": (626, "593b3bde446ee9039879438487d99c04df1fc6161488fb2f5c1bde280073e79d"),
    "resnet152": (932, "9ce3831312550858937ff2a3d7c135ce7eff66f1eafd6afd2678cb36ef7b8249"),
    "vgg19": (38, "5319ee52249b66d1df2d5a30b92d91e8789382b15a5162ca52c0d260e2ba4892"),
    "vgg19_bn": (118, "555ec1b35ce917df3d93b7033e56afee047b12c7ad340aa4322721d6d20ee731"),
}


def resnet20() -> dict[str, Tensor]:
    return dict(trained_like("resnet20", len(LABELS)).state_dict())


def resnet18() -> dict[str, Tensor]:
    return hollow("resnet18", len(LABELS))


def read(content: object, folder: Path, given: Given = GIVEN) -> Checkpoint:
    path = folder / "checkpoint.anything"
    torch.save(content, path)
    return read_checkpoint(str(path), given)


def assert_same(checkpoint: Checkpoint, network: nn.Module) -> None:
    """The checkpoint's network answers as the given one."""
    size = checkpoint.preprocessing.crop
    x = torch.randn(2, checkpoint.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(checkpoint.build()(x), network(x))


@pytest.mark.parametrize("name", TORCHVISION_KEYS)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    from model_export.catalog import find_architecture

    state = find_architecture(name).build_empty(1000).state_dict()
    lines = "\n".join(f"{key} {list(value.shape)}" for key, value in state.items())
    assert (len(state), hashlib.sha256(lines.encode()).hexdigest()) == TORCHVISION_KEYS[name]


ARCHITECTURES = ["resnet18", "resnet34-a", "resnet34-c", "resnet50", "vgg19_bn", "resnet20", "resnet32-b", "resnet20-c"]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "cifar-resnet50", "resnet110"])
def test_the_architecture_is_inferred_from_keys_and_shapes(name: str, tmp_path: Path) -> None:
    checkpoint = read(hollow(name, len(LABELS)), tmp_path)
    assert checkpoint.architecture.name == name
    assert any(name in note for note in checkpoint.notes)


@pytest.mark.parametrize("name", ["plain20", "resnet50-v1"])
def test_what_keys_cannot_show_is_stated_and_taken_from_the_command_line(name: str, tmp_path: Path) -> None:
    network = trained_like(name, len(LABELS))
    assumed = read(network.state_dict(), tmp_path)
    assert any(f"--arch {name}" in note for note in assumed.notes)
    stated = read(network.state_dict(), tmp_path, Given(name, LABELS, PRESETS["cifar10"]))
    assert stated.architecture.name == name
    assert_same(stated, network)


# --- recognised ------------------------------------------------------------------------------------


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "state dict": lambda state: state,
    "DataParallel": lambda state: prefixed("module.", state),
    "torch.compile": lambda state: prefixed("_orig_mod.", state),
    "compiled inside DataParallel": lambda state: prefixed("module._orig_mod.", state),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": prefixed("module.", state)},
    "Lightning": lambda state: {"state_dict": prefixed("model.", state), "pytorch-lightning_version": "2.5"},
    "Lightning, nested": lambda state: {
        "state_dict": prefixed("net.backbone.", state) | {"criterion.weight": torch.ones(5)},
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"lr": 0.1},
    },
    "AveragedModel": lambda state: prefixed("module.", state) | {"n_averaged": torch.tensor(3)},
    "half precision": lambda state: {key: value.half().float() for key, value in state.items()},
    "CIFAR repository": lambda state: {
        "state_dict": prefixed("module.", {key.replace("fc.", "linear."): value for key, value in state.items()})
    },
    "Sequential head": lambda state: {key.replace("fc.", "fc.1."): value for key, value in state.items()},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_every_wrapping_gives_the_same_network(form: str, tmp_path: Path) -> None:
    network = trained_like("resnet20", len(LABELS))
    if form == "half precision":
        network.load_state_dict({key: value.half().float() for key, value in network.state_dict().items()})
    checkpoint = read(WRAPPED[form](dict(network.state_dict())), tmp_path)
    assert checkpoint.architecture.name == "resnet20"
    assert checkpoint.source.format == ("lightning" if form.startswith("Lightning") else "state dict")
    assert_same(checkpoint, network)


def test_what_only_training_uses_is_left_out_loudly(tmp_path: Path) -> None:
    state = prefixed("model.", resnet20()) | {"val_acc.total": torch.ones(1), "criterion.weight": torch.ones(5)}
    notes = read(state, tmp_path).notes
    assert any("val_acc.total" in note and "criterion.weight" in note for note in notes)


def test_options_of_cifar_repositories_are_told_by_their_projections(tmp_path: Path) -> None:
    network = trained_like("resnet20-b", len(LABELS))
    state = {key.replace("downsample", "shortcut"): value for key, value in network.state_dict().items()}
    checkpoint = read(state, tmp_path)
    assert checkpoint.architecture.name == "resnet20-b"
    assert_same(checkpoint, network)


def test_the_average_is_taken_when_asked_for_and_named_when_not(tmp_path: Path) -> None:
    weights, average = resnet20(), {key: value * 1 for key, value in resnet20().items()}
    average["fc.bias"] = torch.arange(5.0)
    content = {"model": weights, "model_ema": prefixed("module.", average)}
    taken = read(content, tmp_path)
    assert any("took model, not model_ema: --ema" in note for note in taken.notes)
    assert not torch.equal(taken.state["fc.bias"], average["fc.bias"])
    asked = read(content, tmp_path, Given(labels=LABELS, preprocessing=PRESETS["cifar10"], ema=True))
    assert torch.equal(asked.state["fc.bias"], average["fc.bias"])
    with pytest.raises(ExportError, match="leave --ema away"):
        read({"model": weights}, tmp_path, Given(labels=LABELS, ema=True))


def test_torchvision_files_are_known_by_their_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "renamed.bin"
    torch.save(hollow("resnet50", 1000), path)
    with pytest.raises(ExportError, match="imagenet-v2"):
        read_checkpoint(str(path), Given())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(
        __import__("model_export.recipes").recipes.TORCHVISION, digest, ("resnet50", "V2", "imagenet-v2")
    )
    checkpoint = read_checkpoint(str(path), Given())
    assert checkpoint.preprocessing == PRESETS["imagenet-v2"]
    assert checkpoint.labels == imagenet_labels()
    assert checkpoint.source.format == "torchvision"


def write_timm(
    folder: Path,
    architecture: str = "resnet50",
    weights: dict[str, Tensor] | None = None,
    size: int = 224,
    **changes: Any,
) -> str:
    """A repository of timm's; resnet50's weights are zero unless others are given."""
    config = {
        "architecture": architecture,
        "num_classes": 1000,
        "global_pool": "avg",
        "pretrained_cfg": {
            "tag": "a1_in1k",
            "input_size": [3, size, size],
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    stored = weights or {key: value.contiguous() for key, value in hollow("resnet50", 1000).items()}
    save_file(stored, folder / "model.safetensors")
    return str(folder)


def test_timm_states_its_preprocessing_and_its_tag_the_labels(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_timm(tmp_path / "timm"), Given())
    assert checkpoint.source.format == "timm"
    assert checkpoint.preprocessing == PRESETS["imagenet-timm"]
    assert checkpoint.labels[281] == "tabby"
    beside = read_checkpoint(str(tmp_path / "timm" / "model.safetensors"), Given())
    assert beside.preprocessing == checkpoint.preprocessing


@pytest.mark.parametrize("name", ["resnet50d", "resnet50t", "seresnet50", "resnetaa50", "resnet50_gn", "resnetblur50"])
def test_timms_variants_are_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"timm's {name} is not a network of the paper"):
        read_checkpoint(write_timm(tmp_path / "timm", name), Given())


def write_hugging_face(folder: Path, *, size: int = 224, **config: Any) -> tuple[str, Any]:
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    names = {index: f"class {index}" for index in range(len(LABELS))}
    network: Any = ResNetForImageClassification(ResNetConfig(id2label=names, **config))
    shaken(network).save_pretrained(folder)  # type: ignore[operator]
    ConvNextImageProcessorPil(size={"shortest_edge": size}, crop_pct=0.875, resample=3).save_pretrained(folder)
    return str(folder), network


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}, "resnet18"),
        ({"depths": [3, 4, 6, 3], "layer_type": "bottleneck"}, "resnet50"),
        ({"depths": [3, 4, 6, 3], "layer_type": "bottleneck", "downsample_in_bottleneck": True}, "resnet50-v1"),
    ],
)
def test_hugging_face_folders_give_transformers_own_answers(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    folder, network = write_hugging_face(tmp_path / "hf", **config)
    checkpoint = read_checkpoint(folder, Given())
    assert checkpoint.architecture.name == name
    assert checkpoint.source.format == "hugging face"
    assert checkpoint.labels == tuple(f"class {index}" for index in range(len(LABELS)))
    assert (checkpoint.preprocessing.resize, checkpoint.preprocessing.interpolation) == (256, "bicubic")
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = network(x).logits
        torch.testing.assert_close(checkpoint.build()(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_grey_network_is_built_for_one_channel(tmp_path: Path) -> None:
    network = trained_like("resnet20", len(LABELS), in_channels=1)
    recipe = Preprocessing.model_validate(PRESETS["digits"].model_dump())
    checkpoint = read(network.state_dict(), tmp_path, Given(labels=LABELS, preprocessing=recipe))
    assert checkpoint.in_channels == 1
    assert_same(checkpoint, network)
    with pytest.raises(ExportError, match="same mean and std three times"):
        read(network.state_dict(), tmp_path)


# --- labels and presets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["ant\nbee\n", '["ant", "bee"]', '{"0": "ant", "1": "bee"}', '{"0": ["n01", "ant"], "1": ["n02", "bee"]}'],
)
def test_labels_are_read_from_text_and_json(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    assert read_labels(path) == ("ant", "bee")


@pytest.mark.parametrize(
    "text", ["", "ant\n\nbee\n", '{"0": "ant", "2": "bee"}', "[", "\xff", '["\\ud800"]', "[" * 100_000]
)
def test_labels_with_a_gap_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match="labels"):
        read_labels(path)


def test_a_preset_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(PRESETS["cifar10"].model_dump_json())
    assert find_preset(str(path)) == PRESETS["cifar10"]
    path.write_text('{"resize": 32}')
    with pytest.raises(ExportError, match=r"mine.json is not valid: crop"):
        find_preset(str(path))


def test_the_imagenet_labels_are_a_thousand_different_ones() -> None:
    labels = imagenet_labels()
    assert (len(labels), len(set(labels))) == (1000, 1000)
    assert (labels[0], labels[281], labels[999]) == ("tench", "tabby", "toilet tissue")


# --- refused -----------------------------------------------------------------------------------------


def without(state: dict[str, Tensor], *parts: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if not any(part in key for part in parts)}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "deep stem": (
        lambda: without(resnet18(), "conv1.weight") | {"conv1.0.weight": torch.zeros(32, 3, 3, 3)},
        "a stem of several convolutions",
    ),
    "squeeze-and-excitation": (
        lambda: resnet18() | {"layer1.0.se.fc1.weight": torch.zeros(4, 64, 1, 1)},
        "squeeze-and-excitation",
    ),
    "average-pool shortcut": (
        lambda: without(resnet18(), "downsample") | {"layer2.0.downsample.1.weight": torch.zeros(128, 64, 1, 1)},
        "average pooling in its shortcuts",
    ),
    "group normalisation": (lambda: without(resnet18(), "running_", "num_batches"), "group normalisation"),
    "attention": (lambda: resnet18() | {"layer1.0.attn.weight": torch.zeros(1)}, "anti-aliasing or attention"),
    "two linear layers": (
        lambda: (
            without(resnet18(), "fc.")
            | {"fc.0.weight": torch.zeros(9, 512), "fc.2.weight": torch.zeros(5, 9), "fc.2.bias": torch.zeros(5)}
        ),
        "several layers",
    ),
    "two networks": (lambda: prefixed("student.", resnet20()) | prefixed("teacher.", resnet20()), "student., teacher."),
    "a backbone": (lambda: without(resnet18(), "fc."), "backbone and no classifier"),
    "other blocks": (lambda: without(resnet18(), "layer4.1."), "(2, 2, 2, 1) basic blocks"),
    "VGG-16": (
        lambda: without(hollow("vgg19", 5), "features.34.", "features.25.", "features.16."),
        "VGG of 13 convolutions",
    ),
    "no ResNet": (lambda: {"encoder.weight": torch.zeros(3)}, "no ResNet, plain network or VGG"),
    "half the keys": (lambda: without(resnet20(), "bn2"), "has no layer1.0.bn2.weight"),
    "four channels": (
        lambda: resnet20() | {"conv1.weight": torch.zeros(16, 4, 3, 3)},
        "takes 4 channels: only RGB and grey",
    ),
    "NaN": (lambda: resnet20() | {"fc.bias": torch.full((5,), float("nan"))}, "NaN or infinite values in fc.bias"),
    "Lightning with classes": (
        lambda: {"state_dict": resnet20(), "hyper_parameters": argparse.Namespace(lr=0.1)},
        "loading it could run code",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_network_of_the_paper_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ExportError) as refused:
        read(make(), tmp_path)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_contradiction_names_both_sides(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--arch says resnet32, but the keys and shapes are those of resnet20"):
        read(resnet20(), tmp_path, Given("resnet32", LABELS, PRESETS["cifar10"]))


@pytest.mark.parametrize("count", [4, 999])
def test_another_number_of_labels_is_refused(count: int, tmp_path: Path) -> None:
    labels = tuple(f"{index}" for index in range(count))
    with pytest.raises(ExportError, match=f"{count} labels, but the checkpoint has 5 classes"):
        read(resnet20(), tmp_path, Given(labels=labels, preprocessing=PRESETS["cifar10"]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
        ({"model_type": "vit", "transformers_version": "5"}, "model_type vit"),
    ],
)
def test_hugging_face_variants_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"} | changes))
    save_file(resnet20(), tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=said):
        read_checkpoint(str(tmp_path), GIVEN)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no model.safetensors"),
        ({"config.json": "{"}, "holds no model.safetensors"),
        ({"model.safetensors": ""}, "has no config.json"),
        ({"model.safetensors": "version https://git-lfs.github.com/spec/v1\n", "config.json": "{}"}, "git lfs pull"),
    ],
    ids=["empty", "no weights", "no config", "LFS pointer"],
)
def test_a_folder_that_is_no_model_says_what_is_missing(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ExportError, match=said):
        read_checkpoint(str(tmp_path), GIVEN)


def sequential(state: dict[str, Tensor], last: str) -> dict[str, Tensor]:
    return prefixed("backbone.", state) | {f"{last}.weight": torch.zeros(3, 5), f"{last}.bias": torch.zeros(3)}


@pytest.mark.parametrize("last", ["fc", "linear"])
def test_a_second_last_layer_is_refused_and_never_replaces_the_first(last: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"backbone.fc.weight and {last}.weight|fc.weight and {last}.weight"):
        read(sequential(resnet20(), last), tmp_path)


def test_the_command_line_cannot_contradict_what_the_source_says_of_its_function(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--arch says plain20, but the source says resnet20"):
        read_checkpoint("builtin:digits", Given("plain20"))
    folder, _ = write_hugging_face(tmp_path / "hf", depths=[3, 4, 6, 3], downsample_in_bottleneck=True)
    with pytest.raises(ExportError, match="--arch says resnet50, but the source says resnet50-v1"):
        read_checkpoint(folder, Given("resnet50"))


def test_a_vggs_replaced_head_is_folded(tmp_path: Path) -> None:
    state = hollow("vgg19_bn", len(LABELS))
    renamed = {key.replace("classifier.6.", "classifier.6.1."): value for key, value in state.items()}
    assert set(read(renamed, tmp_path).state) == set(state)


@pytest.mark.parametrize("arguments", [{"act_layer": "gelu"}, {"output_stride": 8}, {"aa_layer": "blurpool"}])
def test_timm_arguments_that_change_the_function_are_refused(arguments: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="that changes what it computes"):
        read_checkpoint(write_timm(tmp_path / "timm", model_args=arguments), Given())
    assert read_checkpoint(write_timm(tmp_path / "timm", model_args={"drop_rate": 0.1}), Given())


def test_timm_labels_given_by_index_are_read_by_index(tmp_path: Path) -> None:
    names = {str(index): f"name {index}" for index in reversed(range(1000))}
    checkpoint = read_checkpoint(write_timm(tmp_path / "timm", label_names=names), Given())
    assert checkpoint.labels[7] == "name 7"


@pytest.mark.parametrize("config", [{"architecture": "resnet20", "lr": 0.1}, {"model_type": "resnet20"}, {"seed": 1}])
def test_a_trainers_own_config_is_ignored_with_a_note(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("ignored config.json" in note for note in read(resnet20(), tmp_path).notes)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 as transformers writes it; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("hugging face")
    write_hugging_face(folder, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_flip_channel_order": True},
        {"image_processor_type": "EfficientNetImageProcessor"},
        {"resample": 4},
        {"size": {"height": 224, "width": 192}},
        {"size": [224, 224]},
    ],
)
def test_processors_that_the_service_cannot_follow_are_refused_unless_a_preset_is_given(
    changes: dict[str, Any], hugging_face: Path, tmp_path: Path
) -> None:
    folder = str(shutil.copytree(hugging_face, tmp_path / "hf"))
    file = Path(folder) / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ExportError, match="give --preset"):
        read_checkpoint(folder, Given())
    assert read_checkpoint(folder, Given(preprocessing=PRESETS["imagenet-v1"])).architecture.name == "resnet18"


def test_one_logit_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one logit"):
        read(dict(trained_like("resnet20", 1).state_dict()), tmp_path)


# --- preprocessing equals the libraries' -------------------------------------------------------------

PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNext 224": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
    "ConvNext 384": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}, "resample": 2}),
    "Bit 256/224": (
        "BitImageProcessorPil",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
    ),
    "ConvNext, as its class": ("ConvNextImageProcessorPil", {}),
    "Bit, as its class": ("BitImageProcessorPil", {}),
    "CLIP, as its class": ("CLIPImageProcessorPil", {}),
    "ViT, as its class": ("ViTImageProcessorPil", {}),
    "ViT 224": ("ViTImageProcessorPil", {"size": {"height": 224, "width": 224}, "resample": 2}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_pixels_equal_those_of_transformers_processors(kind: str, tmp_path: Path) -> None:
    import transformers
    from PIL import Image

    from model_export.recipes import _hugging_face_recipe
    from service.image import preprocess

    name, options = PROCESSORS[kind]
    processor = getattr(transformers, name)(**options)
    processor.save_pretrained(tmp_path)
    recipe = _hugging_face_recipe(json.loads((tmp_path / "preprocessor_config.json").read_text()))
    rng = np.random.default_rng(0)
    for _ in range(12):
        width, height = rng.integers(100, 700, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(tmp_path / "image.png")
        expected = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        got = preprocess((tmp_path / "image.png").read_bytes(), recipe, 10**6)
        np.testing.assert_array_equal(got, np.asarray(expected).transpose(1, 2, 0))
    assert np.allclose(recipe.mean, processor.image_mean)
    assert np.allclose(recipe.std, processor.image_std)
