"""One browser and one server over the built-in digits for all tests of the page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from model_export.catalog import find_architecture
from model_export.describe import Task
from model_export.sealing import write_artifact
from model_export.structure import structure_of
from model_export.verify import card_of
from tests.browser.page import KEY, opened
from tests.system.server import Server, running

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
DRAWN = ("resnet34", "resnet34-c", "resnet50", "resnet50-c", "plain34", "vgg19")


@pytest.fixture(scope="session")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as started:
        yield started


@pytest.fixture(scope="session")
def several(digits_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two versions of the digits, and of networks that are nothing but the structures in their cards.

    To export VGG-19 takes a minute, and all that a drawing is made of is in the card. Version 2 of the digits says
    `7` where version 1 says `seven`.
    """
    folder = tmp_path_factory.mktemp("several")
    card = card_of(digits_model)

    def serve(name: str, version: int, **changes: object) -> None:
        path = folder / name / str(version) / "model.onnx"
        path.parent.mkdir(parents=True)
        write_artifact(onnx.load(digits_model), card.model_copy(update=changes), path)

    serve("digits", 1)
    serve("digits", 2, labels=tuple("0123456789"))
    for name in DRAWN:
        serve(name, 1, architecture=name, structure=structure_of(find_architecture(name), Task(1000, 224, 3)))
    serve("older", 1, structure=None)
    with running(folder) as started:
        yield started


@pytest.fixture(scope="session")
def guarded(digits_models: Path) -> Iterator[Server]:
    """A server that asks for a key."""
    with running(digits_models, environment=os.environ | {"SERVICE_API_KEYS": KEY}) as started:
        yield started


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromium-driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "use-fake-device-for-media-stream", "use-fake-ui-for-media-stream"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium: webdriver.Chrome, server: Server) -> webdriver.Chrome:
    return opened(chromium, server.url)
