"""The peers, and how each is asked for an image and understood: `PEERS`."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent
BOUNDARY = "peers-boundary"


class Request(NamedTuple):
    """An HTTP/1.1 POST without what the connection decides: Host and Content-Length are the sender's."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Peer:
    """A model server, its environment and its interface.

    `package` is the pinned requirement whose version is measured, `needs` are programs that no Python package brings.
    `request` asks for one encoded image; `top1` reads the most probable label out of an answer, and raises
    ValueError, LookupError or TypeError where there is none.
    """

    name: str
    package: str
    request: Callable[[bytes], Request]
    top1: Callable[[bytes], str]
    contains: str = ""
    needs: tuple[str, ...] = ()

    @property
    def serve(self) -> Path:
        """What is run with the environment's Python."""
        return FOLDER / self.name / "serve.py"

    @property
    def requirements(self) -> Path:
        """Exact versions, for pip."""
        return FOLDER / self.name / "requirements.txt"

    @property
    def version(self) -> str:
        """Of what is measured: the package with its pin, and what it brings along that has its own version."""
        pins = dict(line.split("==") for line in self.requirements.read_text().splitlines() if "==" in line)
        own = f"{self.package} {next(pins[name] for name in pins if name.partition('[')[0] == self.package)}"
        return f"{own} ({self.contains})" if self.contains else own


def _raw(path: str) -> Callable[[bytes], Request]:
    return lambda image: Request(path, {"Content-Type": "application/octet-stream"}, image)


def _form(path: str, field: str) -> Callable[[bytes], Request]:
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="image"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    tail = f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return lambda image: Request(path, headers, head + image + tail)


def _triton(image: bytes) -> Request:
    # One BYTES element: its length in four bytes, then itself.
    element = len(image).to_bytes(4, "little") + image
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(element)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return Request("/v2/models/classifier/infer", headers, head + element)


def _mlserver(image: bytes) -> Request:
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(image).decode()],
    }
    body = json.dumps({"inputs": [tensor]}).encode()
    return Request("/v2/models/classifier/infer", {"Content-Type": "application/json"}, body)


def _first(answer: bytes) -> str:
    """Of a list of predictions."""
    return _label(json.loads(answer))


def _first_of_batch(answer: bytes) -> str:
    """Of a list with a list of predictions for each image of the request."""
    return _label(json.loads(answer)[0])


def _first_tensor(answer: bytes) -> str:
    """Of the output `labels` in the Open Inference Protocol."""
    return next(str(output["data"][0]) for output in json.loads(answer)["outputs"] if output["name"] == "labels")


def _label(predictions: Any) -> str:
    return str(predictions[0]["label"])


PEERS = {
    peer.name: peer
    for peer in (
        Peer("triton", "nvidia-pytriton", _triton, _first_tensor),
        Peer("mosec", "mosec", _raw("/inference"), _first),
        Peer("torchserve", "torchserve", _raw("/predictions/classifier"), _first, needs=("java",)),
        Peer("ray", "ray", _raw("/"), _first),
        Peer("bentoml", "bentoml", _form("/classify", "images"), _first_of_batch),
        Peer("litserve", "litserve", _raw("/predict"), _first),
        Peer("mlserver", "mlserver", _mlserver, _first_tensor),
        Peer("fastapi", "fastapi", _form("/classify", "file"), _first),
    )
}
