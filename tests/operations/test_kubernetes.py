"""The manifests against the published schemas of their kinds, and against what the service really does."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
RULES = Path(__file__).parents[2] / "docker" / "prometheus" / "rules.yml"
API = "1.34"
# Of operators; which package and version each is from stands in the file.
SCHEMAS = json.loads(Path(__file__).with_name("schemas.json").read_text())
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime", "InferenceService"}


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.relative_to(FOLDER)}:{document['kind']}", document)
        for path in sorted(FOLDER.rglob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def only(kind: str, folder: str = "base") -> dict[str, Any]:
    (found,) = [each for name, each in documents() if each["kind"] == kind and name.startswith(folder)]
    return found


PLAIN = [(name, each) for name, each in documents() if each["kind"] not in {*CUSTOM, "Kustomization"}]
OF_OPERATORS = [(name, each) for name, each in documents() if each["kind"] in CUSTOM]


@pytest.mark.parametrize("document", [each for _, each in PLAIN], ids=[name for name, _ in PLAIN])
def test_it_fits_the_schema_of_the_api(document: dict[str, Any]) -> None:
    if document["kind"] == "Deployment" and "selector" not in document["spec"]:  # kustomize adds it, and the labels
        labels = {"app.kubernetes.io/name": "resnet-service"}
        document = {**document, "spec": {**document["spec"], "selector": {"matchLabels": labels}}}
        document["spec"]["template"] = {**document["spec"]["template"], "metadata": {"labels": labels}}
    kubernetes_validate.validate(document, API, strict=True)


@pytest.mark.parametrize("document", [each for _, each in OF_OPERATORS], ids=[name for name, _ in OF_OPERATORS])
def test_it_fits_the_schema_of_its_operator(document: dict[str, Any]) -> None:
    jsonschema.validate(document, SCHEMAS[document["kind"]])
    for name in document["spec"]:  # the schema is not one that lets everything through
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "spec": {f"{name}x": document["spec"][name]}}, SCHEMAS[document["kind"]])


def test_every_custom_kind_is_there() -> None:
    assert {each["kind"] for _, each in OF_OPERATORS} == CUSTOM


def test_every_resource_and_patch_is_a_file_that_is_there() -> None:
    for path in FOLDER.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        named = [*content["resources"], *(each["path"] for each in content.get("patches", []) if "path" in each)]
        for name in named:
            assert (path.parent / name).exists(), f"{path}: {name}"
    base = yaml.safe_load((FOLDER / "base" / "kustomization.yaml").read_text())["resources"]
    assert set(base) == {path.name for path in (FOLDER / "base").glob("*.yaml")} - {"kustomization.yaml"}


def test_every_variable_is_a_setting_and_every_probe_a_route(tmp_path: Path) -> None:
    routes = create_app(Settings(models=tmp_path)).openapi()["paths"]
    containers = [
        *only("Deployment")["spec"]["template"]["spec"]["containers"],
        *only("Deployment", "overlays/gpu")["spec"]["template"]["spec"]["containers"],
        *only("ServingRuntime", "kserve")["spec"]["containers"],
    ]
    for container in containers:
        values = {each["name"].removeprefix("SERVICE_").lower(): each["value"] for each in container.get("env", [])}
        Settings(**values)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["path"] in routes


def test_the_grace_of_the_pod_is_above_the_drain() -> None:
    pod = only("Deployment")["spec"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    drain = int(environment["SERVICE_DRAIN_DELAY_MS"]) + int(environment["SERVICE_DRAIN_TIMEOUT_MS"])
    assert pod["terminationGracePeriodSeconds"] * 1000 > drain


def test_the_operators_rules_are_prometheus_rules() -> None:
    assert only("PrometheusRule")["spec"] == yaml.safe_load(RULES.read_text())


def test_the_job_that_the_rules_ask_for_is_the_monitors() -> None:
    label = only("ServiceMonitor")["spec"]["jobLabel"]
    admin = next(each for name, each in documents() if each.get("metadata", {}).get("name") == "resnet-service-admin")
    assert admin["metadata"]["labels"][label] == "classifier"
    assert 'job="classifier"' in RULES.read_text()


def test_the_scaler_asks_what_the_service_measures() -> None:
    trigger = only("ScaledObject", "overlays/keda")["spec"]["triggers"][0]["metadata"]
    assert 'classify_stage_seconds_sum{stage="queue"}' in trigger["query"]
    assert float(trigger["threshold"]) > 0
