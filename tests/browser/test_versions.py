"""Which model and version is asked is what the person chose: in the request, in the answer and in the line for curl."""

import shutil
import subprocess
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.browser.page import cards, choose, opened
from tests.system.server import Server, running
from tests.waiting import eventually

pytestmark = pytest.mark.browser

OFFERED = "return [...document.getElementById('version').options].map((each) => each.value)"


@pytest.fixture
def page(chromium: webdriver.Chrome, several: Server) -> webdriver.Chrome:
    return opened(chromium, several.url)


def choice(page: webdriver.Chrome, what: str) -> Select:
    return Select(page.find_element(By.ID, what))


def answered(server: Server, model: str, version: int) -> float:
    text = server.get("/metrics").text
    series = f'classify_requests_total{{code="200",model="{model}",version="{version}"}}'
    return server.metric(series) if series in text else 0


def line(card: WebElement) -> str:
    return card.find_element(By.CSS_SELECTOR, ".curl code").text


def test_the_highest_version_is_offered_first(page: webdriver.Chrome) -> None:
    assert page.execute_script(OFFERED) == ["2", "1"]
    choice(page, "model").select_by_value("resnet50")
    assert page.execute_script(OFFERED) == ["1"]


def test_the_chosen_version_is_the_one_that_answers(page: webdriver.Chrome, several: Server, seven: Path) -> None:
    before = answered(several, "digits", 1), answered(several, "digits", 2)
    choice(page, "version").select_by_value("1")
    (card,) = choose(page, seven)
    assert "digits version 1" in card.text
    assert card.find_element(By.TAG_NAME, "h3").text.startswith("seven")
    assert "version=1" in line(card)
    assert (answered(several, "digits", 1), answered(several, "digits", 2)) == (before[0] + 1, before[1])
    done = subprocess.run(line(card), shell=True, cwd=seven.parent, capture_output=True, text=True, check=True)
    assert '"version":1' in done.stdout.replace(" ", "")


def test_another_version_is_asked_about_the_images_that_are_there(
    page: webdriver.Chrome, several: Server, seven: Path
) -> None:
    (card,) = choose(page, seven)
    assert card.find_element(By.CSS_SELECTOR, ".label").text == "7"
    before = answered(several, "digits", 1)
    choice(page, "version").select_by_value("1")
    eventually(lambda: "digits version 1" in cards(page, 1)[0].text)
    assert card.find_element(By.CSS_SELECTOR, ".label").text == "seven"
    assert "version=1" in line(card)
    assert answered(several, "digits", 1) == before + 1


def test_another_model_is_asked_and_described(page: webdriver.Chrome, several: Server, seven: Path) -> None:
    before = answered(several, "plain34", 1)
    choice(page, "model").select_by_value("plain34")
    assert "plain34, fp32" in page.find_element(By.ID, "facts").text
    (card,) = choose(page, seven)
    assert "plain34 version 1" in card.text
    assert "model=plain34" in line(card)
    assert answered(several, "plain34", 1) == before + 1


def test_a_version_that_comes_later_is_offered_to_the_open_page(
    chromium: webdriver.Chrome, digits_model: Path, tmp_path: Path
) -> None:
    versions = [tmp_path / "digits" / each / "model.onnx" for each in ("1", "2")]
    for each in versions:
        each.parent.mkdir(parents=True)
    shutil.copy(digits_model, versions[0])
    with running(tmp_path, "--model-control", "explicit") as server:
        page = opened(chromium, server.url)
        assert page.execute_script(OFFERED) == ["1"]
        shutil.copy(digits_model, versions[1])
        server.post("/v2/repository/models/digits/load", timeout=30).raise_for_status()
        eventually(lambda: page.execute_script(OFFERED) == ["2", "1"])
        assert page.find_element(By.ID, "version").get_property("value") == "1", "the choice is the person's"
