"""Preprocessing and labels as a source states them: torchvision by hash, timm and Hugging Face by JSON files."""

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from model_export.errors import ExportError
from model_export.files import CONFIG, PROCESSOR, Contents
from model_export.presets import PRESETS
from service.artifact import Accuracy, Preprocessing, first_problem

# torchvision 0.28: the first eight digits of a file's sha256, which are also in its name -> weights and recipe.
TORCHVISION = {
    "f37072fd": ("resnet18", "IMAGENET1K_V1", "imagenet-v1"),
    "b627a593": ("resnet34", "IMAGENET1K_V1", "imagenet-v1"),
    "0676ba61": ("resnet50", "IMAGENET1K_V1", "imagenet-v1"),
    "11ad3fa6": ("resnet50", "IMAGENET1K_V2", "imagenet-v2"),
    "63fe2227": ("resnet101", "IMAGENET1K_V1", "imagenet-v1"),
    "cd907fc2": ("resnet101", "IMAGENET1K_V2", "imagenet-v2"),
    "394f9c45": ("resnet152", "IMAGENET1K_V1", "imagenet-v1"),
    "f82ba261": ("resnet152", "IMAGENET1K_V2", "imagenet-v2"),
    "dcbb9e9d": ("vgg19", "IMAGENET1K_V1", "imagenet-v1"),
    "c79401a0": ("vgg19_bn", "IMAGENET1K_V1", "imagenet-v1"),
}
TIMM_ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
# Pillow's numbers, as transformers stores them.
HF_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
# transformers 5: what a processor's class takes where its file says nothing.
_HALF, _CLIP = ([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_IMAGENET = PRESETS["imagenet-v1"].mean, PRESETS["imagenet-v1"].std
HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "ConvNext": {
        "size": 384,
        "crop_pct": 224 / 256,
        "resample": 3,
        "image_mean": _IMAGENET[0],
        "image_std": _IMAGENET[1],
    },
    "ViT": {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": _HALF[0], "image_std": _HALF[1]},
    "Bit": {"size": 224, "resample": 3, "do_center_crop": True, "image_mean": _CLIP[0], "image_std": _CLIP[1]},
    "CLIP": {"size": 224, "resample": 3, "do_center_crop": True, "image_mean": _CLIP[0], "image_std": _CLIP[1]},
}
# Switches that the service has no counterpart for in any other position.
HF_USUAL = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_flip_channel_order": False,
    "rescale_offset": False,
}
FLAT_TIMM = {"crop_pct", "interpolation", "input_size"}
# From this size on, ConvNextImageProcessor stretches the image instead of cropping it.
CONVNEXT_STRETCHES_FROM = 384


@dataclass(frozen=True)
class Said:
    """What a source says of its network; None where it says nothing."""

    origin: str
    architecture: str | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    accuracy: Accuracy | None = None
    stride_on_1x1: bool | None = None
    data: str | None = None


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k, by index, as torchvision 0.28 lists them."""
    return tuple((files("model_export") / "imagenet1k.txt").read_text(encoding="utf-8").splitlines())


def what_it_says(contents: Contents, *, recipe_needed: bool) -> Said:
    """Architecture, preprocessing and labels, as far as the source itself states them.

    Args:
        contents: the checkpoint.
        recipe_needed: read the preprocessing as well; without it, what cannot be served there does not matter.

    Raises:
        ExportError: it is a variant that is not a network of the paper, or states something that cannot be served.
    """
    if contents.description:
        own = contents.description
        data = own.recipe.get("data")
        return Said("resnet-service", own.architecture, own.preprocessing, own.labels, own.accuracy, data=data)
    if contents.sha256[:8] in TORCHVISION:
        architecture, weights, preset = TORCHVISION[contents.sha256[:8]]
        contents.notes.append(f"known by its sha256: torchvision {architecture} {weights}")
        return Said("torchvision", architecture, PRESETS[preset], imagenet_labels())
    try:
        return _configured(contents, recipe_needed=recipe_needed)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"{CONFIG} or {PROCESSOR} beside the weights is not in its usual form ({type(error).__name__}: {error}): "
            "give --preset and --labels, and move the file away"
        ) from error


def _configured(contents: Contents, *, recipe_needed: bool) -> Said:
    config = contents.config
    if config.get("model_type") == "resnet":
        return _hugging_face(contents, recipe_needed=recipe_needed)
    if "architecture" in config and (isinstance(config.get("pretrained_cfg"), dict) or set(config) >= FLAT_TIMM):
        return _timm(config, recipe_needed=recipe_needed)
    if "model_type" in config and "transformers_version" in config:
        raise ExportError(f"{CONFIG} says model_type {config['model_type']}: only resnet can be converted")
    if config:
        contents.notes.append(f"ignored {CONFIG}: it is neither Hugging Face's nor timm's")
    return Said("lightning" if contents.lightning else "state dict")


def _timm(config: dict[str, Any], *, recipe_needed: bool) -> Said:
    """timm's config.json; timm's resolve_data_config and transforms_imagenet_eval say what its fields mean."""
    name = str(config["architecture"])
    if name not in TIMM_ARCHITECTURES:
        raise ExportError(
            f"timm's {name} is not a network of the paper: its function differs from {', '.join(TIMM_ARCHITECTURES)}"
        )
    arguments = {"global_pool": config.get("global_pool", "avg")} | (config.get("model_args") or {})
    changed = {key: value for key, value in arguments.items() if not _is_harmless(key, value)}
    if changed:
        raise ExportError(f"timm's {name} was made with {changed}: that changes what it computes")
    said = config.get("pretrained_cfg") or config
    return Said("timm", name, _timm_recipe(said) if recipe_needed else None, _timm_labels(config, said))


def _is_harmless(argument: str, value: Any) -> bool:
    """Arguments of timm's models that leave the function in evaluation as it is."""
    if argument == "global_pool":
        return bool(value == "avg")
    return argument in ("num_classes", "in_chans") or argument.startswith("drop_")


def _timm_recipe(said: dict[str, Any]) -> Preprocessing:
    channels, height, width = said["input_size"]
    mode = said.get("crop_mode") or "center"
    if height != width or mode not in ("center", "squash"):
        raise ExportError(f"timm's input {height}×{width} with crop_mode {mode} cannot be served: give --preset")
    return _recipe(
        resize=math.floor(height / (said.get("crop_pct") or 0.875)),
        crop=height,
        fit="stretch" if mode == "squash" else "shorter",
        interpolation=said["interpolation"],
        mean=_three(said["mean"], channels),
        std=_three(said["std"], channels),
    )


def _three(values: Any, channels: int) -> Any:
    return [values[0]] * 3 if channels == 1 else values


def _timm_labels(config: dict[str, Any], said: dict[str, Any]) -> tuple[str, ...] | None:
    names = config.get("label_names") or said.get("label_names")
    if isinstance(names, dict):
        return _by_index(names)
    if names:
        return tuple(map(str, names))
    in1k = config.get("num_classes", 1000) == 1000 and "in1k" in str(said.get("tag", ""))
    return imagenet_labels() if in1k else None


def _by_index(names: dict[Any, Any]) -> tuple[str, ...]:
    """Labels of an object `{"0": …, "1": …}`; KeyError when an index is missing."""
    texts = {str(key): str(value) for key, value in names.items()}
    return tuple(texts[str(index)] for index in range(len(texts)))


def _hugging_face(contents: Contents, *, recipe_needed: bool) -> Said:
    config = contents.config
    if config.get("hidden_act", "relu") != "relu":
        raise ExportError(f"{CONFIG} says hidden_act {config['hidden_act']}: the paper's networks have relu")
    if config.get("downsample_in_first_stage", False):
        raise ExportError(f"{CONFIG} says downsample_in_first_stage: the paper's networks do not")
    return Said(
        "hugging face",
        preprocessing=_hugging_face_recipe(contents.processor) if recipe_needed and contents.processor else None,
        labels=_by_index(config.get("id2label") or {}) or None,
        stride_on_1x1=bool(config.get("downsample_in_bottleneck", False)),
    )


def _hugging_face_recipe(processor: dict[str, Any]) -> Preprocessing:
    """A preprocessor_config.json, as transformers 5's Pillow processors read it."""
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    family = (
        kind.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    )
    if family not in HF_DEFAULTS:
        raise ExportError(f"{PROCESSOR} is of a {kind}, which is not known here: give --preset")
    said = (
        {"do_center_crop": False}
        | HF_DEFAULTS[family]
        | {key: value for key, value in processor.items() if value is not None}
    )
    odd = [f"{key}={said[key]}" for key, usual in HF_USUAL.items() if key in said and said[key] != usual]
    if said["resample"] not in HF_RESAMPLING:
        odd.append(f"resample={said['resample']}")
    if abs(said.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        odd.append(f"rescale_factor={said['rescale_factor']}")
    if odd:
        raise ExportError(f"{PROCESSOR} says {', '.join(odd)}, which cannot be served: give --preset")
    return _recipe(
        **_hugging_face_geometry(said, family),
        centre="floor",
        interpolation=HF_RESAMPLING[said["resample"]],
        mean=said["image_mean"],
        std=said["image_std"],
    )


def _hugging_face_geometry(said: dict[str, Any], family: str) -> dict[str, Any]:
    size = {"shortest_edge": said["size"]} if isinstance(said["size"], int) else said["size"]
    if family == "ConvNext":
        return _convnext_geometry(int(size["shortest_edge"]), said["crop_pct"])
    fit = "shorter" if "shortest_edge" in size else "stretch"
    resize = size.get("shortest_edge") or size["height"]
    crop = said.get("crop_size", resize) if said["do_center_crop"] else resize
    sides = {crop["height"], crop["width"]} if isinstance(crop, dict) else {crop}
    square = len(sides) == 1 and (said["do_center_crop"] if fit == "shorter" else size["width"] == resize)
    if not square:
        raise ExportError(f"{PROCESSOR} does not make square images: give --preset")
    return {"resize": resize, "crop": sides.pop(), "fit": fit}


def _convnext_geometry(edge: int, crop_pct: float) -> dict[str, Any]:
    if edge >= CONVNEXT_STRETCHES_FROM:
        return {"resize": edge, "crop": edge, "fit": "stretch"}
    return {"resize": int(edge / crop_pct), "crop": edge, "fit": "shorter"}


def _recipe(**fields: Any) -> Preprocessing:
    try:
        return Preprocessing(**fields)
    except ValidationError as error:
        raise ExportError(f"its preprocessing cannot be served ({first_problem(error)}): give --preset") from error
