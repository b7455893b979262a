"""Plain requests, answered by the connection itself: as the documented routes would, however they arrive."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.system.server import Server, running
from tests.system.wire import INFER, answers, connected, form_request, is_closed, mixed, request, tensor_request
from tests.waiting import eventually

VOLATILE = {"x-request-id", "server-timing", "date", "content-length"}


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as started:
        yield started


@pytest.mark.parametrize(
    ("body", "query", "headers"),
    [
        ("image", {}, {}),
        ("image", {"top_k": "2", "model": "digits", "version": "1"}, {"x-priority": "high"}),
        ("image", {"timeout_ms": "5000"}, {"content-type": "application/octet-stream"}),
        ("image", {"top_k": "99"}, {}),
        ("image", {"top_k": "0"}, {}),
        ("image", {"top_k": "1", "unknown": "1"}, {}),
        ("image", {"model": "other"}, {}),
        ("image", {"version": "7"}, {}),
        ("image", {}, {"content-type": "text/plain"}),
        ("image", {}, {"x-priority": "urgent"}),
        ("image", {}, {"connection": "close"}),
        ("not an image", {}, {}),
        ("", {}, {}),
        ("2 MiB", {}, {}),
    ],
)
def test_it_answers_as_the_documented_route(
    server: Server, image: bytes, body: str, query: dict[str, str], headers: dict[str, str]
) -> None:
    content = {"image": image, "2 MiB": image + bytes(2**21)}.get(body, body.encode())
    sent = {"content-type": "image/png"} | headers
    priority = sent.get("x-priority", "normal")
    repeated = [*sent.items(), ("x-priority", priority)]  # leaves the short way
    if "x-priority" not in sent:
        repeated.append(("x-priority", priority))
    short = server.post("/classify", content=content, params=query, headers=sent)
    documented = server.post("/classify", content=content, params=query, headers=repeated)
    assert short.status_code == documented.status_code
    assert short.json() == documented.json()
    # The documented route closes the connection where it refuses before it has read the body.
    ignored = VOLATILE if short.status_code == 200 else VOLATILE | {"connection"}
    assert {key: value for key, value in short.headers.items() if key not in ignored} == {
        key: value for key, value in documented.headers.items() if key not in ignored
    }
    assert {"x-request-id", "server-timing", "date"} <= set(short.headers)


FORMS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "a file": (200, lambda image: form_request(("file", image))),
    "fields beside": (200, lambda image: form_request(("comment", b"it"), ("file", image), ("files", image))),
    "no file": (400, lambda image: form_request(("files", image))),
    "two files": (422, lambda image: form_request(("file", image), ("file", image))),
    "an empty file": (400, lambda _: form_request(("file", b""))),
    "a file that is no image": (400, lambda _: form_request(("file", b"nothing"))),
    "half an image": (400, lambda image: form_request(("file", image[:200]))),
    "no parts": (400, lambda _: form_request()),
    "no end": (400, lambda image: form_request(("file", image), end=b"")),
    "no boundary": (400, lambda image: form_request(("file", image)).replace(b"; boundary=XX", b"")),
    "another boundary": (400, lambda image: form_request(("file", image)).replace(b"; boundary=XX", b"; boundary=YY")),
    "a long boundary": (400, lambda image: form_request(("file", image)).replace(b"=XX", b"=" + b"X" * 300)),
    "a part described twice": (
        400,
        lambda image: form_request(('a"\r\nContent-Disposition: form-data; name="file', image)),
    ),
    "a part described without end": (400, lambda image: form_request((";" * 4000, b""), ("file", image))),
    "too many parts": (413, lambda image: form_request(*[("x", b"")] * 1000, ("file", image))),
}


@pytest.mark.parametrize(("expected", "form"), FORMS.values(), ids=list(FORMS))
def test_a_form_is_answered_as_by_the_documented_route(
    server: Server, image: bytes, expected: int, form: Callable[[bytes], bytes]
) -> None:
    short = form(image)
    documented = short.replace(b"\r\n", b"\r\nX-Priority: normal\r\nX-Priority: normal\r\n", 1)
    found = []
    for each in (short, documented):
        with connected(server) as connection:
            connection.sendall(each)
            ((status, headers, body),) = answers(connection, 1)
        # The documented route closes the connection where it refuses before it has read the body.
        ignored = VOLATILE if status == 200 else VOLATILE | {"connection"}
        found.append(
            (status, json.loads(body), {name: value for name, value in headers.items() if name not in ignored})
        )
    assert found[0] == found[1]
    assert found[0][0] == expected


BLANK: dict[str, object] = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}


def infer_body(**changes: object) -> bytes:
    return json.dumps({"id": "one", "inputs": [BLANK]} | changes).encode()


@pytest.mark.parametrize(
    ("body", "target", "headers"),
    [
        (infer_body(), INFER, {}),
        (infer_body(), "/v2/models/digits/versions/1/infer", {"x-canary-key": "somebody"}),
        (infer_body(parameters={"binary_data_output": True}), INFER, {}),
        (infer_body(outputs=[{"name": "logits", "parameters": {"classification": 3}}]), INFER, {}),
        (infer_body(parameters={"priority": 1, "timeout": 5_000_000}), INFER, {"content-type": "application/json"}),
        (infer_body(inputs=[BLANK | {"shape": [32, 32, 32, 3], "data": [0] * 98304}]), INFER, {}),
        (gzip.compress(infer_body()), INFER, {"content-encoding": "gzip", "accept-encoding": "gzip"}),
        (bytes(3072), INFER, {"inference-header-content-length": "0"}),
        (infer_body(inputs=[]), INFER, {}),
        (b"{", INFER, {}),
        (b"{}", INFER, {"inference-header-content-length": "many"}),
        (b"{}", INFER, {"content-encoding": "br"}),
        (infer_body(), "/v2/models/other/infer", {}),
        (infer_body(), "/v2/models/digits/versions/7/infer", {}),
        (infer_body(), "/v2/models/digits/infer?x=1", {}),
        (infer_body(), "/v2/models/di%67its/infer", {}),
        (infer_body(), "/v2/models/digits/infer/", {}),
        (infer_body(), INFER, {"connection": "close"}),
    ],
)
def test_tensors_are_answered_as_by_the_documented_route(
    server: Server, body: bytes, target: str, headers: dict[str, str]
) -> None:
    sent = {"accept-encoding": "identity"} | headers
    short = server.post(target, content=body, headers=sent)
    documented = server.post(target, content=iter([body]), headers=sent)  # chunks leave the short way
    assert short.status_code == documented.status_code
    assert short.content == documented.content
    # The documented route closes the connection where it refuses before it has read the body.
    ignored = VOLATILE if short.status_code == 200 else VOLATILE | {"connection"}
    assert {key: value for key, value in short.headers.items() if key not in ignored} == {
        key: value for key, value in documented.headers.items() if key not in ignored
    }


@pytest.mark.parametrize("target", ["/classify?model=other", "/v2/models/other/infer"])
def test_a_refusal_by_the_short_way_has_read_the_body_and_keeps_the_connection(server: Server, target: str) -> None:
    with connected(server) as connection:
        for _ in range(2):
            connection.sendall(request(infer_body(), target=target))
            ((status, headers, _),) = answers(connection, 1)
            assert (status, headers.get("connection")) == (404, None)


def test_a_missing_key_gets_the_same_refusal(digits_models: Path, image: bytes) -> None:
    with running(digits_models, "--api-keys", "secret") as guarded:
        refused = guarded.post("/classify", content=image)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert guarded.post("/classify", content=image, headers={"x-api-key": "secret"}).status_code == 200
        refused = guarded.post(INFER, content=infer_body())
        assert (refused.status_code, set(refused.json())) == (401, {"error"})
        assert guarded.post(INFER, content=infer_body(), headers={"x-api-key": "secret"}).is_success


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_however_the_bytes_are_cut_the_answers_come_whole_and_in_order(
    server: Server, image: bytes, data: st.DataObject
) -> None:
    requests = data.draw(mixed(image))
    with connected(server) as connection:
        requests.exchange(connection, 0.002)


def test_a_caller_who_sends_on_and_on_before_reading_gets_every_answer(server: Server, image: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(b"".join(request(image, f"X-Request-Id: {number}") for number in range(200)))
        found = answers(connection, 200)
    assert [headers["x-request-id"] for _, headers, _ in found] == [str(number) for number in range(200)]


def test_a_body_that_does_not_arrive_has_until_its_deadline(server: Server, image: bytes) -> None:
    expired = 'classify_requests_total{code="504",model="digits",version="1"}'
    before = server.counted(expired)
    with connected(server) as connection:
        connection.sendall(request(image, target="/classify?timeout_ms=300")[:-10])
        ((status, headers, body),) = answers(connection, 1)
        assert (status, headers["connection"]) == (504, "close")
        assert b"deadline_exceeded" in body
        assert is_closed(connection)
    assert server.metric(expired) == before + 1


def test_a_tensor_that_does_not_arrive_has_until_the_request_timeout(digits_models: Path) -> None:
    with running(digits_models, "--request-timeout-ms", "300") as impatient, connected(impatient) as connection:
        connection.sendall(tensor_request()[:-10])
        ((status, headers, body),) = answers(connection, 1)
        assert (status, headers["connection"], headers["content-type"]) == (504, "close", "application/json")
        assert set(json.loads(body)) == {"error"}
        assert is_closed(connection)


def test_a_caller_who_leaves_while_sending_is_counted_and_leaves_nothing_behind(server: Server, image: bytes) -> None:
    series = 'classify_rejected_total{reason="client_closed"}'
    before = server.metric(series)
    with connected(server) as connection:
        connection.sendall(request(image)[:-10])
        time.sleep(0.1)
    eventually(lambda: server.metric(series) == before + 1)
    assert server.metric("classify_images_in_flight") == 0


def test_the_connection_closes_when_the_caller_asks_for_it(server: Server, image: bytes) -> None:
    with connected(server) as connection:
        connection.sendall(request(image, "Connection: close"))
        ((status, headers, _),) = answers(connection, 1)
        assert (status, headers["connection"]) == (200, "close")
        assert is_closed(connection)
