"""Parity again, on this machine: an artifact against the checkpoint it was made from."""

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from model_export.checkpoints import Given, read_checkpoint
from model_export.convert import prove
from model_export.errors import ExportError
from model_export.images import images_in, shipped_images
from service.artifact import ArtifactError, ModelCard, Parity, read_card


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


def verify(model: Path, source: str, images: Path | None, *, ema: bool) -> Parity:
    """Compare an artifact with its checkpoint, on the given images or the shipped ones.

    The card says what the checkpoint itself does not: architecture, labels, preprocessing.

    Raises:
        ExportError: they differ, or one of them cannot be read.
    """
    card = card_of(model)
    checkpoint = read_checkpoint(source, Given(card.architecture, card.labels, card.preprocessing, ema))
    overridden = card.source.overridden if card.source else ()
    for what, own, written in (
        ("labels", checkpoint.said.labels, card.labels),
        ("preprocessing", checkpoint.said.preprocessing, card.preprocessing),
    ):
        if own is not None and own != written and what not in overridden:
            raise ExportError(f"the card's {what} are not those that {source} states: convert it again")
    return prove(model, checkpoint, checkpoint.build(), images_in(images) if images else shipped_images())
