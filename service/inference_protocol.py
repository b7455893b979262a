"""The Open Inference Protocol v2, whatever carries it: tensors -> images, logits -> tensors. Pure.

A request has one input, the model's: UINT8 `[n, height, width, 3]`, or BYTES `[n]` with an encoded image (JPEG, PNG, …)
in each element, which the model's own preprocessing then prepares. The output is FP32 logits `[n, classes]`, or, by
the classification extension, BYTES `[n, k]` of `value:index:label`.

`inference_rest.py` has the form of requests and answers over HTTP, `inference_messages.py` that over gRPC.

https://github.com/kserve/open-inference-protocol
"""

import base64
import binascii
import struct
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.artifact import InputSpec, ModelCard
from service.errors import InternalError, InvalidRequest
from service.tickets import Priority

LENGTH = struct.Struct("<I")
RESERVED_PREFIX = "triton_"

Parameters = dict[str, bool | int | float | str]
Images = NDArray[np.uint8] | list[bytes]


@dataclass(frozen=True)
class Signature:
    """A model's one input and one output, as the protocol names them."""

    input: str
    image: InputSpec
    output: str
    labels: tuple[str, ...]
    max_images: int

    @classmethod
    def of(cls, card: ModelCard, input_name: str, output_name: str, max_images: int) -> Self:
        """Of a model with this card, whose graph names its input and output so."""
        return cls(input_name, card.input, output_name, card.labels, max_images)


@dataclass(frozen=True)
class Wanted:
    """How an output is to be answered: as binary data or JSON; `classes` > 0 asks for so many of the classification."""

    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Inference:
    """A request that was understood; `timeout_us` and `level` (1 is the highest) are 0 where it states none."""

    id: str
    images: Images
    wanted: Wanted
    timeout_us: int = 0
    level: int = 0

    @property
    def priority(self) -> Priority:
        """Triton's levels, of which this server has three."""
        return {0: Priority.NORMAL, 1: Priority.HIGH, 2: Priority.NORMAL}.get(self.level, Priority.LOW)

    def deadline(self, started: float, limit: float) -> float:
        """Until when, in seconds: a request that started then may shorten the server's own limit, not lengthen it."""
        return min(limit, started + self.timeout_us / 1e6) if self.timeout_us else limit


@dataclass(frozen=True)
class InputTensor:
    """An input as it came.

    `content` is `bytes` in the protocol's binary form, or else the elements one by one, flat or nested: numbers, or
    encoded images as bytes or base64; None where there is none.
    """

    name: str
    datatype: str
    shape: list[int]
    content: Any


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the caller names, and how it wants it."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class InferRequest:
    """A request in the protocol's terms, not yet compared with the model."""

    id: str
    parameters: Parameters
    inputs: list[InputTensor]
    outputs: list[RequestedOutput]


@dataclass(frozen=True)
class OutputTensor:
    """An answer: FP32 `[n, classes]`, or BYTES `[n, k]`; `values` are flat."""

    name: str
    datatype: str
    shape: list[int]
    values: NDArray[np.float32] | list[str]

    def to_bytes(self) -> bytes:
        """The protocol's binary form."""
        if isinstance(self.values, list):
            return b"".join(LENGTH.pack(len(each)) + each for text in self.values for each in [text.encode()])
        return self.values.astype("<f4").tobytes()

    def to_list(self) -> list[Any]:
        """The elements one by one."""
        return self.values if isinstance(self.values, list) else self.values.tolist()


def understand(request: InferRequest, signature: Signature) -> Inference:
    """What is asked of the model.

    Raises:
        InvalidRequest: what does not fit the protocol or the model.
    """
    reserved = [name for name in request.parameters if name.startswith(RESERVED_PREFIX)]
    if reserved:
        raise InvalidRequest(f"parameter {reserved[0]}: names that begin with {RESERVED_PREFIX} are reserved")
    if len(request.inputs) != 1 or request.inputs[0].name != signature.input:
        names = ", ".join(each.name for each in request.inputs) or "none"
        raise InvalidRequest(f"the model has one input, {signature.input}; the request has {names}")
    return Inference(
        request.id,
        _images(request.inputs[0], signature),
        _wanted(request, signature),
        _whole_number(request.parameters, "timeout"),
        _whole_number(request.parameters, "priority"),
    )


