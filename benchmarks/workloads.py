"""What is asked of the servers: networks, images, and the requests that are made of them.

Weights are random, with batch-norm statistics that keep activations in range: speed does not depend on what a network
knows. Images are smooth colour fields with a little noise, whose JPEGs are as large as photographs of their size.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.load import HOST, Shot
from model_export.catalog import find_architecture
from model_export.cli import main as export
from model_export.errors import ExportError

# Where models, weights and images are kept from run to run.
FOLDER = Path(".bench")
CALIBRATION_IMAGES = 24
JUDGING_IMAGES = 8
BATCH_IMAGES = 32
PRECISION_ON_GPU = {"int8": "fp16"}
BOUNDARY = "benchmark-boundary"
CLASSES = 1000


@dataclass(frozen=True)
class Workload:
    """One kind of traffic.

    `models` are folders under the benchmark's own by name in the service, each `(source, precision)`; `shots` makes the
    requests; `images` is how many a request has; `encoded` an image that the ceiling decodes, None for tensors.
    `classify` means one image a request: what every peer can do.
    """

    name: str
    title: str
    models: dict[str, tuple[str, str]]
    side: tuple[int, int]
    shots: Callable[[list[bytes]], list[Shot]]
    images: int = 1
    tensors: bool = False
    classify: bool = True

    def on_gpu(self) -> Self:
        """The same for a GPU, where float16 is what int8 is on a CPU: there are no int8 convolutions in CUDA."""
        models = {name: (source, PRECISION_ON_GPU.get(each, each)) for name, (source, each) in self.models.items()}
        if models == self.models:
            return self
        return replace(self, name=f"{self.name}-fp16", title=re.sub(r"\bint8\b", "float16", self.title), models=models)


def jpegs(width: int, height: int, count: int) -> list[bytes]:
    """Different images of one size, the same ones each time."""
    rng = np.random.default_rng(width)
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    found = []
    for _ in range(count):
        waves = rng.uniform(2, 30, (3, 2))
        phases = rng.uniform(0, 6, 3)
        fields = [np.sin(x * a + phase) * np.cos(y * b) for (a, b), phase in zip(waves, phases, strict=True)]
        pixels = 127 + 90 * np.stack(fields, axis=-1) + rng.normal(0, 8, (height, width, 3))
        buffer = BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def post(path: str, headers: dict[str, str], body: bytes) -> bytes:
    """One HTTP/1.1 request, head and body."""
    fields = {"Host": HOST, "Content-Length": str(len(body))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def form(path: str, parts: list[tuple[str, bytes]]) -> bytes:
    """One request with a form of these files, each under a name."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{{}}"; filename="image.jpg"\r\n\r\n'
    body = b"".join(head.format(name).encode() + image + b"\r\n" for name, image in parts)
    typed = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return post(path, typed, body + f"--{BOUNDARY}--\r\n".encode())


def _plain(images: list[bytes]) -> list[Shot]:
    return [Shot(post("/classify", {"Content-Type": "image/jpeg"}, image)) for image in images]


def _forms(images: list[bytes]) -> list[Shot]:
    parts = [("files", images[each % len(images)]) for each in range(BATCH_IMAGES)]
    return [Shot(form("/classify/batch", parts))]


def tensors(images: list[bytes], model: str) -> list[Shot]:
    """As many requests of the Open Inference Protocol, each with one binary tensor of 224×224 for a model."""
    size = 224 * 224 * 3
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 224, 224, 3]}
    wanted = {"name": "logits", "parameters": {"binary_data": True}}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": size}}], "outputs": [wanted]})
    pixels = np.random.default_rng(0).integers(0, 256, (len(images), size), dtype=np.uint8)
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return [Shot(post(f"/v2/models/{model}/infer", headers, head.encode() + each.tobytes())) for each in pixels]


def _mixed(images: list[bytes]) -> list[Shot]:
    """Two models in turns; one request in a hundred is no image, and one in a hundred is given up after 5 ms."""
    typed = {"Content-Type": "image/jpeg"}
    asked = ["/classify?model=resnet18", "/classify?model=digits"]
    good = [Shot(post(asked[each % 2], typed, images[each % len(images)])) for each in range(98)]
    bad = Shot(post(asked[1], typed, b"\xff\xd8\xff no image"))
    given_up = Shot(post(asked[0], typed, images[0]), hang_up=0.005)
    return [*good[:49], bad, *good[49:], given_up]


