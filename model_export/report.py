"""One page about an artifact, for people: what it is, where it comes from, how far it can be trusted, what it costs.

Everything on it is either in the card or measured while the page is written, on this machine. The page is one file: its
images and its style are inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import onnx
import onnxruntime

from model_export.catalog import find_architecture
from model_export.describe import Description, Task, describe
from model_export.errors import ExportError
from model_export.images import EncodedImage, to_pixels
from model_export.speed import BATCH_SIZES, Seconds, measure, processor
from model_export.verify import card_of, intact_card_of
from service.answer import Prediction, top_predictions
from service.artifact import Golden, ModelCard
from service.cam import Head, explain, read_head
from service.cpus import available_cpus
from service.runtime import OnnxBackend, open_onnx
from service.seal import changed_parts

TOP_K = 3
LUMA = "luma"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Version:
    """One artifact of a model's folder, in a row of the tables."""

    name: str
    card: ModelCard
    path: Path
    bytes: int


@dataclass(frozen=True)
class Picture:
    """A golden image with what the artifact says of it: data URIs, predictions, and torch's own first label."""

    image: str
    overlay: str | None
    predictions: list[Prediction]
    trained: str
    difference: float


def write_report(model: Path, out: Path, progress: Progress) -> None:
    """Write the page about an artifact.

    Other versions in the model's folder that were made from the same checkpoint stand beside it in the tables of
    precision, size and speed.

    Raises:
        ExportError: the file is no artifact, or was changed.
    """
    card = intact_card_of(model)
    versions = _versions(model, card)
    progress("replaying golden images")
    pictures = _pictures(model, card)
    speeds = measure({each.name: each.path for each in versions}, card.input.height, progress=progress)
    page = _page(model, card, versions, pictures, speeds)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")


def _versions(model: Path, card: ModelCard) -> list[Version]:
    """This artifact, and its unharmed siblings from the same checkpoint with the same preprocessing, by version."""
    found = []
    for path in sorted({model.resolve(), *model.resolve().parent.parent.glob(f"*/{model.name}")}, key=_number):
        try:
            other = card_of(path)
        except ExportError:
            continue
        related = (other.source, other.preprocessing) == (card.source, card.preprocessing)
        if path == model.resolve() or (related and path.parent.name.isdecimal() and not changed_parts(other, path)):
            found.append(Version(f"{path.parent.name} · {other.precision}", other, path, path.stat().st_size))
    return found


def _number(path: Path) -> tuple[int, str]:
    return (int(path.parent.name) if path.parent.name.isdecimal() else 0, str(path))


def _pictures(model: Path, card: ModelCard) -> list[Picture]:
    backend, head = open_onnx(model, "cpu", available_cpus()), read_head(model, card.head)
    return [_picture(golden, card, backend, head) for golden in card.golden]


def _picture(golden: Golden, card: ModelCard, backend: OnnxBackend, head: Head | None) -> Picture:
    pixels = to_pixels(EncodedImage(golden.media_type, golden.encoded), card.preprocessing)
    outputs = backend.run(pixels[np.newaxis], features=head is not None)
    logits = outputs.logits[0]
    predictions = top_predictions(logits, card.labels, min(TOP_K, len(card.labels)))
    overlay = None
    if head is not None and outputs.features is not None:
        best = predictions[0]
        overlay = explain(head, best["index"], best["label"], pixels, outputs.features[0], logits)["overlay"]
    return Picture(
        image=f"data:{golden.media_type};base64,{golden.image_base64}",
        overlay=overlay,
        predictions=predictions,
        trained=card.labels[int(np.argmax(golden.logits))],
        difference=float(np.abs(logits - np.array(golden.logits, dtype=np.float32)).max()),
    )


def _page(
    model: Path, card: ModelCard, versions: list[Version], pictures: list[Picture], speeds: dict[str, Seconds]
) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"share": _share, "short": _short, "size": _size}
    template = environment.from_string((files("model_export") / "report.html").read_text(encoding="utf-8"))
    fastest = max(batch / seconds for row in speeds.values() for batch, seconds in row.items())
    return template.render(
        card=card,
        versions=versions,
        version=model.resolve().parent.name,
        pictures=pictures,
        speeds=speeds,
        fastest=fastest,
        batch_sizes=BATCH_SIZES,
        quantised=next((each for each in versions if each.path == model.resolve() and each.card.quantisation), None)
        or next((each for each in versions if each.card.quantisation), None),
        described=_described(model, card),
        machine={"processor": processor(), "threads": available_cpus(), "onnxruntime": onnxruntime.__version__},
        written=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _described(model: Path, card: ModelCard) -> Description:
    names = [each.name for each in onnx.load(model).graph.initializer]
    grey = any(name.endswith(LUMA) for name in names)
    return describe(
        find_architecture(card.architecture), Task(len(card.labels), card.input.height, in_channels=1 if grey else 3)
    )


def _share(value: float) -> str:
    return f"{value * 100:.2f} %"


def _short(value: float) -> str:
    return f"{value:.2g}" if value else "0"


def _size(value: int) -> str:
    return f"{value / 2**20:.1f} MiB"
