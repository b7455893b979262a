"""The model card: what an artifact says of itself (contract section 3).

The exporter writes it into the ONNX file as the metadata property `model_card`; the reader, this side, owns the schema.
"""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CARD_PROPERTY = "model_card"
INPUT_NAME = "images"
LOGITS_NAME = "logits"
FEATURES_NAME = "features"

MediaType = Literal["image/jpeg", "image/png"]
# Beyond these, of pixels in [0, 1], nothing was ever trained, and float32 would overflow in the network.
_Mean = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Std = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Precision = Literal["fp32", "fp16", "int8", "unknown"]
Int8Target = Literal["cpu", "cpu-avx2", "tensorrt"]
Shortcut = Literal["identity", "zero_padding", "projection"]
CalibrationMethod = Literal["minmax", "entropy", "percentile"]


class ArtifactError(Exception):
    """The file is no servable artifact. The message is one line that says what is missing or wrong."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Record):
    """The graph's input: uint8 `[batch, height, width, 3]`, RGB, resized and cropped."""

    name: Literal["images"] = "images"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    height: PositiveInt
    width: PositiveInt
    channels: Literal[3] = 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, `(height, width, channels)`."""
        return self.height, self.width, self.channels

    @property
    def bytes(self) -> int:
        """Of one image."""
        return self.height * self.width * self.channels


class Preprocessing(_Record):
    """The evaluation transform of the training library, from encoded bytes to the graph's input and normalisation.

    The shorter side is resized to `resize` pixels (or, with `fit` stretch, both sides), then the centre `crop` × `crop`
    is cut out; an odd margin is split as torchvision (`round`) or transformers (`floor`) does it. `mean` and `std` are
    per channel (RGB) of pixels scaled to [0, 1]. `antialias` is always true: Pillow's filters have it built in.
    """

    resize: PositiveInt
    crop: PositiveInt
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    antialias: Literal[True] = True
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    exif: Literal["transpose", "ignore"] = "transpose"
    fit: Literal["shorter", "stretch"] = "shorter"
    centre: Literal["round", "floor"] = "round"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self


class Source(_Record):
    """The checkpoint that was converted, and what the person who did it stated against its own word."""

    format: str
    sha256: str
    overridden: tuple[str, ...] = ()


class ExportRecord(_Record):
    """What made the file: library versions, opset, UTC time (ISO 8601)."""

    versions: dict[str, str]
    opset: int
    time: str


class Parity(_Record):
    """The verdict of float32 torch against onnxruntime at export, over `images` images and every one of `batch_sizes`.

    `tolerance` is relative to the largest logit by magnitude. `top1_agreement` and `min_agreement` (the least that was
    accepted) are shares of the images; `kl_divergence` is the mean over them of KL(torch ‖ onnxruntime) of the softmax,
    in nats.
    """

    tolerance: float
    max_abs_diff: float
    max_rel_diff: float
    kl_divergence: float
    top1_agreement: float
    min_agreement: float
    batch_sizes: tuple[int, ...]
    images: int

    def allowed(self, logits: NDArray[np.float32]) -> float:
        """The largest absolute difference from these logits that is still the same answer."""
        return self.tolerance * float(np.abs(logits).max())


class Accuracy(_Record):
    """Measured top-1 accuracy in [0, 1] and the data it was measured on.

    `float32_top1` is what the float32 graph of the same checkpoint reaches on the same images, where that was measured.
    """

    data: str
    images: int
    top1: float
    float32_top1: float | None = None


class CalibrationTrial(_Record):
    """One calibration method on the calibration images: agreement with float32, and mean KL divergence in nats."""

    method: CalibrationMethod
    top1_agreement: float
    kl_divergence: float


class LayerError(_Record):
    """How far a layer's output is from float32's: signal to quantisation noise in dB, over a few verdict images."""

    layer: str
    sqnr_db: float


class Quantisation(_Record):
    """How a graph came to be int8: for which runtime, by which calibration, and what it cost layer by layer."""

    target: Int8Target
    method: CalibrationMethod
    images: int
    trials: tuple[CalibrationTrial, ...]
    layers: tuple[LayerError, ...]


class StoredTensor(_Record):
    """Little-endian float32 values inside the artifact's own file, from byte `offset` on, in row-major order."""

    offset: NotNegativeInt
    shape: tuple[PositiveInt, ...]


