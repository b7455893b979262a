"""The Open Inference Protocol v2 (REST) with Triton's binary tensors: bytes -> images, logits -> bytes. Pure.

A request has one input, the model's: UINT8 `[n, height, width, 3]`, or BYTES `[n]` with an encoded image (JPEG, PNG, …)
in each element, which the model's own preprocessing then prepares. It is JSON, or JSON followed by the tensor's bytes;
the header `Inference-Header-Content-Length` says where the JSON ends. The output is FP32 logits `[n, classes]`, or, by
the classification extension, BYTES `[n, k]` of `value:index:label`.

https://github.com/kserve/open-inference-protocol, Triton's docs/protocol/extension_binary_data.md
"""

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError

from service.artifact import first_problem
from service.errors import InternalError, InvalidRequest

LENGTH = struct.Struct("<I")
RESERVED_PREFIX = "triton_"

Parameters = dict[str, StrictBool | StrictInt | float | str]
Images = NDArray[np.uint8] | list[bytes]


@dataclass(frozen=True)
class Signature:
    """A model's one input and one output, as the protocol names them."""

    input: str
    height: int
    width: int
    channels: int
    output: str
    labels: tuple[str, ...]
    max_images: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's tensor."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class Wanted:
    """How an output is to be answered: as binary data or JSON; `classes` > 0 asks for so many of the classification."""

    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Inference:
    """A request that was understood; `timeout_us` is 0 where it states none."""

    id: str
    images: Images
    wanted: Wanted
    timeout_us: int


class _Input(BaseModel):
    name: str
    datatype: str
    shape: list[Annotated[StrictInt, Field(ge=0)]]
    parameters: Parameters = {}
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: Parameters = {}


class _Request(BaseModel):
    id: str = ""
    parameters: Parameters = {}
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
        return _understand(_read(body), b"", signature)
    length = int(header_length) if header_length.isascii() and header_length.isdecimal() else -1
    if not 0 <= length <= len(body):
        raise InvalidRequest(f"inference header size should be in range (0, {len(body)}), got: {header_length[:32]}")
    if length == 0:
        return Inference("", _raw(body, signature), Wanted(binary=True), 0)
    return _understand(_read(body[:length]), body[length:], signature)


def _read(content: bytes) -> _Request:
    try:
        return _Request.model_validate_json(content)
    except ValidationError as error:
        raise InvalidRequest(f"the request is not valid: {first_problem(error)}") from error


def _raw(body: bytes, signature: Signature) -> Images:
    """The body is the input itself: one image, as pixels or encoded."""
    if len(body) == signature.image_bytes:
        return _pixels(np.frombuffer(body, np.uint8), 1, signature)
    return [body]


def _understand(request: _Request, binary: bytes, signature: Signature) -> Inference:
    reserved = [name for name in request.parameters if name.startswith(RESERVED_PREFIX)]
    if reserved:
        raise InvalidRequest(f"parameter {reserved[0]}: names that begin with {RESERVED_PREFIX} are reserved")
    if len(request.inputs) != 1 or request.inputs[0].name != signature.input:
        names = ", ".join(each.name for each in request.inputs) or "none"
        raise InvalidRequest(f"the model has one input, {signature.input}; the request has {names}")
    return Inference(
        request.id,
        _images(request.inputs[0], binary, signature),
        _wanted(request, signature),
        _whole_number(request.parameters, "timeout"),
    )


def _images(given: _Input, binary: bytes, signature: Signature) -> Images:
    content = _binary_of(given, binary)
    count = given.shape[0] if given.shape else 0
    if not 1 <= count <= signature.max_images:
        raise InvalidRequest(f"input {given.name}: a batch of {count} is not between 1 and {signature.max_images}")
    if given.datatype == "BYTES":
        if given.shape not in ([count], [count, 1]):
            raise InvalidRequest(f"input {given.name}: encoded images have shape [n], got {given.shape}")
        return _encoded(given, count) if content is None else _elements(content, count, given.name)
    expected = [count, signature.height, signature.width, signature.channels]
    if given.datatype != "UINT8" or given.shape != expected:
        raise InvalidRequest(
            f"input {given.name} is UINT8 {[-1, *expected[1:]]} or BYTES [-1], got {given.datatype} {given.shape}"
        )
    values = _numbers(given) if content is None else np.frombuffer(content, np.uint8)
    return _pixels(values, count, signature)


def _binary_of(given: _Input, binary: bytes) -> bytes | None:
    """The bytes behind the JSON that belong to this input; None when its data are in the JSON."""
    size = given.parameters.get("binary_data_size")
    if size is None and given.data is None and binary and given.datatype == "BYTES":
        return binary
    if size is None:
        if binary:
            raise InvalidRequest(f"unexpected additional input data: {len(binary)} bytes")
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidRequest(f"input {given.name}: binary_data_size must be a whole number")
    if given.data is not None:
        raise InvalidRequest(f"input {given.name} has both data and binary_data_size")
    if size != len(binary):
        what = "unexpected additional input data" if len(binary) > size else "expecting additional bytes"
        raise InvalidRequest(f"input {given.name}: {what}, got {len(binary)} bytes for binary_data_size {size}")
    return binary


