"""The page of a server that asks for a key: it says so, takes one, and lets it go nowhere but to that server."""

import os
import subprocess
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser.page import KEY, choose, opened, sent
from tests.system.server import Server
from tests.waiting import eventually

pytestmark = pytest.mark.browser


@pytest.fixture
def page(chromium: webdriver.Chrome, guarded: Server) -> webdriver.Chrome:
    chromium.get(guarded.url)
    eventually(lambda: chromium.find_element(By.ID, "key").is_displayed())
    return chromium


def enter(page: webdriver.Chrome, key: str) -> None:
    field = page.find_element(By.ID, "key")
    field.clear()
    field.send_keys(key, Keys.ENTER)


def entered(page: webdriver.Chrome) -> webdriver.Chrome:
    enter(page, KEY)
    eventually(lambda: page.find_element(By.ID, "stages").find_elements(By.TAG_NAME, "svg"))
    return page


def test_without_a_key_the_page_says_what_is_asked_for(page: webdriver.Chrome) -> None:
    problem = page.find_element(By.ID, "problem").text
    assert "asks for a key. Enter yours above" in problem
    assert "unauthorized" in problem
    for empty in ("choices", "about", "architecture"):
        assert not page.find_element(By.ID, empty).is_displayed()


def test_a_wrong_key_is_told_from_none(page: webdriver.Chrome) -> None:
    enter(page, "wrong")
    eventually(lambda: "does not know this key" in page.find_element(By.ID, "problem").text)
    assert page.find_element(By.ID, "key").is_displayed()
    entered(page)
    assert page.find_element(By.ID, "problem").text == ""


def test_what_no_header_can_carry_is_not_sent(page: webdriver.Chrome) -> None:
    sent(page)
    enter(page, "clé")
    assert page.execute_script("return document.getElementById('key').validity.patternMismatch")
    assert not any(each["url"].endswith("/models") for each in sent(page))


def test_with_the_key_images_are_classified(page: webdriver.Chrome, seven: Path) -> None:
    entered(page)
    assert not page.find_element(By.ID, "key-form").is_displayed()
    assert page.switch_to.active_element.get_attribute("id") == "image"
    (card,) = choose(page, seven)
    assert card.find_element(By.TAG_NAME, "h3").text.startswith("seven")


def test_the_key_is_in_no_address_and_kept_nowhere(page: webdriver.Chrome, seven: Path) -> None:
    sent(page)
    choose(entered(page), seven)
    requests = sent(page)
    assert any(each["headers"].get("X-API-Key") == KEY for each in requests), "the log would not show it"
    assert not any(KEY in each["url"] or KEY in each.get("postData", "") for each in requests)
    assert KEY not in page.current_url
    kept = "return JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, history.state])"
    assert KEY not in page.execute_script(kept)
    assert page.find_element(By.ID, "key").get_property("value") == ""
    page.refresh()
    eventually(lambda: page.find_element(By.ID, "key").is_displayed())


def test_the_curl_line_leaves_the_key_to_the_shell(page: webdriver.Chrome, seven: Path) -> None:
    (card,) = choose(entered(page), seven)
    line = card.find_element(By.CSS_SELECTOR, ".curl code").text
    assert "$API_KEY" in line
    assert KEY not in page.page_source
    for key, answer in ((KEY, '"seven"'), ("other", "unauthorized")):
        environment = os.environ | {"API_KEY": key}
        done = subprocess.run(line, shell=True, cwd=seven.parent, env=environment, capture_output=True, check=True)
        assert answer in done.stdout.decode()


def test_without_a_key_the_curl_line_names_none(chromium: webdriver.Chrome, server: Server, seven: Path) -> None:
    (card,) = choose(opened(chromium, server.url), seven)
    assert "API" not in card.find_element(By.CSS_SELECTOR, ".curl code").text
