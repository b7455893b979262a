"""What every peer's `serve.py` shares, so that peers differ in how they serve and in nothing else.

It runs in the peers' environments: only numpy, Pillow, simplejpeg and onnxruntime are there for all of them.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

# A label and its probability, by these names.
Prediction = dict[str, str | float]

HOST = "127.0.0.1"
# A CPU's throughput hardly grows from here on, and each image waits for its whole batch.
MAX_BATCH_SIZE = 16
# Generous: no peer is to answer an error because the load is heavy.
TIMEOUT_SECONDS = 60
MODEL_VARIABLE = "PEER_MODEL"
PORT_VARIABLE = "PEER_PORT"
WORKERS_VARIABLE = "PEER_WORKERS"

TOP = 5
WHITE = (255, 255, 255)
ORIENTATION_MARKS = (b"Exif", b"tiff:Orientation")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Recipe:
    """The part of the card's preprocessing that turns an image into pixels; the graph normalises them."""

    resize: int
    crop: int
    interpolation: str
    exif: str
    fit: str
    centre: str

    @classmethod
    def of(cls, card: dict[str, Any]) -> "Recipe":
        """The recipe in a card."""
        return cls(**{name: card["preprocessing"][name] for name in cls.__dataclass_fields__})


class Model:
    """An artifact on the CPU: its session, with one thread, and the preprocessing and labels from the card inside.

    One thread a session and a worker for each core gives more images a second than one worker that shares its batches
    among the cores, and needs no synchronisation.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.card: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map["model_card"])
        self._labels: list[str] = self.card["labels"]
        self.recipe = Recipe.of(self.card)

    def pixels(self, encoded: bytes) -> NDArray[np.uint8]:
        """The input for one encoded image: uint8 `[crop, crop, 3]`, RGB."""
        return fit(decode(encoded, self.recipe), self.recipe)

    def logits(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """float32 `[batch, classes]` of a batch of inputs."""
        found: NDArray[np.float32] = self._session.run(["logits"], {"images": np.stack(pixels)})[0]
        return found

    def top5(self, logits: NDArray[np.float32]) -> list[Prediction]:
        """The five most probable labels of logits `[classes]`, best first."""
        scores = np.exp(logits - logits.max())
        probabilities = scores / scores.sum()
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        return [
            {"label": self._labels[index], "probability": probability}
            for index, probability in zip(best.tolist(), probabilities[best].tolist(), strict=True)
        ]

    def answers(self, pixels: Sequence[NDArray[np.uint8]]) -> list[list[Prediction]]:
        """The five most probable labels for each input of a batch, in order."""
        return [self.top5(logits) for logits in self.logits(pixels)]

    def classify(self, images: Sequence[bytes]) -> list[list[Prediction]]:
        """The five most probable labels for each encoded image of a batch, in order."""
        return self.answers([self.pixels(encoded) for encoded in images])


def open_model() -> Model:
    """The model that this server was started for."""
    return Model(Path(os.environ[MODEL_VARIABLE]))


def port() -> int:
    """Where this server was told to listen."""
    return int(os.environ[PORT_VARIABLE])


def workers() -> int:
    """How many cores this server has, and so how many sessions."""
    return int(os.environ[WORKERS_VARIABLE])


def free_port() -> int:
    """For what a peer insists on serving besides HTTP."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def decode(encoded: bytes, recipe: Recipe) -> NDArray[np.uint8]:
    """Pixels `[H, W, 3]`, RGB: by simplejpeg where it gives what Pillow gives, which is whole upright JPEGs."""
    if encoded.startswith(b"\xff\xd8\xff") and not _may_be_turned(encoded, recipe):
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False)
        except ValueError:
            return decode_with_pillow(encoded, recipe)
        return pixels
    return decode_with_pillow(encoded, recipe)


def decode_with_pillow(encoded: bytes, recipe: Recipe) -> NDArray[np.uint8]:
    """Pixels `[H, W, 3]`, RGB, on white where the image is transparent."""
    image: Image.Image = Image.open(BytesIO(encoded))
    if recipe.exif == "transpose":
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        # A plain convert() would show the colours hidden under transparent pixels.
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, WHITE)
        image.paste(rgba, mask=rgba)
    return np.asarray(image.convert("RGB"))


def fit(pixels: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.uint8]:
    """Resize the shorter side and cut out the centre, `[H, W, 3]` -> `[crop, crop, 3]`."""
    height, width = pixels.shape[:2]
    size = _resized(width, height, recipe)
    if size != (width, height):
        pixels = np.asarray(Image.fromarray(pixels).resize(size, RESAMPLING[recipe.interpolation]))
    left, top = (_margin(side - recipe.crop, recipe) for side in size)
    return pixels[top : top + recipe.crop, left : left + recipe.crop]


def _may_be_turned(encoded: bytes, recipe: Recipe) -> bool:
    return recipe.exif == "transpose" and any(mark in encoded for mark in ORIENTATION_MARKS)


def _resized(width: int, height: int, recipe: Recipe) -> tuple[int, int]:
    shorter = recipe.resize
    if recipe.fit == "stretch":
        return shorter, shorter
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _margin(excess: int, recipe: Recipe) -> int:
    return excess // 2 if recipe.centre == "floor" else round(excess / 2)
