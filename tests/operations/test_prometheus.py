"""Rules and dashboards, by a real Prometheus that scrapes a real server under load: every query finds data."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.load import Shot, closed_loop
from benchmarks.workloads import post
from tests.system.server import Server, free_port, running
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus" / "rules.yml"
DASHBOARDS = ROOT / "docker" / "grafana" / "dashboards"
LOAD_SECONDS = 2.0
# Why a panel may be empty here.
EMPTY = {
    "GPU memory": "there is no GPU",
    "GPU busy": "there is no GPU",
}
pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rules_and_configuration_are_valid() -> None:
    assert "20 rules found" in promtool("check", "rules", str(RULES))
    promtool("check", "config", str(RULES.with_name("prometheus.yml")))


def test_each_alert_fires_on_its_trouble_and_not_beside_it() -> None:
    file = Path(__file__).with_name("rules.yml")
    promtool("test", "rules", str(file))
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    fired = re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", file.read_text())
    assert set(alerts) == set(fired)


def test_each_alert_has_its_runbook() -> None:
    headings = {each.lower() for each in re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.M)}
    links = re.findall(r"runbook: docs/runbooks.md#(\w+)", RULES.read_text())
    assert links
    assert set(links) == headings


def test_the_dashboards_are_those_of_their_code(tmp_path: Path) -> None:
    script = ROOT / "docker" / "grafana" / "dashboards.py"
    (tmp_path / script.name).write_bytes(script.read_bytes())
    subprocess.run([sys.executable, str(tmp_path / script.name)], check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "dashboards").iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS.iterdir()}


@pytest.fixture(scope="module")
def prometheus(
    digits_models: Path, samples: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A Prometheus that has scraped a server with two versions, a shadow, a broken third, and traffic good and bad."""
    folder = tmp_path_factory.mktemp("prometheus")
    models = folder / "models"
    for version in "12":
        shutil.copytree(digits_models / "digits" / "1", models / "digits" / version)
    (models / "digits" / "3").mkdir()
    (models / "digits" / "3" / "model.onnx").write_bytes(b"broken")
    with running(models, "--shadow", "digits:1", ready=False) as server:
        port = free_port()
        (folder / "prometheus.yml").write_text(
            f"global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{RULES}]\nscrape_configs:\n"
            f"- {{job_name: classifier, static_configs: [{{targets: ['{server.url.removeprefix('http://')}']}}]}}\n"
        )
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                eventually(lambda: is_ready(client))
                load(server, samples, client)
                yield client
        finally:
            process.terminate()
            process.wait(10)


def load(server: Server, samples: list[Path], prometheus: httpx2.Client) -> None:
    """Ask the server until the rules that look back have data, and a little longer."""
    eventually(lambda: phase(server) == "failed")  # the broken version is found last
    headers = {"Content-Type": "image/png"}
    bodies = [each.read_bytes() for each in samples] + [b"no image", *(each.read_bytes() + b"1" for each in samples)]
    shots = [Shot(post("/classify", headers, each)) for each in bodies]

    def has_data() -> bool:
        closed_loop(server.port, shots, 4, LOAD_SECONDS)
        return bool(result(prometheus, "classifier:requests:rate5m"))

    eventually(has_data)
    closed_loop(server.port, shots, 4, LOAD_SECONDS)


def is_ready(prometheus: httpx2.Client) -> bool:
    try:
        return prometheus.get("/-/ready").status_code == 200
    except httpx2.TransportError:
        return False


def phase(server: Server) -> str:
    try:
        return str(server.get("/health/ready").json()["phase"])
    except httpx2.TransportError:
        return "not there"


def panels() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                found.append((f"{path.stem}: {panel['title']} {target['refId']}", panel["title"], target["expr"]))
    return found


def result(prometheus: httpx2.Client, expression: str) -> list[Any]:
    answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


def test_every_query_of_every_panel_finds_data(prometheus: httpx2.Client) -> None:
    empty = {}
    for name, title, expression in panels():
        found = result(prometheus, expression.replace("$__rate_interval", "10s").replace("[1h]", "[30s]"))
        numbers = [each for each in found if each["value"][1] != "NaN"]
        if not numbers and title not in EMPTY:
            empty[name] = expression
        assert not (numbers and title in EMPTY), f"{title} has data: {EMPTY[title]}?"
    assert not empty, empty


def test_every_rule_can_be_evaluated_and_the_recorded_ones_have_data(prometheus: httpx2.Client) -> None:
    groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 20
    assert all(rule["health"] == "ok" for rule in rules), rules
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    without = [name for name in recorded if not result(prometheus, name)]
    # With no answer in 5xx their numerator has no series; the alerts are then silent, as they should be.
    assert all("errors" in name for name in without), without
    assert {rule["name"] for rule in rules if rule.get("state") == "firing"} == {"ModelLoadFailed"}
