"""Whatever is sent to a documented route, or to /v2, gets a documented answer: never 5xx, never a traceback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.opening import Opener
from service.settings import Settings
from tests.backends import ColourBackend
from tests.service.client import encode, wait_until_ready
from tests.system.server import running

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
EXAMPLES = 60
FUZZED = 1_500


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    file = tmp_path_factory.mktemp("models") / "colours" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.touch()
    app = create_app(Settings(models=file.parents[2], model_control="explicit"), Opener(ColourBackend().open))
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


def test_every_route_keeps_to_its_document(application: TestClient) -> None:
    document = schemathesis.openapi.from_dict(application.get("/openapi.json").json())
    operations: list[Any] = [each.ok() for each in document.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) > 15
    for operation in operations:

        @settings(max_examples=EXAMPLES, derandomize=False, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def keeps(case: Any) -> None:
            _check(case, application)

        keeps()


def _check(case: Any, application: TestClient) -> None:
    request = case.as_transport_kwargs(base_url="http://testserver")
    response = application.request(
        request["method"],
        request["url"],
        params=request.get("params"),
        headers={name: value for name, value in (request.get("headers") or {}).items() if value.isascii()},
        content=request["data"] if isinstance(request.get("data"), bytes) else None,
        json=request.get("json"),
        files=[(str(name), _uploaded(value)) for name, value in request.get("files") or []] or None,
    )
    # A deadline of a millisecond is among what it tries.
    if response.status_code >= 500:
        under_v2 = case.operation.path.startswith("/v2")
        assert response.status_code == 504, response.text
        assert under_v2 or response.json()["code"] == "deadline_exceeded", response.text
    assert "Traceback" not in response.text
    if response.status_code < 400:
        return
    if case.operation.path.startswith("/v2"):
        assert set(response.json()) == {"error"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert {"type", "title", "status", "detail", "code"} <= response.json().keys()


def _uploaded(value: Any) -> tuple[str, bytes]:
    """What was made up for a part, as a file."""
    content = value[1] if isinstance(value, tuple) else value
    return "image", content if isinstance(content, bytes) else str(content).encode(errors="replace")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["images", "encoded", "", "other"]) | JSON,
        "datatype": st.sampled_from(["UINT8", "BYTES", "FP32", "INT64", "uint8"]) | JSON,
        "shape": st.lists(st.integers(-2, 9), max_size=5) | st.just([1, 32, 32, 3]) | JSON,
        "data": st.just([0] * 3072) | st.lists(st.integers(-1, 256), max_size=200) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 10**12) | JSON}) | JSON,
    },
)
BODY = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=10) | JSON,
        "inputs": st.lists(TENSOR | JSON, max_size=3) | JSON,
        "outputs": st.lists(
            st.fixed_dictionaries({"name": st.sampled_from(["logits", "x"]) | JSON}, optional={"parameters": JSON})
            | JSON,
            max_size=3,
        )
        | JSON,
        "parameters": st.fixed_dictionaries(
            {}, optional={"priority": JSON, "timeout": JSON, "binary_data_output": JSON, "classification": JSON}
        )
        | JSON,
    },
)


@pytest.fixture(scope="module")
def digits(digits_models: Path) -> Iterator[httpx2.Client]:
    with running(digits_models) as server, httpx2.Client(base_url=f"{server.url}/v2/models/digits") as client:
        yield client


@settings(max_examples=FUZZED, derandomize=False, suppress_health_check=list(HealthCheck))
@given(
    body=BODY | JSON,
    tail=st.binary(max_size=300) | st.just(bytes(3072)),
    header_length=st.none() | st.integers(-5, 2_000) | st.text("0123456789+- x", max_size=25),
    path=st.sampled_from(["infer", "versions/1/infer", "versions/2/infer"]),
    encoding=st.sampled_from([None, "gzip", "deflate", "identity", "br", "gzip, gzip"]),
)
def test_no_inference_request_is_a_failure_of_the_server_and_both_ways_answer_alike(
    digits: httpx2.Client, body: Any, tail: bytes, header_length: Any, path: str, encoding: str | None
) -> None:
    head = json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    if header_length is not None:
        length = len(head) if header_length == 0 else header_length
        headers["inference-header-content-length"] = str(length).strip()
    if encoding:
        headers["content-encoding"] = encoding
    content = head + (tail if header_length is not None else b"")
    response = digits.post(path, content=content, headers=headers)
    assert response.status_code < 500, response.text
    if response.status_code != 200:
        assert set(response.json()) == {"error"}
    documented = digits.post(path, content=iter([content]), headers=headers)  # chunks leave the short way
    assert (documented.status_code, documented.content) == (response.status_code, response.content)


def test_it_still_answers_after_all_that(application: TestClient) -> None:
    answer = application.post("/classify", content=encode("red"), headers={"content-type": "image/png"})
    assert answer.json()["predictions"][0]["label"] == "red"
    assert "classify_images_in_flight 0.0" in application.get("/metrics").text
