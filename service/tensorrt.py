"""How TensorRT is to build the engine of an artifact, and where it keeps engines.

To build one takes minutes; it is for one kind of GPU, and for the batch sizes that it was built for. onnxruntime names
what it keeps by the layers of a network and by the versions of all software, but not by the weights. So each model has
a folder of its own, by the digest of its files: another version's engine would answer for it otherwise.
"""

import hashlib
import os
from pathlib import Path

from service.artifact import INPUT_NAME, parse_card
from service.external_data import external_files, refuse_files_outside
from service.runtime import DeviceError
from service.seal import find_card

# What has to be allowed for a precision below float32, or TensorRT refuses the graph.
_ALLOWED = {"fp16": "trt_fp16_enable", "int8": "trt_int8_enable"}


def engine_options(path: Path, max_batch: int, cache: Path | None) -> dict[str, str]:
    """Options of onnxruntime's provider for one model file: an engine in the precision of its card, for all batches.

    Args:
        path: the model file; without a card it is in float32, and an engine is built for each batch size.
        max_batch: the most images in a batch; engines are tuned for that.
        cache: where engines are kept from start to start, None for nowhere.

    Raises:
        DeviceError: nothing can be written there.
        ArtifactError, OSError: the file cannot be read.
    """
    options: dict[str, str] = {}
    if (found := find_card(path)) is not None:
        card = parse_card(found.text)
        if card.precision in _ALLOWED:
            options[_ALLOWED[card.precision]] = "True"
        image = "x".join(map(str, card.input.shape))
        for bound, size in (("min", 1), ("opt", max_batch), ("max", max_batch)):
            options[f"trt_profile_{bound}_shapes"] = f"{INPUT_NAME}:{size}x{image}"
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(_own_folder(path, cache)),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
    return options


def _own_folder(path: Path, cache: Path) -> Path:
    refuse_files_outside(path)
    digest = hashlib.sha256()
    for each in (path, *sorted({path.parent / other for other in external_files(path)})):
        with each.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    folder = cache / digest.hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"engines cannot be kept in SERVICE_TENSORRT_CACHE={cache}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise DeviceError(f"engines cannot be kept in SERVICE_TENSORRT_CACHE={cache}: it cannot be written")
    return folder
