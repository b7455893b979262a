"""The artifact's file: the graph with its weights, then the card with the graph's seal."""

import os
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from model_export.errors import ExportError
from model_export.regions import head_weights
from service.artifact import CARD_PROPERTY, ArtifactError, HeadRecord, ModelCard, StoredTensor
from service.cam import read_head
from service.golden import GoldenMismatch, Replay
from service.runtime import open_onnx
from service.seal import seal


def write_artifact(model: onnx.ModelProto, card: ModelCard, path: Path) -> ModelCard:
    """Write the finished file and replay it as a server would, so that what is published is known to be accepted.

    Returns:
        The card as it is in the file, sealed.

    Raises:
        ExportError: the file fails its own golden images.
    """
    del model.metadata_props[:]
    graph = model.SerializeToString()
    sealed = seal(card.model_copy(update={"head": _locate_head(model, graph)}), graph)
    # Messages of protobuf that follow each other are one message, so the card can come after the graph it vouches for.
    behind = onnx.ModelProto()
    onnx.helper.set_model_props(behind, {CARD_PROPERTY: sealed.model_dump_json()})
    with path.open("wb") as file:
        file.write(graph)
        file.write(behind.SerializeToString())
        file.flush()
        os.fsync(file.fileno())
    try:
        Replay(open_onnx(path, "cpu", threads=1), sealed, read_head(path, sealed.head)).finish()
    except (GoldenMismatch, ArtifactError) as error:
        raise ExportError(f"the finished file fails its own golden images: {error}") from error
    return sealed


def _locate_head(model: onnx.ModelProto, graph: bytes) -> HeadRecord | None:
    """Where in the serialised graph the tensors lie that class activation maps need."""
    weights = head_weights(model)
    return weights and HeadRecord(weight=_locate(weights[0], graph), bias=_locate(weights[1], graph))


def _locate(tensor: NDArray[np.float32], graph: bytes) -> StoredTensor:
    offset = graph.find(tensor.astype("<f4").tobytes())
    if offset < 0:
        raise ExportError("the last layer's weights are not in the graph as float32: report this with the architecture")
    return StoredTensor(offset=offset, shape=tensor.shape)
