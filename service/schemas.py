"""The JSON shapes of the HTTP interface (contract section 5), for validation and for the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import PROBLEM_JSON
from service.splits import Alias

MAX_TIMEOUT_MS = 600_000


class ModelQuery(BaseModel):
    """Which version of which model; an unknown query parameter is refused, not ignored."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[
        Annotated[int, Field(ge=1)] | Alias | None,
        Field(description="Or an alias; when absent, what `stable` stands for, else the highest version."),
    ] = None


class ClassifyQuery(ModelQuery):
    """The query parameters of the classification routes."""

    model: Annotated[str | None, Field(min_length=1, description="Needed only when several models are served.")] = None
    top_k: Annotated[int | None, Field(ge=1, description="Labels to return; 5, or all of fewer classes.")] = None
    timeout_ms: Annotated[int | None, Field(ge=1, le=MAX_TIMEOUT_MS, description="Deadline, in milliseconds.")] = None


class ExplainQuery(ClassifyQuery):
    """The query parameters of `/classify`; `class` is the index to explain, the most probable label when absent."""

    explain: Annotated[
        Literal["cam"] | None, Field(description="`cam`: the class activation map (Zhou et al. 2016).")
    ] = None
    class_: Annotated[int | None, Field(alias="class", ge=0, description="Index of the class to explain.")] = None


class ClassifyHeaders(BaseModel):
    """The headers that the classification routes take notice of."""

    x_priority: Annotated[
        Literal["high", "normal", "low"], Field(description="Who goes first when images wait; low is shed first.")
    ] = "normal"
    x_canary_key: Annotated[
        str | None, Field(max_length=256, description="Keeps a caller on one version; the request id when absent.")
    ] = None


class PredictionBody(BaseModel):
    """One label and its probability."""

    label: str
    index: int
    probability: float


class ExplanationBody(BaseModel):
    """Where the evidence for a class lies: the mean of `map` (rows of the last feature map) plus `bias` is `logit`."""

    method: Literal["cam"]
    label: str
    index: int
    logit: float
    bias: float
    map: list[list[float]]
    overlay: Annotated[str, Field(description="The map over the model's input, a PNG as data URI.")]


class ClassifyBody(BaseModel):
    """The answer for one image, best label first; `explanation` only where it was asked for."""

    model: str
    version: int
    predictions: list[PredictionBody]
    explanation: ExplanationBody | None = None


class ErrorBody(BaseModel):
    """Why one image of a batch has no answer."""

    code: str
    detail: str


class BatchItem(BaseModel):
    """One image's result: either predictions or an error."""

    predictions: list[PredictionBody] | None = None
    error: ErrorBody | None = None


class BatchBody(BaseModel):
    """The answers for many images, in the order they were sent."""

    model: str
    version: int
    results: list[BatchItem]


class Problem(BaseModel):
    """An error, `application/problem+json` (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str


class BatchCost(BaseModel):
    """What a batch took at warm-up, with every lane busy, or a large one is expected to; `used` are sizes that pay."""

    batch_size: int
    seconds: float
    images_per_second: float
    used: bool


class CostsBody(BaseModel):
    """How the cores are arranged for a lone image and for a crowd, and what batches cost."""

    lone: str
    lone_seconds: float
    crowd: str
    lanes: int
    batches: list[BatchCost]


class VersionBody(BaseModel):
    """One version of a model; `state` is `ready` or `failed`, `reason` says why its last load failed.

    `explains`: whether `explain=cam` can be asked.
    """

    version: int
    state: str
    reason: str | None = None
    device: str | None = None
    explains: bool = False
    golden_max_abs_diff: float | None = None
    costs: CostsBody | None = None
    card: dict[str, Any] | None = None


class AliasTarget(BaseModel):
    """The version that an alias is to stand for."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1)]


class ModelBody(BaseModel):
    """A model, the versions its aliases stand for, and its versions, newest first."""

    name: str
    aliases: dict[Alias, int]
    versions: list[VersionBody]


class ModelsBody(BaseModel):
    """Everything in the model folder."""

    models: list[ModelBody]


class LabelsBody(BaseModel):
    """The labels of one version, by class index."""

    model: str
    version: int
    labels: list[str]


class ProtocolError(BaseModel):
    """An error under `/v2`, as the Open Inference Protocol has them."""

    error: str


class HealthBody(BaseModel):
    """Live or ready, with the phase and, when not, the reason."""

    status: str
    phase: str
    reason: str | None = None


_BINARY = {"type": "string", "format": "binary"}
ONE_IMAGE = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["file"], "properties": {"file": _BINARY}}
            },
        },
    }
}
MANY_IMAGES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": _BINARY}},
                }
            }
        },
    }
}
_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_TENSOR = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": _PARAMETERS,
        "data": {"type": "array", "items": {}},
    },
}
_BINARY_TENSORS = {"schema": _BINARY | {"description": "JSON, then as many bytes as its tensors have."}}
INFERENCE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": {"type": "string"},
                        "parameters": _PARAMETERS,
                        "inputs": {"type": "array", "items": _TENSOR},
                        "outputs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {"name": {"type": "string"}, "parameters": _PARAMETERS},
                            },
                        },
                    },
                }
            },
            "application/octet-stream": _BINARY_TENSORS,
        },
    }
}
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The tensors that were asked for.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["model_name", "model_version", "outputs"],
                    "properties": {
                        "model_name": {"type": "string"},
                        "model_version": {"type": "string"},
                        "id": {"type": "string"},
                        "outputs": {"type": "array", "items": _TENSOR},
                    },
                }
            },
            "application/octet-stream": _BINARY_TENSORS,
        },
    }
}
PROTOCOL_ERRORS: dict[int | str, dict[str, Any]] = {"default": {"description": "Why not.", "model": ProtocolError}}


def _optional_body(properties: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI is told of a JSON object that need not be sent."""
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


ONLY_READY = _optional_body({"ready": {"type": "boolean"}})
ONE_OF_ITS_VERSIONS = _optional_body(
    {"parameters": _PARAMETERS | {"properties": {"version": {"type": "integer", "minimum": 1}}}}
)
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {PROBLEM_JSON: {"schema": Problem.model_json_schema()}},
    }
    for status, description in {
        400: "Not an image, truncated, or no body.",
        401: "Keys are set, and none that was sent matches.",
        404: "The model or version is not served.",
        413: "Too many bytes, or too many pixels.",
        415: "A body that is no image, multipart form or octet stream.",
        422: "A bad query parameter.",
        429: "The queue is full, or the answer would come after the deadline; see Retry-After.",
        500: "A failure of the server; its log has the reason under the X-Request-Id.",
        503: "Starting, draining, or the model is not in service; see Retry-After.",
        504: "The deadline passed.",
    }.items()
}