def _images(given: InputTensor, signature: Signature) -> Images:
    count = given.shape[0] if given.shape else 0
    if not 1 <= count <= signature.max_images:
        raise InvalidRequest(f"input {given.name}: a batch of {count} is not between 1 and {signature.max_images}")
    if given.datatype == "BYTES":
        if given.shape not in ([count], [count, 1]):
            raise InvalidRequest(f"input {given.name}: encoded images have shape [n], got {given.shape}")
        return _encoded(given, count)
    expected = [count, *signature.image.shape]
    if given.datatype != "UINT8" or given.shape != expected:
        raise InvalidRequest(
            f"input {given.name} is UINT8 {[-1, *expected[1:]]} or BYTES [-1], got {given.datatype} {given.shape}"
        )
    return pixels(_numbers(given), count, signature)


def pixels(values: NDArray[np.uint8], count: int, signature: Signature) -> NDArray[np.uint8]:
    """The images `[n, height, width, 3]` whose bytes these are.

    Raises:
        InvalidRequest: there are more or fewer of them.
    """
    if values.size != count * signature.image.bytes:
        raise InvalidRequest(
            f"input {signature.input}: {count * signature.image.bytes} bytes are expected for its shape, "
            f"got {values.size}"
        )
    return values.reshape(count, *signature.image.shape)


def _numbers(given: InputTensor) -> NDArray[np.uint8]:
    if isinstance(given.content, bytes):
        return np.frombuffer(given.content, np.uint8)
    if _has_text(given.content):  # numpy would make every element as wide as the longest
        raise InvalidRequest(f"input {given.name}: UINT8 data are whole numbers from 0 to 255")
    try:
        values = np.asarray([] if given.content is None else given.content)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"input {given.name}: data is neither flat nor nested by its shape") from error
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise InvalidRequest(f"input {given.name}: UINT8 data are whole numbers from 0 to 255")
    return values.astype(np.uint8).reshape(-1)


def _has_text(content: Any) -> bool:
    if isinstance(content, list):
        return any(map(_has_text, content))
    return isinstance(content, str | bytes)


def _encoded(given: InputTensor, count: int) -> list[bytes]:
    if isinstance(given.content, bytes):
        return _elements(given.content, count, given.name)
    content = given.content if isinstance(given.content, list) else []
    images = [image for each in content for image in (each if isinstance(each, list) else [each])]
    if len(images) != count or not all(isinstance(image, str | bytes) for image in images):
        raise InvalidRequest(f"input {given.name}: {count} images are expected (base64 in JSON), got {len(images)}")
    return [image if isinstance(image, bytes) else _from_base64(image, given.name) for image in images]


def _from_base64(text: str, name: str) -> bytes:
    """JSON holds no bytes."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"input {name}: data is not base64") from error


def _elements(content: bytes, count: int, name: str) -> list[bytes]:
    """BYTES in binary form: each element is its length, 4 bytes little-endian, and so many bytes."""
    found: list[bytes] = []
    at = 0
    while at < len(content) and len(found) <= count:
        end = at + LENGTH.size
        length = LENGTH.unpack_from(content, at)[0] if end <= len(content) else len(content)
        if end + length > len(content):
            raise InvalidRequest(f"input {name}: element {len(found)} is longer than the data")
        found.append(content[end : end + length])
        at = end + length
    if len(found) != count:
        raise InvalidRequest(f"input {name}: {count} elements are expected for its shape, got {len(found)}")
    return found


def _wanted(request: InferRequest, signature: Signature) -> Wanted:
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


def answer(logits: NDArray[np.float32], wanted: Wanted, signature: Signature) -> OutputTensor:
    """The output for logits `[n, classes]`: themselves, or the classes that were asked for.

    Raises:
        InternalError: the model gave NaN or infinity, which no JSON number can say.
    """
    if not np.isfinite(logits).all():
        raise InternalError from ValueError("the model gave logits that are not finite")
    if not wanted.classes:
        return OutputTensor(signature.output, "FP32", list(logits.shape), logits.reshape(-1))
    texts = [text for row in logits for text in _ranking(row, wanted.classes, signature.labels)]
    return OutputTensor(signature.output, "BYTES", [len(logits), wanted.classes], texts)


def _ranking(logits: NDArray[np.float32], classes: int, labels: tuple[str, ...]) -> list[str]:
    """The largest logits of an image, best first, as the classification extension writes them."""
    best = np.argsort(-logits, kind="stable")[:classes]
    return [f"{logits[index]:.6f}:{index}:{labels[index]}" for index in best]
