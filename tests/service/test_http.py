"""The HTTP interface of the contract, through the application."""

import concurrent.futures
import gzip
import re
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from service.app import create_app
from service.opening import Opener
from service.settings import read_settings
from tests.backends import ColourBackend, colour_card
from tests.service.client import COLOURS, encode, serving
from tests.waiting import PATIENCE, eventually

PNG = {"content-type": "image/png"}
OTHER_MEDIA = ["text/plain", "application/json", "application/x-www-form-urlencoded", "video/mp4"]


@pytest.fixture
def backend() -> ColourBackend:
    return ColourBackend()


@pytest.fixture
def client(colour_models: Path, backend: ColourBackend) -> Iterator[TestClient]:
    with serving(colour_models, backend) as client:
        yield client


def classify(client: TestClient, colour: str = "red", **parameters: object) -> Response:
    query = {key: str(value) for key, value in parameters.items()}
    return client.post("/classify", content=encode(colour), headers=PNG, params=query)


def assert_problem(response: Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) == {"type", "title", "status", "detail", "code"}
    assert (body["status"], body["code"]) == (status, code)
    return body


def sample(client: TestClient, name: str, **labels: str) -> float:
    """A series' value from /metrics, as Prometheus would read it."""
    for line in client.get("/metrics").text.splitlines():
        series, _, value = line.rpartition(" ")
        if series.split("{")[0] == name and all(f'{key}="{label}"' in series for key, label in labels.items()):
            return float(value)
    raise AssertionError(f"no series {name} {labels}")