class HeadRecord(_Record):
    """The last layer after global average pooling: weight `[classes, channels]`, bias `[classes]`."""

    weight: StoredTensor
    bias: StoredTensor


class LayerRecord(_Record):
    """One layer as in the paper's figure 3: `kernel` is the side of the window, null where it takes in the whole map.

    `channels` are those of the output, null where a pooling leaves them as they are.
    """

    kind: Literal["conv", "max_pool", "avg_pool", "fc"]
    kernel: PositiveInt | None = None
    channels: PositiveInt | None = None
    stride: PositiveInt = 1


class BlocksRecord(_Record):
    """`count` equal blocks in a row, and what carries the input of each past its layers; null: nothing does."""

    count: PositiveInt
    layers: tuple[LayerRecord, ...] = Field(min_length=1)
    shortcut: Shortcut | None = None


class StageRecord(_Record):
    """The blocks that work at one size of map; `output` is (channels, height, width) as in the paper's table 1."""

    name: str
    blocks: tuple[BlocksRecord, ...] = Field(min_length=1)
    output: tuple[PositiveInt, PositiveInt, PositiveInt]


class Structure(_Record):
    """What the network consists of, from the image to the logits; enough to draw the paper's figure 3.

    `option` is the paper's shortcut option, null for a network without shortcuts. Layers, parameters and multiply-adds
    are counted as `resnet-export describe` counts them.
    """

    option: Literal["A", "B", "C"] | None
    stages: tuple[StageRecord, ...] = Field(min_length=1)
    weight_layers: PositiveInt
    parameters: PositiveInt
    multiply_adds: PositiveInt


class Seal(_Record):
    """SHA-256 digests of the artifact's parts, by which a changed byte is found and named.

    The graph with its weights is the first `graph_bytes` bytes of the file; `card` has a digest for each field.
    """

    graph_bytes: PositiveInt
    graph_sha256: str
    card: dict[str, str]


class Golden(_Record):
    """An encoded image, the digest of its preprocessed pixels, and the logits of the trained torch model for it."""

    media_type: MediaType
    image_base64: str
    pixels_sha256: str
    logits: tuple[float, ...]

    @property
    def encoded(self) -> bytes:
        return base64.b64decode(self.image_base64)


class ModelCard(_Record):
    """All that is known of a model. `source`, `export`, `parity`, `seal` are null for a plain file without a card.

    `head` is null where the architecture does not end in global average pooling, `quantisation` where it is not int8,
    `structure` where the file is older than that field.
    """

    schema_version: Literal[1] = 1
    name: str
    architecture: str
    input: InputSpec
    preprocessing: Preprocessing
    labels: tuple[str, ...] = Field(min_length=1)
    precision: Precision
    source: Source | None = None
    export: ExportRecord | None = None
    parity: Parity | None = None
    accuracy: Accuracy | None = None
    quantisation: Quantisation | None = None
    head: HeadRecord | None = None
    structure: Structure | None = None
    golden: tuple[Golden, ...] = ()
    seal: Seal | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        crop = self.preprocessing.crop
        if (self.input.height, self.input.width) != (crop, crop):
            raise ValueError(f"input is {self.input.height}×{self.input.width}, but the crop is {crop}×{crop}")
        if self.golden and self.parity is None:
            raise ValueError("golden images need a parity record with their tolerance")
        if any(len(golden.logits) != len(self.labels) for golden in self.golden):
            raise ValueError(f"a golden image does not have {len(self.labels)} logits, one a label")
        return self

    def summary(self) -> dict[str, Any]:
        """The card as JSON values, with the number of golden images in place of their bytes, and without the seal."""
        return self.model_dump(mode="json", exclude={"golden", "head", "seal"}) | {"golden": len(self.golden)}


def read_card(metadata: Mapping[str, str]) -> ModelCard | None:
    """The card among an ONNX file's metadata properties, or None when there is none; ArtifactError if it is bad."""
    return parse_card(metadata[CARD_PROPERTY]) if CARD_PROPERTY in metadata else None


def parse_card(text: str) -> ModelCard:
    """The card in a JSON text.

    Raises:
        ArtifactError: it is none, with the first field that is wrong.
    """
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        raise ArtifactError(f"the model card is not valid: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as one line: `field: what is wrong`."""
    complaint = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in complaint["loc"])
    return f"{where}: {complaint['msg']}" if where else complaint["msg"]
