"""What the Open Inference Protocol says of the server and its models, as its JSON; gRPC's messages have those fields.

Shapes and dtypes are those of the model's own input and output; -1 stands for any size.
"""

from importlib.metadata import version as package_version
from typing import Any

from service.inference_protocol import Signature
from service.repository import Repository, ServedModel

NAME = "resnet-service"
PLATFORM = "onnxruntime_onnx"
EXTENSIONS = (
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "binary_tensor_data",
    "parameters",
)


def signature_of(model: ServedModel, max_images: int) -> Signature:
    """A model's input and output; `max_images` is the most in one request."""
    return Signature.of(model.card, model.backend.input.name, model.backend.output.name, max_images)


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": NAME, "version": package_version(NAME), "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel, signature: Signature, repository: Repository) -> dict[str, Any]:
    """Inputs, outputs and versions of a model."""
    return {
        "name": model.name,
        "versions": [str(each.version) for each in repository if each.name == model.name],
        "platform": PLATFORM,
        "inputs": [{"name": signature.input, "datatype": "UINT8", "shape": [-1, *signature.image.shape]}],
        "outputs": [{"name": signature.output, "datatype": "FP32", "shape": [-1, len(signature.labels)]}],
    }


def model_config(model: ServedModel, signature: Signature) -> dict[str, Any]:
    """A model as Triton would configure it."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": signature.max_images,
        "input": [
            {
                "name": signature.input,
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NHWC",
                "dims": list(signature.image.shape),
            }
        ],
        "output": [
            {
                "name": signature.output,
                "data_type": "TYPE_FP32",
                "dims": [len(signature.labels)],
                "label_filename": "",
            }
        ],
        "instance_group": [{"kind": "KIND_CPU" if model.device == "cpu" else "KIND_GPU", "count": 1}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
    }


def model_statistics(repository: Repository, name: str = "", version: int | None = None) -> dict[str, Any]:
    """What a model, one version of it, or every model has done since it was loaded.

    Raises:
        UnknownModel, ModelUnavailable, Starting: a model is named and not served.
    """
    if name:
        repository.find(name, version)
    models = [each for each in repository if name in ("", each.name) and version in (None, each.version)]
    return {"model_stats": [_statistics(each) for each in models]}


def repository_index(repository: Repository, *, only_ready: bool) -> list[dict[str, str]]:
    """Every version that was loaded or tried, and why one is not in service; or only those that are."""
    reasons = {(each.name, each.version): "unloaded" for each in repository.unloaded}
    reasons |= {(each.name, each.version): reason for each, reason in repository.failed.items()}
    ready = {(each.name, each.version) for each in repository}
    return [
        {
            "name": name,
            "version": str(version),
            "state": "READY" if (name, version) in ready else "UNAVAILABLE",
            "reason": reasons.get((name, version), ""),
        }
        for name, version in sorted(ready if only_ready else ready | reasons.keys())
    ]


def _statistics(model: ServedModel) -> dict[str, Any]:
    done = model.batcher.statistics
    none = {"count": 0, "ns": 0}
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": done.last_inference_ms,
        "inference_count": done.inferences,
        "execution_count": done.executions,
        "inference_stats": {
            "success": done.success.to_json(),
            "fail": done.fail.to_json(),
            "queue": done.queue.to_json(),
            "compute_input": none,
            "compute_infer": done.infer.to_json(),
            "compute_output": none,
            "cache_hit": none,
            "cache_miss": none,
        },
        "response_stats": {},
        "batch_stats": [
            {"batch_size": size, "compute_input": none, "compute_infer": took.to_json(), "compute_output": none}
            for size, took in sorted(done.batches.copy().items())
        ],
        "memory_usage": [],
    }
