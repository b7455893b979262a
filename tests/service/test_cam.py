"""Class activation maps: what `explain=cam` answers is what made the logit, and what cannot be explained says why."""

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from PIL import Image

from service.app import create_app
from service.artifact import ArtifactError, ModelCard, Source
from service.cam import Head, overlay
from service.settings import read_settings
from tests.backends import ColourBackend, colour_card
from tests.service.client import encode, serving, wait_until_ready

PNG = {"content-type": "image/png"}


def ask(client: TestClient, image: bytes, **parameters: object) -> Response:
    query = {key: str(value) for key, value in parameters.items()}
    return client.post("/classify", content=image, headers=PNG, params=query)


def explained(client: TestClient, image: bytes, **parameters: object) -> dict[str, Any]:
    response = ask(client, image, explain="cam", **parameters)
    assert response.status_code == 200, response.text
    explanation: dict[str, Any] = response.json()["explanation"]
    return explanation


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_map_of_every_class_adds_up_to_its_logit(
    precision: str, digits_by_precision: dict[str, Path], samples: list[Path]
) -> None:
    app = create_app(read_settings({"models": digits_by_precision[precision]}))
    with TestClient(app) as client:
        wait_until_ready(client)
        for index in range(10):
            explanation = explained(client, samples[index].read_bytes(), **{"class": index})
            activation = np.array(explanation["map"])
            assert activation.shape == (8, 8)
            assert (explanation["method"], explanation["index"]) == ("cam", index)
            assert abs(activation.mean() + explanation["bias"] - explanation["logit"]) < 1e-3
            assert np.ptp(activation) > 0.1, "a flat map explains nothing"


def test_without_a_class_the_most_probable_one_is_explained_over_the_models_input(
    digits_models: Path, seven: Path
) -> None:
    app = create_app(read_settings({"models": digits_models}))
    with TestClient(app) as client:
        wait_until_ready(client)
        response = ask(client, seven.read_bytes(), explain="cam")
        explanation = response.json()["explanation"]
        assert (explanation["label"], explanation["index"]) == ("seven", 7)
        assert response.json()["predictions"][0]["label"] == "seven"
        kind, _, content = explanation["overlay"].partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(BytesIO(base64.b64decode(content)))
        assert (picture.format, picture.size) == ("PNG", (32, 32))
        assert "explanation" not in ask(client, seven.read_bytes()).json()


def test_the_evidence_is_where_the_digit_is(digits_models: Path, seven: Path) -> None:
    """A digit in one half of a blank image: the evidence for it lies in that half."""
    page = Image.new("RGB", (64, 64))
    page.paste(Image.open(seven).convert("RGB").resize((32, 32)), (32, 16))
    buffer = BytesIO()
    page.save(buffer, format="PNG")
    app = create_app(read_settings({"models": digits_models}))
    with TestClient(app) as client:
        wait_until_ready(client)
        activation = np.array(explained(client, buffer.getvalue())["map"])
    assert activation[:, 4:].max() > activation[:, :3].max()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"explain": "gradients"}, "explain"),
        ({"class": 1}, "class: it goes with explain=cam"),
        ({"explain": "cam", "class": -1}, "class"),
        ({"explain": "cam", "class": "seven"}, "class"),
        ({"explain": "cam", "class": 10}, "10 classes"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(
    parameters: dict[str, object], said: str, digits_models: Path, samples: list[Path]
) -> None:
    app = create_app(read_settings({"models": digits_models}))
    with TestClient(app) as client:
        wait_until_ready(client)
        response = ask(client, samples[0].read_bytes(), **parameters)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
    assert said in response.json()["detail"]


def vgg_like() -> ModelCard:
    source = Source(format="torchvision", sha256="0" * 64)
    return colour_card().model_copy(update={"architecture": "vgg19", "source": source})


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (vgg_like(), "vgg19 does not end in global average pooling"),
        (colour_card(), "no card that names its last layer"),
    ],
    ids=["vgg", "plain"],
)
def test_a_model_without_a_map_says_why(card: ModelCard, said: str, colour_models: Path) -> None:
    with serving(colour_models, ColourBackend(card)) as client:
        response = ask(client, encode("red"), explain="cam")
        assert (response.status_code, response.json()["code"]) == (422, "invalid_parameter")
        assert said in response.json()["detail"]


def test_a_batch_request_explains_nothing(colour_models: Path) -> None:
    with serving(colour_models) as client:
        form = [("files", ("a.png", encode("red"), "image/png"))]
        assert client.post("/classify/batch", files=form, params={"explain": "cam"}).status_code == 422


def test_a_head_takes_the_logits_apart() -> None:
    rng = np.random.default_rng(0)
    head = Head(rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=5).astype(np.float32))
    features = rng.random((3, 16, 7, 7), dtype=np.float32)
    logits = (features.mean(axis=(2, 3)) @ head.weight.T + head.bias).astype(np.float32)
    head.check(features, logits)
    for image, expected in zip(features, logits, strict=True):
        maps = [head.activation_map(image, index) for index in range(5)]
        np.testing.assert_allclose([each.mean() for each in maps] + head.bias, expected, atol=1e-4)
    with pytest.raises(ArtifactError, match="does not explain its logits"):
        head.check(features, logits + 1)


def test_the_overlay_is_brightest_where_the_evidence_is() -> None:
    activation = np.zeros((4, 4))
    activation[1, 3] = 2.0
    picture = np.asarray(Image.open(BytesIO(overlay(np.full((64, 64, 3), 128, np.uint8), activation))).convert("L"))
    assert np.unravel_index(picture.argmax(), picture.shape)[0] // 16 == 1
    assert np.unravel_index(picture.argmax(), picture.shape)[1] // 16 == 3
    flat = np.asarray(Image.open(BytesIO(overlay(np.full((8, 8, 3), 128, np.uint8), np.ones((2, 2))))))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