# --- one image -----------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_raw_body_is_classified(client: TestClient, colour: str, form: str) -> None:
    response = client.post("/classify", content=encode(colour, form), headers={"content-type": f"image/{form.lower()}"})
    assert response.status_code == 200
    body = response.json()
    assert list(body) == ["model", "version", "predictions"]
    assert (body["model"], body["version"]) == ("colours", 1)
    assert [set(each) for each in body["predictions"]] == [{"label", "index", "probability"}] * 3
    best = body["predictions"][0]
    assert (best["label"], best["index"]) == (colour, list(COLOURS).index(colour))
    probabilities = [each["probability"] for each in body["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("media_type", ["application/octet-stream", "IMAGE/PNG", "image/png; charset=binary", None])
def test_the_declared_media_type_may_be_any_image_or_octets_or_absent(
    client: TestClient, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    assert client.post("/classify", content=encode("blue"), headers=headers).json()["predictions"][0]["label"] == "blue"


def test_a_form_with_one_file_is_classified(client: TestClient) -> None:
    response = client.post("/classify", files={"file": ("x.png", encode("green"))}, data={"note": "ignored"})
    assert response.json()["predictions"][0]["label"] == "green"


def test_top_k_bounds_the_predictions(client: TestClient) -> None:
    assert len(classify(client, top_k=1).json()["predictions"]) == 1
    assert len(classify(client, top_k=3).json()["predictions"]) == 3


def test_every_answer_carries_the_request_id_and_the_stages(client: TestClient) -> None:
    response = client.post("/classify", content=encode("red"), headers=PNG | {"x-request-id": "order-66"})
    assert response.headers["x-request-id"] == "order-66"
    stages = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    assert [stage for stage, _ in stages] == ["decode", "queue", "inference", "respond", "total"]
    *parts, total = (float(milliseconds) for _, milliseconds in stages)
    assert 0 < sum(parts) <= total + 0.1
    for path in ("/health/live", "/nowhere"):
        response = client.get(path)
        assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
        assert "total;dur=" in response.headers["server-timing"]


@pytest.mark.parametrize(
    ("version", "said"), [("0", "greater than or equal to 1"), ("latest", "or: Input should be 'stable' or 'canary'")]
)
def test_a_parameter_that_is_wrong_is_named(client: TestClient, version: str, said: str) -> None:
    detail = assert_problem(classify(client, version=version), 422, "invalid_parameter")["detail"]
    assert detail.startswith("version: Input should be")
    assert said in detail


def test_a_form_without_a_byte_is_no_body(client: TestClient) -> None:
    form = {"content-type": "multipart/form-data; boundary=X"}
    assert_problem(client.post("/classify", content=iter([b""]), headers=form), 400, "empty_body")


@pytest.mark.parametrize(
    "sent",
    [
        "{550e8400-e29b-41d4-a716-446655440000}",
        "Root=1-67891233-abcdef012345678912345678;Sampled=1",
        "a,b|c~d#e",
        "x" * 256,
    ],
)
def test_a_request_id_is_taken_as_it_was_sent(client: TestClient, sent: str) -> None:
    assert client.get("/health/live", headers={"x-request-id": sent}).headers["x-request-id"] == sent


@pytest.mark.parametrize("bad", ["two words", "x" * 257, 'a"b', "a'b", "a\\b", "a`b", "<script>", ""])
def test_a_request_id_that_is_no_plain_token_is_replaced(client: TestClient, bad: str) -> None:
    response = client.get("/health/live", headers={"x-request-id": bad})
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({"top_k": "0"}, "top_k"),
        ({"top_k": "-1"}, "top_k"),
        ({"top_k": "4"}, "top_k"),
        ({"top_k": "x"}, "top_k"),
        ({"timeout_ms": "abc"}, "timeout_ms"),
        ({"timeout_ms": "0"}, "timeout_ms"),
        ({"version": "0"}, "version"),
        ({"version": "one"}, "version"),
        ({"topk": "3"}, "topk"),
    ],
)
def test_a_bad_parameter_is_named(client: TestClient, query: dict[str, str], named: str) -> None:
    for path in ("/classify", "/classify/batch"):
        response = client.post(path, content=encode("red"), headers=PNG, params=query)
        assert named in assert_problem(response, 422, "invalid_parameter")["detail"]


@pytest.mark.parametrize("query", [{"model": "nothing"}, {"version": "9"}, {"model": "../colours"}])
def test_a_model_that_is_not_served_is_unknown(client: TestClient, query: dict[str, str]) -> None:
    assert_problem(client.post("/classify", content=b"x", params=query), 404, "unknown_model")


def test_no_body_is_an_empty_body(client: TestClient) -> None:
    assert_problem(client.post("/classify"), 400, "empty_body")
    assert_problem(client.post("/classify", headers=PNG), 400, "empty_body")
    assert_problem(client.post("/classify", content=iter([b""]), headers=PNG), 400, "empty_body")
    assert_problem(client.post("/classify", files={"file": ("x.png", b"")}), 400, "empty_body")
    assert_problem(client.post("/classify", files={"image": ("x.png", encode("red"))}), 400, "empty_body")
    assert_problem(client.post("/classify/batch", files={"file": ("x.png", encode("red"))}), 400, "empty_body")


@pytest.mark.parametrize("media_type", OTHER_MEDIA)
def test_a_body_of_another_kind_is_unsupported(client: TestClient, media_type: str) -> None:
    headers = {"content-type": media_type}
    assert_problem(client.post("/classify", content=encode("red"), headers=headers), 415, "unsupported_media_type")


def test_a_batch_must_be_a_form(client: TestClient) -> None:
    response = client.post("/classify/batch", content=encode("red"), headers=PNG)
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body", [b"hello", encode("red", "JPEG", size=64)[:-60], encode("red")[:40]], ids=["text", "cut jpeg", "cut png"]
)
def test_what_is_no_complete_image_is_undecodable(client: TestClient, body: bytes) -> None:
    assert_problem(client.post("/classify", content=body, headers=PNG), 400, "undecodable_image")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary at all"),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\ncut off'),
        ("multipart/form-data; boundary=x", b"--x\r\nbroken header\r\n\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=", b""),
    ],
)
def test_a_form_that_is_no_form_is_malformed(client: TestClient, content_type: str, body: bytes) -> None:
    response = client.post("/classify", content=iter([body]), headers={"content-type": content_type})
    assert_problem(response, 400, "malformed_multipart")


