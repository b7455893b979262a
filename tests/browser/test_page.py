"""The page in a real browser, over a real server: `make test-browser`."""

import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser.page import cards, choose, opened, seen_at, sent
from tests.system.server import Server, running
from tests.waiting import eventually

pytestmark = pytest.mark.browser


def test_of_several_images_each_has_its_answer_and_a_bad_one_fails_alone(
    page: webdriver.Chrome, samples: list[Path], seven: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(samples[0].read_bytes()[:60])
    broken, answered = choose(page, seven, bad)
    assert answered.find_element(By.TAG_NAME, "h3").text.startswith("seven")
    assert "undecodable_image" in broken.text
    assert "Choose another file" in broken.text


# What a button says, and when in milliseconds: it goes again, and a test may look too late.
WORDS = """
    window.words = [];
    const note = () => window.words.push([arguments[0].textContent, performance.now()]);
    new MutationObserver(note).observe(arguments[0], { childList: true });
"""


@pytest.mark.parametrize("name", ["seven.png", """it's "7"; $(touch 7), `7` \\7.png"""])
def test_the_curl_line_gives_the_same_answer(page: webdriver.Chrome, seven: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(seven.read_bytes())
    (card,) = choose(page, path)
    line = card.find_element(By.CSS_SELECTOR, ".curl code").text
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"label":"seven"' in done.stdout.replace(" ", "")
    assert "explanation" in done.stdout


def test_the_curl_line_is_copied_or_at_least_selected(page: webdriver.Chrome, seven: Path) -> None:
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    (card,) = choose(page, seven)
    line = card.find_element(By.CSS_SELECTOR, ".curl code").text
    button = card.find_element(By.CSS_SELECTOR, ".curl button")
    page.execute_script(WORDS, button)

    def words() -> list[str]:
        return [word for word, _ in page.execute_script("return window.words")]

    button.click()
    eventually(lambda: "Copied" in words())
    assert page.execute_script("return navigator.clipboard.readText()") == line
    page.execute_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as without HTTPS
    time.sleep(0.5)
    button.click()
    eventually(lambda: "Selected" in words())
    assert page.execute_script("return getSelection().toString()") == line
    eventually(lambda: words()[-1] == "Copy")
    said = page.execute_script("return window.words")
    (selected,) = [at for word, at in said if word == "Selected"]
    gone = next(at for word, at in said if word == "Copy" and at > selected)
    assert gone - selected > 1400, "the first click took the second one's word away"


def test_the_slider_blends_the_evidence_over_the_image(page: webdriver.Chrome, samples: list[Path]) -> None:
    (card,) = choose(page, samples[0])
    picture = "return arguments[0].querySelector('canvas').toDataURL()"
    before = page.execute_script(picture, card)
    slide = "const s = arguments[0].querySelector('input'); s.value = 0; s.dispatchEvent(new Event('input'))"
    page.execute_script(slide, card)
    assert page.execute_script(picture, card) != before


def test_a_drawn_one_is_classified_and_goes_on_in_the_same_card(page: webdriver.Chrome) -> None:
    paper = page.find_element(By.ID, "paper")
    for offset in (0, 3):
        stroke = webdriver.ActionChains(page).move_to_element_with_offset(paper, offset, -70)
        stroke.click_and_hold().move_by_offset(0, 70).move_by_offset(0, 70).release().perform()
        (card,) = cards(page, 1)
        assert card.find_elements(By.CSS_SELECTOR, ".predictions li")


def test_a_photograph_is_classified(page: webdriver.Chrome) -> None:
    page.find_element(By.ID, "open-camera").click()
    eventually(lambda: page.execute_script("return document.getElementById('viewfinder').videoWidth"))
    page.find_element(By.ID, "take").click()
    (card,) = cards(page, 1)
    assert "photograph.jpg" in card.text


def test_a_server_that_restarts_is_waited_for(chromium: webdriver.Chrome, digits_models: Path) -> None:
    with running(digits_models) as first:
        port = str(first.port)
        chromium.get(first.url)
        state = chromium.find_element(By.ID, "state")
        eventually(lambda: state.text == "Ready")
        first.process.kill()
        eventually(lambda: "No answer" in state.text)
    with running(digits_models, "--port", port, ready=False):
        eventually(lambda: state.text == "Ready")


def test_while_nothing_is_served_the_page_says_so_and_asks_again(
    chromium: webdriver.Chrome, digits_models: Path, seven: Path
) -> None:
    with running(digits_models, "--model-control", "explicit") as server:
        server.post("/v2/repository/models/digits/unload", timeout=30).raise_for_status()
        chromium.get(server.url)
        eventually(lambda: chromium.find_element(By.ID, "state").text != "Asking…")
        (card,) = choose(chromium, seven)
        assert "No model is in service" in card.text
        server.post("/v2/repository/models/digits/load", timeout=30).raise_for_status()
        eventually(lambda: chromium.find_element(By.ID, "model").get_property("value") == "digits")
        card.find_element(By.TAG_NAME, "button").click()
        title = "return arguments[0].querySelector('h3').textContent"  # in one step: the card is filled anew
        eventually(lambda: chromium.execute_script(title, card).startswith("seven"))


def test_an_answer_that_comes_after_a_later_ones_is_not_shown(page: webdriver.Chrome, seven: Path) -> None:
    (card,) = choose(page, seven)
    page.execute_script("""
        const real = window.fetch;
        window.explained = 0;
        window.fetch = async (path, options) => {
            const response = await real(path, options);
            if (path.includes("explain")) {
                await new Promise((resolve) => setTimeout(resolve, 500));
                window.explained += 1;
            }
            return response;
        };
        for (let times = 0; times < 3; times += 1) document.getElementById("explain").click();
    """)
    eventually(lambda: page.execute_script("return window.explained"))
    eventually(lambda: "explain" not in card.find_element(By.CSS_SELECTOR, ".curl code").text)
    time.sleep(0.5)
    assert not card.find_elements(By.CSS_SELECTOR, "input[type=range]")
    assert "explain" not in card.find_element(By.CSS_SELECTOR, ".curl code").text


@pytest.mark.parametrize("width", [390, 800, 1600])
def test_nothing_reaches_over_the_side(page: webdriver.Chrome, samples: list[Path], width: int) -> None:
    with seen_at(page, width):
        choose(page, samples[0])
        assert page.execute_script("return document.documentElement.scrollWidth") <= width


def test_nothing_is_asked_of_another_origin_and_the_policy_is_kept(
    chromium: webdriver.Chrome, server: Server, samples: list[Path]
) -> None:
    for log in ("browser", "performance"):
        chromium.get_log(log)  # type: ignore[no-untyped-call]
    page = opened(chromium, server.url)
    choose(page, *samples[:2])
    asked = [httpx2.URL(each["url"]) for each in sent(page)]
    origins = {f"{each.scheme}://{each.netloc.decode()}" for each in asked if each.scheme not in ("data", "blob")}
    assert origins == {server.url}
    assert {each.path for each in asked} >= {"/", "/page/page.js", "/page/page.css", "/models", "/classify", "/metrics"}
    lines = page.get_log("browser")  # type: ignore[no-untyped-call]
    assert not [line for line in lines if line["level"] == "SEVERE"]
