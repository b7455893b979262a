"""The Open Inference Protocol over HTTP, with Triton's binary tensors: bytes <-> requests and answers. Pure.

A request is JSON, or JSON followed by the tensor's bytes; the header `Inference-Header-Content-Length` says where the
JSON ends. An answer likewise.

Triton's docs/protocol/extension_binary_data.md
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError

from service.artifact import first_problem
from service.compression import accepted, deflate
from service.content import Content, RawHeaders
from service.errors import InvalidRequest
from service.inference_protocol import (
    Images,
    Inference,
    InferRequest,
    InputTensor,
    RequestedOutput,
    Signature,
    Wanted,
    answer,
    pixels,
    understand,
)

HEADER_LENGTH = "inference-header-content-length"
OCTETS = b"application/octet-stream"
# A smaller answer is not worth compressing: it fits a packet.
WORTH_COMPRESSING = 1400
# More than any length has that is served; Python reads no number of thousands.
MOST_DIGITS = 18
_Parameters = dict[str, StrictBool | StrictInt | float | str]
_Form = TypeVar("_Form", bound=BaseModel)


class SentAs(NamedTuple):
    """What the headers say of both bodies: how the request's is coded, how much of it is JSON, and how to answer."""

    coding: str
    header_length: str | None
    accept: str

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Self:
        """From headers that are found by their names in lower case."""
        return cls(
            headers.get("content-encoding", ""),
            headers.get(HEADER_LENGTH),
            headers.get("accept-encoding", ""),
        )


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[Annotated[StrictInt, Field(ge=0)]]
    parameters: _Parameters = {}
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: _Parameters = {}


class _Control(BaseModel):
    parameters: _Parameters = {}


class _Request(BaseModel):
    id: str = ""
    parameters: _Parameters = {}
    inputs: list[_Input]
    outputs: list[_Output] = []


def parse(body: bytes, header_length: str | None, signature: Signature) -> Inference:
    """Understand a request.

    Args:
        body: what was sent, decompressed.
        header_length: the header Inference-Header-Content-Length, if there was one.
        signature: of the model that is asked.

    Raises:
        InvalidRequest: what is wrong with it.
    """
    if header_length is None:
        return understand(_request(_read(_Request, body), b""), signature)
    length = json_length(body, header_length)
    if not 0 <= length <= len(body):
        raise InvalidRequest(f"inference header size should be in range (0, {len(body)}), got: {header_length[:32]}")
    if length == 0:
        return Inference("", _raw(body, signature), Wanted(binary=True))
    return understand(_request(_read(_Request, body[:length]), body[length:]), signature)


def json_length(body: bytes, header_length: str | None) -> int:
    """How many of a request's bytes are JSON: all, or as many as the header says; -1 if it says no number."""
    if header_length is None:
        return len(body)
    is_number = header_length.isascii() and header_length.isdecimal() and len(header_length) <= MOST_DIGITS
    return int(header_length) if is_number else -1


class _Index(BaseModel):
    ready: bool | None = None


def parse_index(body: bytes) -> bool:
    """Whether only what is ready is asked for; InvalidRequest if the body is not valid."""
    return bool(_read(_Index, body).ready)


def parse_control(body: bytes) -> int | None:
    """The version that a load or unload names among its parameters, or None for all.

    Raises:
        InvalidRequest: the body is not valid, or brings a model or a configuration of its own.
    """
    parameters = _read(_Control, body).parameters
    foreign = [name for name in parameters if name == "config" or name.startswith("file:")]
    if foreign:
        raise InvalidRequest(f"parameter {foreign[0][:64]}: a model is loaded from the folder as it is")
    version = parameters.get("version")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
        raise InvalidRequest("parameter version must be a whole number")
    return version


def _read(form: type[_Form], content: bytes) -> _Form:
    try:
        return form.model_validate_json(content)
    except ValidationError as error:
        raise InvalidRequest(f"the request is not valid: {first_problem(error)}") from error


def _raw(body: bytes, signature: Signature) -> Images:
    """The body is the input itself: one image, as pixels or encoded."""
    if len(body) == signature.image.bytes:
        return pixels(np.frombuffer(body, np.uint8), 1, signature)
    return [body]


def _request(sent: _Request, binary: bytes) -> InferRequest:
    """In the protocol's terms; the bytes behind the JSON are not divided among inputs of which no model has several."""
    alone = len(sent.inputs) == 1
    return InferRequest(
        sent.id,
        sent.parameters,
        [
            InputTensor(each.name, each.datatype, each.shape, _content(each, binary) if alone else None)
            for each in sent.inputs
        ],
        [RequestedOutput(each.name, each.parameters) for each in sent.outputs],
    )


def _content(given: _Input, binary: bytes) -> Any:
    """The bytes behind the JSON if they belong to this input, otherwise its data in the JSON."""
    size = given.parameters.get("binary_data_size")
    if size is None and given.data is None and binary and given.datatype == "BYTES":
        return binary
    if size is None:
        if binary:
            raise InvalidRequest(f"unexpected additional input data: {len(binary)} bytes")
        return given.data
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidRequest(f"input {given.name}: binary_data_size must be a whole number")
    if given.data is not None:
        raise InvalidRequest(f"input {given.name} has both data and binary_data_size")
    if size != len(binary):
        what = "unexpected additional input data" if len(binary) > size else "expecting additional bytes"
        raise InvalidRequest(f"input {given.name}: {what}, got {len(binary)} bytes for binary_data_size {size}")
    return binary


def render(
    logits: NDArray[np.float32], wanted: Wanted, signature: Signature, about: dict[str, str], accept: str
) -> Content:
    """The answer for logits `[n, classes]`.

    Args:
        logits: one row an image.
        wanted: how to write them.
        signature: of the model.
        about: model_name, model_version and id.
        accept: the header Accept-Encoding, "" if there was none.

    Raises:
        InternalError: the logits are not finite.
    """
    tensor = answer(logits, wanted, signature)
    output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if not wanted.binary:
        output |= {"data": tensor.to_list()}
        return _compressed([(b"content-type", b"application/json")], _header(output, about), accept)
    binary = tensor.to_bytes()
    header = _header(output | {"parameters": {"binary_data_size": len(binary)}}, about)
    headers = [(b"content-type", OCTETS), (HEADER_LENGTH.encode(), b"%d" % len(header))]
    return _compressed(headers, header + binary, accept)


def _header(output: dict[str, Any], about: dict[str, str]) -> bytes:
    return json.dumps({key: value for key, value in about.items() if value} | {"outputs": [output]}).encode()


def _compressed(headers: RawHeaders, body: bytes, accept: str) -> Content:
    coding = accepted(accept)
    if not coding or len(body) <= WORTH_COMPRESSING:
        return Content(headers, body)
    return Content(
        [*headers, (b"content-encoding", coding.encode()), (b"vary", b"accept-encoding")], deflate(body, coding)
    )