def test_two_files_belong_to_the_batch_route(client: TestClient) -> None:
    files = [("file", ("a.png", encode("red"))), ("file", ("b.png", encode("red")))]
    assert (
        "/classify/batch" in assert_problem(client.post("/classify", files=files), 422, "invalid_parameter")["detail"]
    )


def test_too_many_bytes_are_refused_with_and_without_their_length(colour_models: Path) -> None:
    with serving(colour_models, max_image_bytes=1000, max_request_bytes=4000) as client:
        body = b"x" * 1001
        assert_problem(client.post("/classify", content=body, headers=PNG), 413, "body_too_large")
        assert_problem(client.post("/classify", content=iter([body]), headers=PNG), 413, "body_too_large")
        assert_problem(client.post("/classify", files={"file": ("x", body)}), 413, "body_too_large")
        files = [("files", (str(i), b"x" * 900)) for i in range(5)]
        assert_problem(client.post("/classify/batch", files=files), 413, "body_too_large")


def test_too_many_pixels_are_refused(colour_models: Path) -> None:
    with serving(colour_models, max_image_pixels=63) as client:
        assert_problem(classify(client), 413, "image_too_large")


def test_probes_may_ask_with_head(client: TestClient) -> None:
    for path in ("/health/live", "/health/ready"):
        response = client.head(path)
        assert (response.status_code, response.content) == (200, b"")


def test_unknown_routes_and_verbs_are_problems_too(client: TestClient) -> None:
    assert_problem(client.get("/nowhere"), 404, "not_found")
    assert_problem(client.get("/classify"), 405, "method_not_allowed")


def test_a_failure_of_ours_says_nothing_of_the_inside(client: TestClient, backend: ColourBackend) -> None:
    backend.error = ValueError("secret path /srv/models")
    body = assert_problem(classify(client), 500, "internal_error")
    assert "secret" not in str(body)
    backend.error = None
    assert classify(client).status_code == 200


@pytest.mark.parametrize("failure", ["raises", "NaN"])
def test_the_log_has_the_reason_of_a_failure_under_the_request_id(
    failure: str, client: TestClient, backend: ColourBackend, caplog: pytest.LogCaptureFixture
) -> None:
    if failure == "raises":
        backend.error = ValueError("the reason")
    else:
        backend.poison = True
    response = client.post("/classify", content=encode("red"), headers=PNG | {"x-request-id": "trace-me"})
    assert_problem(response, 500, "internal_error")
    (record,) = [each for each in caplog.records if each.message == "request failed"]
    assert record.__dict__["request_id"] == "trace-me"
    assert ("the reason" if failure == "raises" else "not finite") in caplog.text


def test_bodies_that_arrive_together_have_a_bound_of_their_own(colour_models: Path) -> None:
    with serving(colour_models, max_image_bytes=1000, max_request_bytes=1000, max_intake_bytes=1000) as client:
        (parts,) = [client.app.state.parts]  # type: ignore[attr-defined]
        with parts.intake.open() as share:
            share.take(990)
            assert_problem(classify(client), 429, "overloaded")
        assert classify(client).status_code == 200
        assert parts.intake.held == 0


def test_an_answer_before_the_end_of_the_body_closes_the_connection(client: TestClient) -> None:
    early = client.post("/classify", content=encode("red"), headers=PNG, params={"model": "nothing"})
    assert early.headers["connection"] == "close"
    assert "connection" not in classify(client).headers


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_answered_in_order_and_a_bad_image_fails_alone(colour_models: Path) -> None:
    with serving(colour_models, max_image_bytes=2000) as client:
        contents = [encode("blue"), b"no image", encode("red"), b"", b"x" * 2001, encode("green", "JPEG")]
        files = [("files", (f"{i}", content)) for i, content in enumerate(contents)]
        response = client.post("/classify/batch", files=files, params={"top_k": "1"})
        assert response.status_code == 200
        results = response.json()["results"]
        assert [each["predictions"][0]["label"] if "predictions" in each else None for each in results] == [
            "blue", None, "red", None, None, "green",
        ]  # fmt: skip
        codes = [each["error"]["code"] for each in results if "error" in each]
        assert codes == ["undecodable_image", "empty_body", "body_too_large"]
        assert sample(client, "classify_rejected_total", reason="undecodable_image") == 1


