"""The images and the compose file on a real container engine, found as the docker command finds it.

Where an image cannot be pulled, a stand-in with the same program from Debian takes its place.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from benchmarks.load import Shot, open_loop
from benchmarks.workloads import post
from tests.system.server import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
BASE = os.environ.get("PYTHON_IMAGE", "python:3.12-slim-bookworm")
MEGABYTE = 10**6
MOST = 450 * MEGABYTE
PROJECT = "resnet-service-test"
PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
PROMETHEUS = 'ENTRYPOINT ["prometheus"]'
HAPROXY = 'CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]'
# Grafana is in no Debian package: something that listens where it would.
GRAFANA = 'CMD ["python3", "-m", "http.server", "3000", "--directory", "/var/lib/grafana/dashboards"]'


def run(*command: str, stdin: str | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, input=stdin, capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("there is no container engine: set DOCKER_HOST, or start Docker")


def build(target: str) -> str:
    tag = f"resnet-service:{target}"
    arguments = [f"--build-arg={name}={os.environ[name]}" for name in PIP if os.environ.get(name)]
    arguments += ["--network", "host", "--build-arg", f"PYTHON_IMAGE={BASE}", "--target", target, "-t", tag]
    run("docker", "build", *arguments, ".", DOCKER_BUILDKIT="0")
    return tag


@pytest.fixture(scope="module")
def images() -> dict[str, str]:
    """The images that are served from and exported with."""
    if torch.__version__.endswith("+cpu"):
        wheels = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", "docker/wheels"]
        run(*wheels, f"torch=={torch.__version__}")  # the index's own would bring gigabytes of CUDA
    return {target: build(target) for target in ("cpu", "export")}


def inspected(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("docker", kind, "inspect", name))[0]
    return found


def pulled(image: str, package: str, command: str) -> str:
    """The image, or what stands in for it."""
    if not subprocess.run(["docker", "pull", "-q", image], capture_output=True, check=False).returncode:
        return image
    name = f"stand-in-{package or 'grafana'}"
    install = f"apt-get update && apt-get install -y --no-install-recommends wget {package}"
    text = f"FROM {BASE}\n{command}\nRUN {install} && mkdir -p /prometheus && chmod 777 /tmp /prometheus\n"
    run("docker", "build", "--network", "host", "-t", name, "-", stdin=text, DOCKER_BUILDKIT="0")
    return name


@pytest.fixture(scope="module")
def settings(images: dict[str, str]) -> dict[str, str]:
    """What the compose file reads from the environment."""
    names = ("HTTP_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")
    return {name: str(free_port()) for name in names} | {
        "PYTHON_IMAGE": BASE,
        "PROMETHEUS_IMAGE": pulled("prom/prometheus:v3.5.0", "prometheus", PROMETHEUS),
        "HAPROXY_IMAGE": pulled("haproxy:3.2-alpine", "haproxy", HAPROXY),
        "GRAFANA_IMAGE": pulled("grafana/grafana:12.1.0", "", GRAFANA),
        "COMPOSE_PROJECT_NAME": PROJECT,
    }


def compose(*arguments: str, settings: dict[str, str], profile: str = "cpu") -> str:
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    return run(*program, *arguments, COMPOSE_PROFILES=profile, **settings)


def eventually(condition: Any, seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (httpx2.TransportError, KeyError, IndexError):
            pass
        assert time.monotonic() < give_up
        time.sleep(0.5)


def test_the_image_that_serves_is_small_and_without_rights(images: dict[str, str]) -> None:
    image = inspected("image", images["cpu"])
    assert image["Config"]["User"] == "10001"
    assert image["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert image["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    above = image["Size"] - inspected("image", BASE)["Size"]
    assert above < MOST, f"{above / MEGABYTE:.0f} MB"
    listed = run("docker", "run", "--rm", "--entrypoint", "python", images["cpu"], "-c", "help('modules')")
    assert "onnxruntime" in listed
    assert "torch" not in listed.split()


def test_one_processor_a_read_only_root_and_512_megabytes_are_enough(images: dict[str, str]) -> None:
    """Fault test 22: the quota is seen, and nothing is written but to a temporary folder."""
    volume = f"{PROJECT}-small"
    run("docker", "run", "--rm", "-v", f"{volume}:/models", images["export"], "convert", "builtin:digits",
        "--name", "digits", "--out", "/models")  # fmt: skip
    limits = ["--cpus=1", "--memory=512m", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    name = f"{PROJECT}-small"
    try:
        run("docker", "run", "-d", "--name", name, *limits, "-v", f"{volume}:/models:ro", images["cpu"])
        eventually(lambda: inspected("container", name)["State"]["Health"]["Status"] == "healthy")
        run("docker", "stop", "-t", "40", name)
        assert inspected("container", name)["State"]["ExitCode"] == 0
        assert "Traceback" not in run("docker", "logs", name)
    finally:
        run("docker", "rm", "-f", name)
        run("docker", "volume", "rm", volume)


@pytest.fixture
def up(settings: dict[str, str]) -> Iterator[dict[str, str]]:
    """The compose file as `docker compose up` starts it."""
    try:
        compose("up", "-d", "--no-build", settings=settings)
        eventually(lambda: httpx2.get(f"http://127.0.0.1:{settings['HTTP_PORT']}/health/ready").status_code == 200)
        yield settings
    finally:
        compose("down", "-v", "--remove-orphans", settings=settings)


def test_up_classifies_a_digit_and_prometheus_sees_it(up: dict[str, str], seven: Path) -> None:
    service = f"http://127.0.0.1:{up['HTTP_PORT']}"
    answer = httpx2.post(f"{service}/classify", files={"file": seven.read_bytes()}).json()
    assert answer["predictions"][0]["label"] == "seven"

    def counted() -> bool:
        query = 'sum(classify_requests_total{job="classifier",code="200"})'
        found = httpx2.get(f"http://127.0.0.1:{up['PROMETHEUS_PORT']}/api/v1/query", params={"query": query}).json()
        return float(found["data"]["result"][0]["value"][1]) >= 1

    eventually(counted)
    eventually(lambda: httpx2.get(f"http://127.0.0.1:{up['GRAFANA_PORT']}/").status_code == 200)
    rules = httpx2.get(f"http://127.0.0.1:{up['PROMETHEUS_PORT']}/api/v1/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) == 20
    (name,) = [
        each
        for each in run("docker", "ps", "--format", "{{.Names}}").split()
        if "service_1" in each or "service-1" in each
    ]
    container = inspected("container", name)
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert container["Config"]["StopTimeout"] == 40


def test_replicas_behind_the_balancer_are_replaced_under_load_without_a_failed_request(
    settings: dict[str, str], samples: list[Path]
) -> None:
    port = int(settings["HTTP_PORT"])
    shots = [Shot(post("/classify", {"Content-Type": "image/png"}, each.read_bytes())) for each in samples]
    try:
        compose("up", "-d", "--no-build", "--scale", "replica=3", settings=settings, profile="scale")
        eventually(lambda: httpx2.get(f"http://127.0.0.1:{port}/health/ready").status_code == 200)
        names = [each for each in run("docker", "ps", "--format", "{{.Names}}").split() if "replica" in each]
        assert len(names) == 3
        for name in names:
            eventually(lambda name=name: inspected("container", name)["State"]["Health"]["Status"] == "healthy")
        time.sleep(2)  # HAProxy finds the names and sees each of them twice
        outcomes = []
        loading = threading.Thread(target=lambda: outcomes.append(open_loop(port, shots, 50, 45)))
        loading.start()
        for name in names:
            run("docker", "stop", "-t", "40", name)
            run("docker", "start", name)
            eventually(lambda name=name: inspected("container", name)["State"]["Health"]["Status"] == "healthy")
            time.sleep(2)
        loading.join()
        assert set(outcomes[0].statuses) == {200}, outcomes[0].statuses
        assert outcomes[0].statuses[200] > 2000
    finally:
        compose("down", "-v", "--remove-orphans", settings=settings, profile="scale")
