"""Preprocessing and labels as a source states them: torchvision by hash, timm and Hugging Face by JSON files."""

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from model_export.errors import ExportError
from model_export.files import Contents
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
    stride_on_1x1: bool = False


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet-1k, by index, as torchvision 0.28 lists them."""
    return tuple((files("model_export") / "imagenet1k.txt").read_text(encoding="utf-8").splitlines())


def what_it_says(contents: Contents) -> Said:
    """Architecture, preprocessing and labels, as far as the source itself states them.

    Raises:
        ExportError: it is a variant that is not a network of the paper, or states something that cannot be served.
    """
    if contents.description:
        own = contents.description
        return Said("resnet-service", own.architecture, own.preprocessing, own.labels, own.accuracy)
    if contents.config.get("model_type") == "resnet":
        return _hugging_face(contents)
    if "model_type" in contents.config:
        raise ExportError(f"config.json says model_type {contents.config['model_type']}: only resnet can be converted")
    if "architecture" in contents.config:
        return _timm(contents.config)
    if contents.sha256[:8] in TORCHVISION:
        architecture, weights, preset = TORCHVISION[contents.sha256[:8]]
        contents.notes.append(f"known by its sha256: torchvision {architecture} {weights}")
        return Said("torchvision", architecture, PRESETS[preset], imagenet_labels())
    return Said("lightning" if contents.lightning else "state dict")


def _timm(config: dict[str, Any]) -> Said:
    """timm's config.json; timm's resolve_data_config and transforms_imagenet_eval say what its fields mean."""
    name = str(config["architecture"])
    if name not in TIMM_ARCHITECTURES:
        raise ExportError(
            f"timm's {name} is not a network of the paper: its function differs from {', '.join(TIMM_ARCHITECTURES)}"
        )
    said = config.get("pretrained_cfg") or config
    if config.get("global_pool", "avg") != "avg":
        raise ExportError(f"timm's global_pool {config['global_pool']} cannot be converted: only avg is the paper's")
    _, height, width = said.get("input_size", (3, 224, 224))
    mode = said.get("crop_mode", "center")
    if height != width or mode not in ("center", "squash"):
        raise ExportError(f"timm's input {height}×{width} with crop_mode {mode} cannot be served: give --preset")
    recipe = _recipe(
        resize=math.floor(height / said.get("crop_pct", 0.875)),
        crop=height,
        fit="stretch" if mode == "squash" else "shorter",
        interpolation=said.get("interpolation", "bicubic"),
        mean=said.get("mean", (0.485, 0.456, 0.406)),
        std=said.get("std", (0.229, 0.224, 0.225)),
    )
    names = config.get("label_names")
    in1k = config.get("num_classes", 1000) == 1000 and "in1k" in str(said.get("tag", ""))
    labels = tuple(map(str, names)) if names else imagenet_labels() if in1k else None
    return Said("timm", name, recipe, labels)


def _hugging_face(contents: Contents) -> Said:
    config = contents.config
    if config.get("hidden_act", "relu") != "relu":
        raise ExportError(f"config.json says hidden_act {config['hidden_act']}: the paper's networks have relu")
    if config.get("downsample_in_first_stage", False):
        raise ExportError("config.json says downsample_in_first_stage: the paper's networks do not")
    names = config.get("id2label") or {}
    return Said(
        "hugging face",
        preprocessing=_hugging_face_recipe(contents.processor) if contents.processor else None,
        labels=tuple(str(names[key]) for key in sorted(names, key=int)) or None,
        stride_on_1x1=bool(config.get("downsample_in_bottleneck", False)),
    )


def _hugging_face_recipe(processor: dict[str, Any]) -> Preprocessing:
    """A preprocessor_config.json, as transformers 5's Pillow processors read it."""
    resample = processor.get("resample", 2)
    if resample not in HF_RESAMPLING:
        raise ExportError(f"preprocessor_config.json says resample {resample}, which cannot be served: give --preset")
    return _recipe(
        **_hugging_face_geometry(processor),
        centre="floor",
        interpolation=HF_RESAMPLING[resample],
        mean=processor.get("image_mean", (0.5, 0.5, 0.5)),
        std=processor.get("image_std", (0.5, 0.5, 0.5)),
    )


def _hugging_face_geometry(processor: dict[str, Any]) -> dict[str, Any]:
    size = processor.get("size", {"shortest_edge": 224})
    size = {"shortest_edge": size} if isinstance(size, int) else size
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    if kind.startswith("ConvNext"):
        return _convnext_geometry(int(size["shortest_edge"]), processor.get("crop_pct") or 224 / 256)
    fit = "shorter" if "shortest_edge" in size else "stretch"
    resize = size.get("shortest_edge", size.get("height"))
    crop = processor.get("crop_size", resize) if processor.get("do_center_crop") else resize
    crop = crop.get("height") if isinstance(crop, dict) else crop
    if size.get("width", resize) != resize or (fit == "shorter" and not processor.get("do_center_crop")):
        raise ExportError("preprocessor_config.json does not make square images: give --preset")
    return {"resize": resize, "crop": crop, "fit": fit}


def _convnext_geometry(edge: int, crop_pct: float) -> dict[str, Any]:
    if edge >= CONVNEXT_STRETCHES_FROM:
        return {"resize": edge, "crop": edge, "fit": "stretch"}
    return {"resize": int(edge / crop_pct), "crop": edge, "fit": "shorter"}


def _recipe(**fields: Any) -> Preprocessing:
    try:
        return Preprocessing(**fields)
    except ValidationError as error:
        raise ExportError(f"its preprocessing cannot be served ({first_problem(error)}): give --preset") from error
