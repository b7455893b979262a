"""The drawing of the network, beside figure 3 of He et al. (2015): stages, blocks, and where shortcuts are dotted."""

from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from tests.browser.page import opened, seen_at
from tests.system.server import Server

pytestmark = pytest.mark.browser

# Of each stage: its boxes, its shortcuts with the boxes that each reaches past, and how often its blocks are there.
READ = """
    const rectangles = (each) => [...each.querySelectorAll("rect")].map((box) => box.getBoundingClientRect());
    return [...document.querySelectorAll("#stages li")].map((stage) => ({
        name: stage.querySelector("h3").textContent,
        boxes: rectangles(stage).length,
        shortcuts: [...stage.querySelectorAll("path.shortcut")].map((path) => {
            const { top, bottom } = path.getBoundingClientRect();
            const passed = rectangles(stage).filter((box) => box.top > top && box.bottom < bottom);
            return [getComputedStyle(path).strokeDasharray === "none" ? "solid" : "dotted", passed.length];
        }),
        counts: [...stage.querySelectorAll("text.count")].map((text) => text.textContent),
    }));
"""
OVERFLOWING = """
    return [...document.querySelectorAll("#stages text:not(.count)")].filter((text) =>
        text.getBBox().width > text.previousElementSibling.getBBox().width - 6).map((text) => text.textContent);
"""


@pytest.fixture
def page(chromium: webdriver.Chrome, several: Server) -> webdriver.Chrome:
    return opened(chromium, several.url)


def drawn(page: webdriver.Chrome, name: str) -> list[dict[str, Any]]:
    Select(page.find_element(By.ID, "model")).select_by_value(name)
    assert page.execute_script(OVERFLOWING) == []
    stages: list[dict[str, Any]] = page.execute_script(READ)
    return stages


def stage(name: str, boxes: int, *shortcuts: list[object], count: int = 1) -> dict[str, Any]:
    counts = [f"×{count}"] if count > 1 else []
    return {"name": name, "boxes": boxes, "shortcuts": list(shortcuts), "counts": counts}


def test_the_digits_network_widens_twice(page: webdriver.Chrome) -> None:
    assert drawn(page, "digits") == [
        stage("conv1", 1),
        stage("layer1", 2, ["solid", 2], count=3),
        stage("layer2", 4, ["dotted", 2], ["solid", 2], count=2),
        stage("layer3", 4, ["dotted", 2], ["solid", 2], count=2),
        stage("fc", 2),
    ]


@pytest.mark.parametrize("name", ["resnet34", "resnet34-c"])
def test_what_option_c_projects_is_dotted_only_where_dimensions_change(page: webdriver.Chrome, name: str) -> None:
    assert drawn(page, name) == [
        stage("conv1", 2),
        stage("layer1", 2, ["solid", 2], count=3),
        stage("layer2", 4, ["dotted", 2], ["solid", 2], count=3),
        stage("layer3", 4, ["dotted", 2], ["solid", 2], count=5),
        stage("layer4", 4, ["dotted", 2], ["solid", 2], count=2),
        stage("fc", 2),
    ]
    kept = "projection" if name == "resnet34-c" else "identity"
    assert page.find_element(By.ID, "arcs").text.split("\n") == [kept, "changes dimensions"]


@pytest.mark.parametrize("name", ["resnet50", "resnet50-c"])
def test_bottlenecks_widen_in_every_stage(page: webdriver.Chrome, name: str) -> None:
    assert drawn(page, name) == [
        stage("conv1", 2),
        stage("layer1", 6, ["dotted", 3], ["solid", 3], count=2),
        stage("layer2", 6, ["dotted", 3], ["solid", 3], count=3),
        stage("layer3", 6, ["dotted", 3], ["solid", 3], count=5),
        stage("layer4", 6, ["dotted", 3], ["solid", 3], count=2),
        stage("fc", 2),
    ]


def test_a_plain_network_has_the_layers_and_no_shortcut(page: webdriver.Chrome) -> None:
    assert drawn(page, "plain34") == [
        stage("conv1", 2),
        stage("layer1", 2, count=3),
        stage("layer2", 4, count=3),
        stage("layer3", 4, count=5),
        stage("layer4", 4, count=2),
        stage("fc", 2),
    ]
    assert not page.find_element(By.ID, "arcs").is_displayed()


def test_vgg_ends_each_stage_in_a_pooling(page: webdriver.Chrome) -> None:
    assert drawn(page, "vgg19") == [
        stage("conv1", 3),
        stage("conv2", 3),
        stage("conv3", 5),
        stage("conv4", 5),
        stage("conv5", 5),
        stage("classifier", 3),
    ]
    last = page.find_elements(By.CSS_SELECTOR, "#stages li:nth-child(3) text")[-1]
    assert last.text == "2×2 max pool, /2"
    assert not page.find_element(By.ID, "arcs").is_displayed()


def test_a_drawing_is_told_in_words_too(page: webdriver.Chrome) -> None:
    drawn(page, "resnet50")
    drawing = page.find_element(By.CSS_SELECTOR, "#stages li:nth-child(2) svg")
    assert drawing.get_attribute("aria-label") == (
        "layer1, 256×56×56: 1 × (1×1 conv, 64; 3×3 conv, 64; 1×1 conv, 256) with a shortcut with a 1×1 projection, "
        "then 2 × (1×1 conv, 64; 3×3 conv, 64; 1×1 conv, 256) with an identity shortcut"
    )


def test_six_stages_lie_beside_each_other_on_a_desk_and_none_reaches_over_a_phone(page: webdriver.Chrome) -> None:
    with seen_at(page, 1280):
        drawn(page, "resnet50")
        assert len({each.location["y"] for each in page.find_elements(By.CSS_SELECTOR, "#stages li")}) == 1
    with seen_at(page, 390):
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390


def test_a_file_without_its_structure_is_not_drawn_and_that_is_said(page: webdriver.Chrome) -> None:
    assert drawn(page, "older") == []
    assert "says nothing of its structure" in page.find_element(By.ID, "structure").text