def _pixels(values: NDArray[np.uint8], count: int, signature: Signature) -> NDArray[np.uint8]:
    if values.size != count * signature.image_bytes:
        raise InvalidRequest(
            f"input {signature.input}: {count * signature.image_bytes} bytes are expected for its shape, "
            f"got {values.size}"
        )
    return values.reshape(count, signature.height, signature.width, signature.channels)


def _numbers(given: _Input) -> NDArray[np.uint8]:
    """JSON numbers, flat or nested."""
    try:
        values = np.asarray([] if given.data is None else given.data)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {given.name}: data is neither flat nor nested by its shape") from error
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise InvalidRequest(f"input {given.name}: UINT8 data are whole numbers from 0 to 255")
    return values.astype(np.uint8).reshape(-1)


def _encoded(given: _Input, count: int) -> list[bytes]:
    """Encoded images in JSON, which holds no bytes: base64."""
    data = given.data if isinstance(given.data, list) else []
    texts = [text for each in data for text in (each if isinstance(each, list) else [each])]
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"input {given.name}: data has {len(texts)} elements, {count} base64 strings are expected")
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"input {given.name}: data is not base64") from error


def _elements(content: bytes, count: int, name: str) -> list[bytes]:
    """BYTES in binary form: each element is its length, 4 bytes little-endian, and so many bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(content):
        end = at + LENGTH.size
        length = LENGTH.unpack_from(content, at)[0] if end <= len(content) else len(content)
        if end + length > len(content):
            raise InvalidRequest(f"input {name}: element {len(found)} is longer than the data")
        found.append(content[end : end + length])
        at = end + length
    if len(found) != count:
        raise InvalidRequest(f"input {name}: {count} elements are expected for its shape, got {len(found)}")
    return found


def _wanted(request: _Request, signature: Signature) -> Wanted:
    default = _flag(request.parameters, "binary_data_output")
    if not request.outputs:
        return Wanted(binary=default)
    if len(request.outputs) != 1 or request.outputs[0].name != signature.output:
        names = ", ".join(each.name for each in request.outputs)
        raise InvalidRequest(f"the model has one output, {signature.output}; the request asks for {names}")
    parameters = request.outputs[0].parameters
    binary = _flag(parameters, "binary_data") if "binary_data" in parameters else default
    return Wanted(binary, min(_whole_number(parameters, "classification"), len(signature.labels)))


def _flag(parameters: Parameters, name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"parameter {name} must be true or false")
    return value


def _whole_number(parameters: Parameters, name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter {name} must be a whole number, 0 or more")
    return value


def render(
    logits: NDArray[np.float32], wanted: Wanted, signature: Signature, about: dict[str, str]
) -> tuple[bytes, int | None]:
    """The answer for logits `[n, classes]`.

    Args:
        logits: one row an image.
        wanted: how to write them.
        signature: of the model.
        about: model_name, model_version and id.

    Returns:
        The body, and the length of the JSON in it where binary data follow.

    Raises:
        InternalError: the model gave NaN or infinity, which no JSON number can say.
    """
    if not np.isfinite(logits).all():
        raise InternalError from ValueError("the model gave logits that are not finite")
    output: dict[str, Any] = {"name": signature.output, "datatype": "FP32", "shape": list(logits.shape)}
    data: list[Any] = []
    binary = b""
    if wanted.classes:
        texts = [_ranking(row, wanted.classes, signature.labels) for row in logits]
        output |= {"datatype": "BYTES", "shape": [len(texts), wanted.classes]}
        data = [text for row in texts for text in row]
        binary = b"".join(LENGTH.pack(len(each)) + each for text in data for each in [text.encode()])
    elif wanted.binary:
        binary = logits.astype("<f4").tobytes()
    else:
        data = logits.reshape(-1).tolist()
    output |= {"parameters": {"binary_data_size": len(binary)}} if wanted.binary else {"data": data}
    header = json.dumps({key: value for key, value in about.items() if value} | {"outputs": [output]}).encode()
    return (header + binary, len(header)) if wanted.binary else (header, None)


def _ranking(logits: NDArray[np.float32], classes: int, labels: tuple[str, ...]) -> list[str]:
    """The largest logits of an image, best first, as the classification extension writes them."""
    best = np.argsort(-logits, kind="stable")[:classes]
    return [f"{logits[index]:.6f}:{index}:{labels[index]}" for index in best]
