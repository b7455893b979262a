"""What axe-core finds in the page, in light and dark, narrow and wide; and the colours that it cannot judge."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.browser.page import choose, opened, seen_at
from tests.system.server import Server
from tests.waiting import eventually

pytestmark = pytest.mark.browser

AXE = Path(sys.prefix) / "axe" / "axe_playwright_python" / "axe.min.js"
# axe asks for a person's look at these: the text of a drawing lies on a shape (its colours have a test of their own),
# and the camera's view has no sound that could have captions.
LOOKED_AT = {"color-contrast", "video-caption"}
RUN = "const done = arguments[arguments.length - 1]; axe.run().then(done)"


@pytest.fixture(scope="module")
def axe() -> str:
    if not AXE.exists():
        pytest.skip("axe-core is not there; `make test-browser` fetches it")
    return AXE.read_text()


def findings(page: webdriver.Chrome, axe: str) -> list[str]:
    """What is wrong, and what axe cannot tell; each with the scheme, the width and the element."""
    found: list[str] = []
    for scheme, width in itertools.product(("light", "dark"), (390, 1280)):
        with seen_at(page, width, scheme):
            page.execute_script(axe)
            result: dict[str, list[dict[str, Any]]] = page.execute_async_script(RUN)
            assert result["passes"]
        unsure = [each for each in result["incomplete"] if each["id"] not in LOOKED_AT]
        for each in result["violations"] + unsure:
            where = ", ".join(node["html"] for node in each["nodes"])
            found.append(f"{scheme}, {width} px, {each['impact']}: {each['help']}: {where}")
    return found


def luminance(page: webdriver.Chrome, selector: str, what: str) -> float:
    """The relative luminance of an element's colour, as WCAG 2 defines it."""
    read = "return getComputedStyle(document.querySelector(arguments[0])).getPropertyValue(arguments[1])"
    red, green, blue = (int(each) / 255 for each in re.findall(r"\d+", page.execute_script(read, selector, what))[:3])
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_axe_finds_nothing_on_the_fresh_page(page: webdriver.Chrome, axe: str) -> None:
    assert findings(page, axe) == []


def test_axe_finds_nothing_beside_answers_evidence_and_an_error(
    page: webdriver.Chrome, axe: str, samples: list[Path], tmp_path: Path
) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(samples[0].read_bytes()[:60])
    choose(page, *samples[:3], bad)
    assert page.find_elements(By.CSS_SELECTOR, ".slider")
    assert findings(page, axe) == []


def test_axe_finds_nothing_in_the_drawing_of_a_deep_network(
    chromium: webdriver.Chrome, axe: str, several: Server
) -> None:
    page = opened(chromium, several.url)
    Select(page.find_element(By.ID, "model")).select_by_value("resnet50")
    assert page.find_element(By.ID, "structure").text.startswith("resnet50")
    assert findings(page, axe) == []


def test_axe_finds_nothing_in_the_form_for_a_key(chromium: webdriver.Chrome, axe: str, guarded: Server) -> None:
    chromium.get(guarded.url)
    eventually(lambda: chromium.find_element(By.ID, "key").is_displayed())
    assert findings(chromium, axe) == []


def test_axe_finds_nothing_in_the_camera(page: webdriver.Chrome, axe: str) -> None:
    page.find_element(By.ID, "open-camera").click()
    eventually(lambda: page.execute_script("return document.getElementById('viewfinder').videoWidth"))
    assert findings(page, axe) == []


def test_dark_is_dark_and_light_is_light(page: webdriver.Chrome) -> None:
    found = {}
    for scheme in ("light", "dark"):
        with seen_at(page, 1280, scheme):
            surfaces = [luminance(page, each, "background-color") for each in ("body", "#try", "#model")]
            inks = [luminance(page, each, "color") for each in ("body", "#try", "#model")]
            found[scheme] = (surfaces, inks)
    assert min(found["light"][0]) > 0.8
    assert max(found["light"][1]) < 0.1
    assert max(found["dark"][0]) < 0.05
    assert min(found["dark"][1]) > 0.7


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_drawing_and_the_edges_of_controls_stand_out(page: webdriver.Chrome, scheme: str) -> None:
    with seen_at(page, 1280, scheme):
        text = luminance(page, "#stages text", "fill")
        for box in ("#stages rect.conv", "#stages rect.fc", "#stages rect.avg_pool"):
            assert contrast(text, luminance(page, box, "fill")) >= 4.5
        panel = luminance(page, "#architecture", "background-color")
        for line in ("#stages path.shortcut", "#stages rect.conv", "#stages .flow"):
            assert contrast(panel, luminance(page, line, "stroke")) >= 3
        for control in ("#model", "#drop", "#paper", "#clear-paper"):
            assert contrast(panel, luminance(page, control, "border-top-color")) >= 3
