"""The card's schema: what it refuses, in one line each."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from service.artifact import CARD_PROPERTY, ArtifactError, Parity, read_card
from tests.backends import colour_card

Change = Callable[[dict[str, Any]], object]


def card_json(change: Change) -> str:
    card = json.loads(colour_card().model_dump_json())
    change(card)
    return json.dumps(card)


def test_a_card_survives_the_way_through_the_file() -> None:
    card = colour_card()
    assert read_card({CARD_PROPERTY: card.model_dump_json()}) == card


def test_a_file_without_a_card_has_none() -> None:
    assert read_card({"producer": "somebody"}) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(schema_version=2),
        lambda card: card.update(surprise=1),
        lambda card: card.pop("labels"),
        lambda card: card.update(labels=[]),
        lambda card: card["input"].update(dtype="float32"),
        lambda card: card["input"].update(height=9),
        lambda card: card["preprocessing"].update(crop=9),
        lambda card: card["preprocessing"].update(std=[0, 1, 1]),
        lambda card: card["preprocessing"].update(std=[1e-320, 1, 1]),
        lambda card: card["preprocessing"].update(std=[math.inf, 1, 1]),
        lambda card: card["preprocessing"].update(std=[math.nan, 1, 1]),
        lambda card: card["preprocessing"].update(mean=[0, 0, math.nan]),
        lambda card: card["preprocessing"].update(mean=[1e300, 0, 0]),
        lambda card: card["preprocessing"].update(interpolation="nice"),
        lambda card: card.update(
            golden=[{"media_type": "image/png", "image_base64": "", "pixels_sha256": "", "logits": [1, 2, 3]}]
        ),
    ],
)
def test_a_card_that_is_not_valid_is_refused_in_one_line(change: Change) -> None:
    with pytest.raises(ArtifactError, match="model card is not valid") as refused:
        read_card({CARD_PROPERTY: card_json(change)})
    assert "\n" not in str(refused.value)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ArtifactError):
        read_card({CARD_PROPERTY: "{"})


def test_the_tolerance_grows_with_the_logits() -> None:
    parity = Parity(
        tolerance=1e-4,
        max_abs_diff=0,
        max_rel_diff=0,
        kl_divergence=0,
        top1_agreement=1,
        min_agreement=1,
        batch_sizes=(1,),
        images=1,
    )
    assert parity.allowed(np.array([0.1, -0.5], dtype=np.float32)) == pytest.approx(5e-5)
    assert parity.allowed(np.array([3, -50], dtype=np.float32)) == pytest.approx(5e-3)
