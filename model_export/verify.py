"""Parity again, on this machine: an artifact against the checkpoint it was made from."""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from model_export.checkpoints import Given, read_checkpoint
from model_export.errors import ExportError
from model_export.evidence import MAX_VERDICT, parity_pixels
from model_export.images import EncodedImage, Pixels, images_in, shipped_images, to_pixels
from model_export.parity import Standard, judge, reference_logits
from service.artifact import ArtifactError, ModelCard, Parity, read_card
from service.seal import changed_parts


def card_of(model: Path) -> ModelCard:
    """The model card inside an ONNX file.

    Raises:
        ExportError: the file is no ONNX file or has no valid card.
    """
    try:
        properties = onnx.load(model, format="protobuf", load_external_data=False).metadata_props
        card = read_card({each.key: each.value for each in properties})
    except FileNotFoundError as error:
        raise ExportError(f"there is no file {model}") from error
    except (DecodeError, ArtifactError) as error:
        raise ExportError(f"{model} is no artifact of resnet-export: {error}") from error
    if card is None:
        raise ExportError(f"{model} has no model card: it was not written by resnet-export")
    return card


def intact_card_of(model: Path) -> ModelCard:
    """The card of an artifact that is as it was sealed.

    Raises:
        ExportError: as `card_of`, or what in the file was changed.
    """
    card = card_of(model)
    if changed := changed_parts(card, model):
        raise ExportError(f"{', '.join(changed)} of {model} differ from what was exported (sha256): convert it again")
    return card


def verify(model: Path, source: str, images: Path | None, *, ema: bool) -> Parity:
    """Compare an artifact with its checkpoint, on the given images or on those it was published with.

    The card says what the checkpoint itself does not: architecture, labels, preprocessing; and the tolerance.

    Raises:
        ExportError: they differ, or one of them cannot be read.
    """
    card = intact_card_of(model)
    checkpoint = read_checkpoint(source, Given(card.architecture, card.labels, card.preprocessing, ema))
    overridden = card.source.overridden if card.source else ()
    for what, own, written in (
        ("labels", checkpoint.said.labels, card.labels),
        ("preprocessing", checkpoint.said.preprocessing, card.preprocessing),
    ):
        if own is not None and own != written and what not in overridden:
            raise ExportError(f"the card's {what} are not those that {source} states: convert it again")
    pixels = _pixels(card, images)
    return judge(
        model, reference_logits(checkpoint.build(), card.preprocessing, pixels), pixels, _standard(card, images)
    )


def _pixels(card: ModelCard, images: Path | None) -> Pixels:
    """The images to compare on; without any, below float32 the golden ones: it was not calibrated on strangers."""
    recipe = card.preprocessing
    if card.precision in ("fp32", "unknown"):
        return parity_pixels(images_in(images, MAX_VERDICT) if images else shipped_images(), recipe, card.precision)
    golden = [EncodedImage(each.media_type, each.encoded) for each in card.golden]
    seen = images_in(images, MAX_VERDICT) if images else golden
    return np.stack([to_pixels(image, recipe) for image in seen])


def _standard(card: ModelCard, images: Path | None) -> Standard:
    """The card's own promise; on a few golden images without a share of agreement, which needs many."""
    if card.parity is None:
        raise ExportError("the card has no parity record: it was not written by resnet-export")
    asked = card.precision == "fp32" or images is not None
    return Standard(card.parity.tolerance, card.parity.min_agreement if asked else 0.0)