WORKLOADS = {
    each.name: each
    for each in (
        Workload("W1", "ResNet-20 int8, 32×32 JPEG", {"digits": ("builtin:digits", "int8")}, (32, 32), _plain),
        Workload("W2", "ResNet-18 int8, 500×375 JPEG", {"resnet18": ("resnet18", "int8")}, (500, 375), _plain),
        Workload("W3", "ResNet-18 float32, 500×375 JPEG", {"resnet18": ("resnet18", "fp32")}, (500, 375), _plain),
        Workload("W4", "ResNet-50 int8, 500×375 JPEG", {"resnet50": ("resnet50", "int8")}, (500, 375), _plain),
        Workload("W4f", "ResNet-50 float32, 500×375 JPEG", {"resnet50": ("resnet50", "fp32")}, (500, 375), _plain),
        Workload(
            "W5",
            f"ResNet-18 int8, /classify/batch with {BATCH_IMAGES} JPEGs of 500×375",
            {"resnet18": ("resnet18", "int8")},
            (500, 375),
            _forms,
            images=BATCH_IMAGES,
            classify=False,
        ),
        Workload(
            "W6",
            "ResNet-18 int8, binary uint8 tensors under /v2",
            {"resnet18": ("resnet18", "int8")},
            (500, 375),
            partial(tensors, model="resnet18"),
            tensors=True,
            classify=False,
        ),
        Workload(
            "W7",
            "ResNet-18 int8 and ResNet-20 int8 in turns, 1 % bad, 1 % given up",
            {"resnet18": ("resnet18", "int8"), "digits": ("builtin:digits", "int8")},
            (500, 375),
            _mixed,
            classify=False,
        ),
    )
}


def prepare(workload: Workload, folder: Path) -> Path:
    """A model folder for the service with what the workload needs, converted once.

    Raises:
        ExportError: a network cannot be converted.
    """
    models = folder / "models" / workload.name
    for name, (source, precision) in workload.models.items():
        if (models / name / "1" / "model.onnx").exists():
            continue
        print(f"{workload.name}: converting {source} to {precision}, once; it may take a minute …", file=sys.stderr)
        given = source if source.startswith("builtin:") else str(checkpoint(source, folder))
        command = ["convert", given, "--name", name, "--precision", precision]
        command += ["--out", str(models), "--version", "1"]
        if not source.startswith("builtin:"):
            images, calibration = map(str, _images(folder))
            command += ["--arch", source, "--preset", "imagenet-v1", "--labels", str(_labels(folder))]
            command += ["--images", images, "--min-agreement", "0.5"]
            command += ["--calibration", calibration, "--calibration-method", "minmax"] if precision == "int8" else []
        with redirect_stdout(sys.stderr):  # the results go to stdout
            failed = export(command)
        if failed:
            raise ExportError(f"{workload.name} cannot be prepared")
    return models


def checkpoint(source: str, folder: Path) -> Path:
    """A file with the weights of an architecture, made once."""
    path = folder / f"{source}.pth"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(_in_range(find_architecture(source).build(CLASSES)).state_dict(), path)
    return path


def _in_range(network: nn.Module) -> nn.Module:
    """Batch-norm statistics as they come of noise, so that no activation grows from layer to layer."""
    with torch.no_grad():
        network.train()
        for _ in range(3):
            network(torch.randn(4, 3, 224, 224))
    return network.eval()


def _labels(folder: Path) -> Path:
    path = folder / "labels.txt"
    path.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
    return path


def _images(folder: Path) -> tuple[Path, Path]:
    """Folders with images to judge by, and others to calibrate on."""
    folders = folder / "images", folder / "calibration"
    encoded = jpegs(500, 375, JUDGING_IMAGES + CALIBRATION_IMAGES)
    for path, images in zip(folders, (encoded[:JUDGING_IMAGES], encoded[JUDGING_IMAGES:]), strict=True):
        path.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            (path / f"{number}.jpg").write_bytes(image)
    return folders
