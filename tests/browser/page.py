"""What a person does on the page and waits for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.waiting import eventually

KEY = "the-key-of-the-guarded-server"


def opened(chromium: webdriver.Chrome, url: str) -> webdriver.Chrome:
    """The page of a server, once it shows what is served."""
    chromium.get(url)
    eventually(lambda: chromium.find_element(By.ID, "stages").find_elements(By.TAG_NAME, "svg"))
    return chromium


def choose(page: webdriver.Chrome, *paths: Path) -> list[WebElement]:
    """The cards of the images, once each has its answer; the last one chosen comes first."""
    page.find_element(By.ID, "image").send_keys("\n".join(map(str, paths)))
    return cards(page, len(paths))


def cards(page: webdriver.Chrome, count: int) -> list[WebElement]:
    """All cards, once there are so many with an answer or a refusal."""
    eventually(lambda: len(page.find_elements(By.CSS_SELECTOR, ".shot .predictions, .shot .problem")) == count)
    return page.find_elements(By.CSS_SELECTOR, ".shot")


def sent(page: webdriver.Chrome) -> list[dict[str, Any]]:
    """The requests since the last look, as the browser wrote them down."""
    lines = page.get_log("performance")  # type: ignore[no-untyped-call]
    messages = [json.loads(line["message"])["message"] for line in lines]
    return [each["params"]["request"] for each in messages if each["method"] == "Network.requestWillBeSent"]


@contextmanager
def seen_at(page: webdriver.Chrome, width: int, scheme: str = "light") -> Iterator[None]:
    """The page on a screen of that many CSS pixels, for a person who prefers light or dark."""
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    try:
        yield
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