def test_a_batch_has_a_largest_number_of_images(colour_models: Path) -> None:
    with serving(colour_models, max_request_images=3) as client:
        files = [("files", (str(i), encode("red"))) for i in range(4)]
        assert_problem(client.post("/classify/batch", files=files), 413, "body_too_large")
        assert client.post("/classify/batch", files=files[:3]).status_code == 200


def test_a_batch_of_nothing_but_bad_images_is_still_an_answer(client: TestClient) -> None:
    response = client.post("/classify/batch", files=[("files", ("a", b"bad"))])
    assert response.status_code == 200
    assert response.json()["results"][0]["error"]["code"] == "undecodable_image"


# --- load ----------------------------------------------------------------------------------------


def test_concurrent_requests_each_get_the_answer_for_their_own_image(client: TestClient) -> None:
    colours = list(COLOURS) * 40
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda colour: classify(client, colour, top_k=1).json(), colours))
    assert [each["predictions"][0]["label"] for each in answers] == colours


def test_a_full_queue_answers_429_with_retry_after_and_recovers(colour_models: Path, backend: ColourBackend) -> None:
    with serving(colour_models, backend, max_queue=2, max_request_images=2) as client:
        backend.hold()
        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            running = [threads.submit(classify, client)]
            assert backend.busy.wait(PATIENCE)
            running += [threads.submit(classify, client) for _ in range(2)]
            eventually(lambda: sample(client, "classify_queue_depth") == 2)
            refused = classify(client)
            assert_problem(refused, 429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            assert client.get("/health/live").status_code == 200
            backend.free.set()
            assert [each.result().status_code for each in running] == [200] * 3
        assert classify(client).status_code == 200
        assert sample(client, "classify_rejected_total", reason="overloaded") == 1
        assert sample(client, "classify_queue_depth") == sample(client, "classify_images_in_flight") == 0


def test_a_deadline_that_passes_in_the_queue_answers_504_and_is_never_run(
    colour_models: Path, backend: ColourBackend
) -> None:
    with serving(colour_models, backend) as client:
        warmed_up = len(backend.batches)
        backend.hold()
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            running = threads.submit(classify, client)
            assert backend.busy.wait(PATIENCE)
            assert_problem(classify(client, timeout_ms=2000), 504, "deadline_exceeded")
            backend.free.set()
            assert running.result().status_code == 200
        eventually(lambda: sample(client, "classify_images_in_flight") == 0)
        assert backend.batches[warmed_up:] == [1]


def test_a_tensor_that_waits_to_be_read_has_until_the_deadline_too(colour_models: Path, backend: ColourBackend) -> None:
    free = threading.Event()
    with serving(colour_models, backend, request_timeout_ms=300, threads=1) as client:
        assert client.portal is not None
        pipeline = client.app.state.parts.pipeline  # type: ignore[attr-defined]
        busy = client.portal.start_task_soon(pipeline.aside, partial(free.wait, PATIENCE))
        began = time.monotonic()
        refused = client.post(
            "/v2/models/colours/infer", content=gzip.compress(b"{}"), headers={"content-encoding": "gzip"}
        )
        took = time.monotonic() - began
        free.set()
        busy.result()
    assert refused.status_code == 504
    assert 0.3 <= took < PATIENCE


# --- models --------------------------------------------------------------------------------------


def test_models_are_listed_with_their_cards(client: TestClient) -> None:
    (model,) = client.get("/models").json()["models"]
    assert model == client.get("/models/colours").json()
    (version,) = model["versions"]
    assert (version["version"], version["state"], version["device"]) == (1, "ready", "cpu")
    batches = version["costs"]["batches"]
    assert batches[0]["batch_size"] == 1
    for each in batches:
        series = f'model_batch_seconds{{batch_size="{each["batch_size"]}",model="colours",version="1"}}'
        assert (f"{series} " in client.get("/metrics").text) is each["used"]
    assert version["card"]["architecture"] == "mean"
    assert version["card"]["golden"] == 0
    assert client.get("/models/colours/labels").json()["labels"] == list(COLOURS)
    assert_problem(client.get("/models/nothing"), 404, "unknown_model")
    assert_problem(client.get("/models/nothing/labels"), 404, "unknown_model")


def test_versions_are_served_side_by_side_and_the_highest_by_default(colour_models: Path) -> None:
    for version in (2, 10):
        shutil.copytree(colour_models / "colours" / "1", colour_models / "colours" / str(version))
    with serving(colour_models) as client:
        assert classify(client).json()["version"] == 10
        assert classify(client, version=2).json()["version"] == 2
        assert [each["version"] for each in client.get("/models/colours").json()["versions"]] == [10, 2, 1]


def test_with_several_models_one_is_named_or_set_as_default(colour_models: Path) -> None:
    shutil.copytree(colour_models / "colours", colour_models / "paints")
    with serving(colour_models) as client:
        assert "colours, paints" in assert_problem(classify(client), 422, "invalid_parameter")["detail"]
        assert classify(client, model="paints").json()["model"] == "paints"
    with serving(colour_models, default_model="paints") as client:
        assert classify(client).json()["model"] == "paints"


def test_a_model_that_fails_to_load_is_explained_and_the_others_are_served(colour_models: Path) -> None:
    shutil.copytree(colour_models / "colours", colour_models / "damaged")
    good = ColourBackend()
    bad = ColourBackend(colour_card().model_copy(update={"labels": ("one", "two")}))
    app = create_app(
        read_settings({"models": colour_models}),
        Opener(lambda path: (bad if "damaged" in str(path) else good).open(path)),
    )
    with TestClient(app) as client:
        eventually(lambda: client.get("/health/ready").json()["phase"] == "failed")
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert "damaged version 1: the graph gives 3 classes, but there are 2 labels" in ready.json()["reason"]
        assert client.get("/health/live").status_code == 200
        assert classify(client, model="colours").status_code == 200
        response = classify(client, model="damaged")
        assert_problem(response, 503, "model_unavailable")
        assert "retry-after" in response.headers
        (version,) = client.get("/models/damaged").json()["versions"]
        assert (version["state"], version["card"]) == ("failed", None)


def test_until_the_models_are_ready_requests_get_503_and_probes_tell_the_phase(
    colour_models: Path, backend: ColourBackend
) -> None:
    backend.hold()  # the warm-up cannot finish
    app = create_app(read_settings({"models": colour_models}), Opener(backend.open))
    with TestClient(app) as client:
        assert backend.busy.wait(PATIENCE)
        eventually(lambda: client.get("/health/ready").json()["phase"] == "warmup 1/2")
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        response = classify(client)
        assert_problem(response, 503, "starting")
        assert "retry-after" in response.headers
        assert_problem(client.get("/models/colours"), 503, "starting")
        backend.free.set()
        eventually(lambda: client.get("/health/ready").status_code == 200)
        assert classify(client).status_code == 200
    assert backend.closed


def test_a_dead_device_thread_turns_both_probes(client: TestClient, backend: ColourBackend) -> None:
    backend.error = SystemExit("killed")
    response = classify(client)
    assert_problem(response, 503, "model_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    eventually(lambda: client.get("/health/live").status_code == 503)
    assert "device thread" in client.get("/health/live").json()["reason"]
    assert client.get("/health/ready").status_code == 503
    assert_problem(classify(client), 503, "model_unavailable")


# --- metrics, documents, page --------------------------------------------------------------------


def test_the_metrics_of_the_contract_count_what_happened(client: TestClient) -> None:
    for colour in ("red", "red", "blue"):
        classify(client, colour)
    classify(client, top_k=0)
    client.post("/classify", content=b"bad", headers=PNG)
    served = {"model": "colours", "version": "1"}
    assert sample(client, "classify_requests_total", code="200", **served) == 3
    assert sample(client, "classify_requests_total", code="400", **served) == 1
    assert sample(client, "classify_requests_total", code="422", model="none", version="none") == 1
    assert sample(client, "classify_request_seconds_count") == 5
    for stage, count in {"decode": 3, "queue": 3, "inference": 3, "respond": 3}.items():
        assert sample(client, "classify_stage_seconds_count", stage=stage) == count
    assert sample(client, "classify_batch_size_sum") == 3
    assert sample(client, "classify_rejected_total", reason="undecodable_image") == 1
    assert sample(client, "classify_rejected_total", reason="overloaded") == 0
    assert sample(client, "classify_predictions_total", model="colours", label="red") == 2
    assert sample(client, "classify_confidence_count") == 3
    assert sample(client, "model_info", architecture="mean", precision="fp32", device="cpu", **served) == 1
    assert sample(client, "model_load_seconds", **served) > 0
    assert sample(client, "process_resident_memory_bytes") > 0


def test_no_caller_can_make_new_series(client: TestClient) -> None:
    classify(client)
    client.post("/classify", params={"model": "warm-up"})
    before = len(client.get("/metrics").text.splitlines())
    for i in range(50):
        client.post("/classify", params={"model": f"model-{i}"})
        client.get(f"/path-{i}")
    assert len(client.get("/metrics").text.splitlines()) == before


def test_the_documents_and_the_page_use_no_outside_resource(client: TestClient) -> None:
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.status_code == 200
        assert "https://" not in page.text.replace("https://fastapi", "")
        assert "http://" not in page.text
        for link in re.findall(r'(?:src|href)="(/[^"]+)"', page.text):
            assert client.get(link).status_code == 200, link
    assert '"validatorUrl": null' in client.get("/docs").text
    assert client.get("/redoc").status_code == 404


def test_the_page_may_load_nothing_from_elsewhere_and_be_framed_by_nobody(client: TestClient) -> None:
    for path in ("/", "/page/page.js", "/page/page.css"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert (
        "access-control-allow-origin" not in client.get("/models", headers={"origin": "https://other.example"}).headers
    )


def test_the_openapi_document_describes_bodies_and_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    classify_route = document["paths"]["/classify"]["post"]
    assert set(classify_route["requestBody"]["content"]) == {
        "image/*", "application/octet-stream", "multipart/form-data",
    }  # fmt: skip
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= set(classify_route["responses"])
    assert set(classify_route["responses"]["422"]["content"]) == {"application/problem+json"}
    assert "security" not in classify_route


def test_the_openapi_document_describes_the_inference_protocol(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    under_v2 = {
        f"{method} {path}": operation
        for path, methods in document["paths"].items()
        if path.startswith("/v2")
        for method, operation in methods.items()
    }
    assert len(under_v2) > 15
    for operation in under_v2.values():
        assert set(operation["responses"]) == {"200", "default"}
        (schema,) = operation["responses"]["default"]["content"].values()
        assert schema["schema"]["$ref"].endswith("/ProtocolError")
    bodies = {name for name, operation in under_v2.items() if "requestBody" in operation}
    assert bodies == {name for name in under_v2 if name.startswith("post")}
    inference = under_v2["post /v2/models/{name}/infer"]["requestBody"]
    assert inference["required"]
    assert set(inference["content"]) == {"application/json", "application/octet-stream"}


def test_the_openapi_document_says_which_routes_need_a_key(colour_models: Path) -> None:
    with serving(colour_models, api_keys="secret") as client:
        paths = client.get("/openapi.json").json()["paths"]
    guarded = {
        (path, method) for path, methods in paths.items() for method, each in methods.items() if "security" in each
    }
    assert {
        ("/classify", "post"),
        ("/v2/models/{name}/infer", "post"),
        ("/models/{name}/aliases/{alias}", "put"),
    } < guarded
    assert paths["/classify"]["post"]["security"] == [{"HTTPBearer": []}, {"APIKeyHeader": []}]
    open_to_all = {path for path, methods in paths.items() for method in methods if (path, method) not in guarded}
    assert open_to_all == {"/health/live", "/health/ready", "/metrics", "/v2/health/live", "/v2/health/ready"}
