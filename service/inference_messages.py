"""The Open Inference Protocol over gRPC: messages <-> requests and answers. Pure.

An input's data are in `raw_input_contents` in the protocol's binary form, or in that field of `contents` which its
datatype has. Answers are binary, as Triton's are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse

from service.errors import InvalidRequest
from service.inference_protocol import (
    Inference,
    InferRequest,
    InputTensor,
    Parameters,
    RequestedOutput,
    Signature,
    answer,
    understand,
)


def parse(message: ModelInferRequest, signature: Signature) -> Inference:
    """Understand a request to the model of this signature.

    Raises:
        InvalidRequest: what is wrong with it.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidRequest(f"raw_input_contents has {len(raw)} tensors for {len(message.inputs)} inputs")
    inputs = [_input(each, raw[position] if raw else None) for position, each in enumerate(message.inputs)]
    outputs = [RequestedOutput(each.name, _parameters(each.parameters)) for each in message.outputs]
    return understand(InferRequest(message.id, _parameters(message.parameters), inputs, outputs), signature)


def _input(given: ModelInferRequest.InferInputTensor, raw: bytes | None) -> InputTensor:
    if raw is not None and given.HasField("contents"):
        raise InvalidRequest(f"input {given.name} has both contents and raw_input_contents")
    return InputTensor(given.name, given.datatype, list(given.shape), _elements(given) if raw is None else raw)


def _elements(given: ModelInferRequest.InferInputTensor) -> list[bytes] | NDArray[np.uint32]:
    if given.datatype == "BYTES":
        return list(given.contents.bytes_contents)
    numbers = given.contents.uint_contents
    return np.fromiter(numbers, np.uint32, len(numbers))


def _parameters(given: Mapping[str, Any]) -> Parameters:
    parameters: Parameters = {}
    for name, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidRequest(f"parameter {name} has no value")
        parameters[name] = getattr(value, choice)
    return parameters


def render(
    logits: NDArray[np.float32], asked: Inference, signature: Signature, about: dict[str, str]
) -> ModelInferResponse:
    """The answer for logits `[n, classes]`; `about` has model_name, model_version and id.

    Raises:
        InternalError: the logits are not finite.
    """
    tensor = answer(logits, asked.wanted, signature)
    output = ModelInferResponse.InferOutputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return ModelInferResponse(**about, outputs=[output], raw_output_contents=[tensor.to_bytes()])
