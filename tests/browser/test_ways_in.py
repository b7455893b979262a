"""Every way for an image into the page: the clipboard, files that are dropped, and the keyboard alone."""

import base64
import json
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.browser.page import cards, choose
from tests.waiting import eventually

pytestmark = pytest.mark.browser

COPY = """
    const [encoded, done] = arguments;
    const bytes = Uint8Array.from(atob(encoded), (each) => each.charCodeAt(0));
    const item = new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) });
    navigator.clipboard.write([item]).then(() => done(""), (error) => done(String(error)));
"""
# Where the focus is, and whether it can be seen: the file chooser lies unseen over its label, which shows it.
FOCUSED = """
    const each = document.activeElement;
    const shown = getComputedStyle(each.id === "image" ? each.parentElement : each).outlineStyle !== "none";
    return [each.id || each.textContent || each.type, shown];
"""


def press(page: webdriver.Chrome, *keys: str) -> None:
    webdriver.ActionChains(page).send_keys(*keys).perform()


def heading(card: WebElement) -> str:
    return card.find_element(By.TAG_NAME, "h3").text


def drop(page: webdriver.Chrome, *paths: Path) -> None:
    """Drag them over the page, as from a folder's window, and let go."""
    place = page.find_element(By.ID, "state").location
    data = {"items": [], "files": [str(each) for each in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **place, "data": data})
    assert page.find_element(By.CSS_SELECTOR, "#drop.over")
    page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": "drop", **place, "data": data})


def tab_to(page: webdriver.Chrome, what: str) -> None:
    """Press the tabulator until the focus is there, and visible all the way."""
    for _ in range(30):
        press(page, Keys.TAB)
        there, shown = page.execute_script(FOCUSED)
        assert shown, there
        if there == what:
            return
    pytest.fail(f"the tabulator does not reach {what}")


def test_a_pasted_image_is_classified(page: webdriver.Chrome, seven: Path) -> None:
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    assert page.execute_async_script(COPY, base64.b64encode(seven.read_bytes()).decode()) == ""
    webdriver.ActionChains(page).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    (card,) = cards(page, 1)
    assert heading(card).startswith("seven")


def test_dropped_files_are_classified(page: webdriver.Chrome, seven: Path, samples: list[Path]) -> None:
    drop(page, seven, next(each for each in samples if each.stem == "one"))
    found = {heading(card).split()[0] for card in cards(page, 2)}
    assert found == {"seven", "one"}
    assert not page.find_elements(By.CSS_SELECTOR, "#drop.over")
    assert page.title == "resnet-service", "the browser opened the file instead"


def test_a_folder_that_is_dropped_is_told_from_a_server_that_is_gone(page: webdriver.Chrome, tmp_path: Path) -> None:
    drop(page, tmp_path)
    (card,) = cards(page, 1)
    assert "This is a folder" in card.text
    assert "unreadable_file" in card.text


def test_a_file_that_changed_since_is_to_be_chosen_anew(page: webdriver.Chrome, seven: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(seven.read_bytes())
    (card,) = choose(page, path)
    path.write_bytes(b"something else")
    page.find_element(By.ID, "explain").click()
    eventually(lambda: "a file that changed" in card.text)


def test_the_keyboard_opens_the_choice_of_files(page: webdriver.Chrome) -> None:
    page.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": True})
    page.get_log("performance")  # type: ignore[no-untyped-call]
    tab_to(page, "image")
    press(page, Keys.SPACE)

    def asked() -> bool:
        lines = page.get_log("performance")  # type: ignore[no-untyped-call]
        return any(json.loads(line["message"])["message"]["method"] == "Page.fileChooserOpened" for line in lines)

    eventually(asked)
    page.execute_cdp_cmd("Page.setInterceptFileChooserDialog", {"enabled": False})


def test_everything_on_an_answer_is_in_reach_of_the_keyboard(page: webdriver.Chrome, seven: Path) -> None:
    (card,) = choose(page, seven)
    picture = "return arguments[0].querySelector('canvas').toDataURL()"
    before = page.execute_script(picture, card)
    page.execute_script("document.activeElement.blur()")
    for control in ("model", "version", "explain", "image", "open-camera", "clear-paper", "clear", "range"):
        tab_to(page, control)
    press(page, Keys.ARROW_RIGHT * 10)
    assert page.execute_script(picture, card) != before
    tab_to(page, card.find_element(By.CSS_SELECTOR, ".curl pre").text)
    tab_to(page, "Copy")
    press(page, Keys.ENTER)
    eventually(lambda: page.find_element(By.ID, "spoken").get_property("textContent") == "Copied")


def test_the_keyboard_stays_where_it_was_when_what_it_pressed_goes(page: webdriver.Chrome, tmp_path: Path) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(b"no image")
    (card,) = choose(page, bad)
    tab_to(page, "Try again")
    press(page, Keys.ENTER)
    eventually(lambda: page.switch_to.active_element == card)
    page.find_element(By.ID, "clear").send_keys(Keys.ENTER)
    assert page.execute_script(FOCUSED)[0] == "image"


def test_escape_closes_the_camera_and_the_keyboard_is_back_at_its_button(page: webdriver.Chrome) -> None:
    tab_to(page, "open-camera")
    press(page, Keys.ENTER)
    eventually(lambda: page.execute_script("return document.getElementById('viewfinder').videoWidth"))
    press(page, Keys.ESCAPE)
    eventually(lambda: not page.find_element(By.ID, "camera").is_displayed())
    assert page.execute_script(FOCUSED)[0] == "open-camera"
    eventually(lambda: page.execute_script("return document.getElementById('viewfinder').srcObject") is None)
