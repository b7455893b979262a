"""The live figures, beside those that are calculated here from the very texts of /metrics that the page was given."""

import math
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.system.server import Server
from tests.waiting import eventually

pytestmark = pytest.mark.browser

PNG = {"content-type": "image/png"}
# Each time the figures change: what is shown, and the two texts that it was made of with their times.
WATCH = """
    const looks = [];
    window.shown = [];
    const real = window.fetch;
    window.fetch = async (path, options) => {
        const at = performance.now();
        const response = await real(path, options);
        if (path === "/metrics") looks.push({ at, text: await response.clone().text() });
        return response;
    };
    document.addEventListener("DOMContentLoaded", () => {
        const figures = ["rate", "p50", "p99", "batch"].map((id) => document.getElementById(id));
        new MutationObserver(() => {
            window.shown.push({ figures: figures.map((each) => each.textContent), looks: looks.slice(-2) });
        }).observe(figures[0], { childList: true });
    });
"""


def series(text: str) -> dict[str, dict[float, float]]:
    """Samples by name and upper bound; all other labels summed over."""
    found: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            bounds = found.setdefault(sample.name, {})
            bound = float(sample.labels.get("le", math.inf))
            bounds[bound] = bounds.get(bound, 0) + sample.value
    return found


def calculated(earlier: dict[str, Any], later: dict[str, Any]) -> list[float]:
    """Requests a second, p50 and p99 in ms, and the mean batch between two looks."""
    before, after = series(earlier["text"]), series(later["text"])

    def gained(name: str, bound: float = math.inf) -> float:
        return after.get(name, {}).get(bound, 0) - before.get(name, {}).get(bound, 0)

    name = "classify_request_seconds_bucket"
    bounds = [0.0, *sorted(after[name])[:-1]]
    counts = [0.0, *(gained(name, each) for each in bounds[1:])]
    rate = gained("classify_requests_total") / (later["at"] - earlier["at"]) * 1000
    quantiles = [quantile(share * gained(name), counts, bounds) * 1000 for share in (0.5, 0.99)]
    return [rate, *quantiles, gained("classify_batch_size_sum") / gained("classify_batch_size_count")]


def quantile(rank: float, counts: list[float], bounds: list[float]) -> float:
    """Linear within the bucket that has the rank; the last finite bound beyond it."""
    at = bisect_left(counts, rank)
    return float(np.interp(rank, counts[at - 1 : at + 1], bounds[at - 1 : at + 1])) if at < len(counts) else bounds[-1]


def number(figure: str) -> Any:
    """What a figure says, to half of its last digit and the time between two calls."""
    digits = figure.removesuffix(" ms")
    return pytest.approx(float(digits), abs=0.51 * 10 ** -len(digits.partition(".")[2]))


def classify(server: Server, path: Path, times: int, at_once: int) -> None:
    image = path.read_bytes()
    with ThreadPoolExecutor(at_once) as pool, httpx2.Client(base_url=server.url) as client:
        asked = [pool.submit(client.post, "/classify", content=image, headers=PNG) for _ in range(times)]
        assert {each.result().status_code for each in asked} == {200}


def test_the_figures_are_those_of_the_metrics(chromium: webdriver.Chrome, server: Server, seven: Path) -> None:
    classify(server, seven, 40, at_once=1)  # before the first look, so that no figure is to count them
    script = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    chromium.get(server.url)
    chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    eventually(lambda: chromium.execute_script("return window.shown.length"))
    assert [chromium.find_element(By.ID, each).text for each in ("p50", "p99", "batch")] == ["–"] * 3
    classify(server, seven, 60, at_once=8)
    at = chromium.execute_script("return performance.now()")
    eventually(
        lambda: chromium.execute_script("return window.shown.some((each) => each.looks[1].at > arguments[0])", at)
    )
    busy = [each for each in chromium.execute_script("return window.shown") if "–" not in each["figures"]]
    assert busy
    for each in busy:
        assert calculated(*each["looks"]) == [number(figure) for figure in each["figures"]]
