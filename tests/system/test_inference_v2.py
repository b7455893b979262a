"""The Open Inference Protocol, as Triton's own client speaks it to a real server."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.http import aio
from tritonclient.utils import InferenceServerException

from service.image import preprocess
from tests.system.server import Server, running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
MODEL = "digits"
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def server(digits_models: Path) -> Iterator[Server]:
    with running(digits_models) as server:
        yield server


@pytest.fixture
def address(server: Server) -> str:
    return server.url.removeprefix("http://")


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    client = triton.InferenceServerClient(address, concurrency=8)
    yield client
    client.close()


@pytest.fixture(scope="module")
def pixels(samples: list[Path]) -> NDArray[np.uint8]:
    """Six digits as the model's input."""
    images = [Image.open(path).convert("RGB") for path in samples[:6]]
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def expected(pixels: NDArray[np.uint8], digits_model: Path) -> NDArray[np.float32]:
    (logits,) = onnxruntime.InferenceSession(digits_model).run(["logits"], {"images": pixels})
    result: NDArray[np.float32] = logits
    return result


def tensor(pixels: NDArray[np.uint8], *, binary: bool = True) -> Any:
    images = triton.InferInput("images", list(pixels.shape), "UINT8")
    images.set_data_from_numpy(pixels, binary_data=binary)
    return images


def encoded(paths: list[Path]) -> Any:
    images = triton.InferInput("images", [len(paths)], "BYTES")
    images.set_data_from_numpy(np.array([path.read_bytes() for path in paths], dtype=object))
    return images


def assert_close(got: Any, expected: NDArray[np.float32]) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


# --- what there is ---------------------------------------------------------------------------------


def test_the_server_says_what_it_is_and_what_it_has(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    about = client.get_server_metadata()
    assert about["name"] == "resnet-service"
    assert set(about["extensions"]) >= {"classification", "binary_tensor_data", "statistics", "model_repository"}
    for version in ("", "1"):
        metadata = client.get_model_metadata(MODEL, version)
        assert metadata["versions"] == ["1"]
        assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
        config = client.get_model_config(MODEL, version)
        assert (config["name"], config["max_batch_size"], config["input"][0]["dims"]) == (MODEL, 64, [32, 32, 3])
    assert client.get_model_repository_index() == [{"name": MODEL, "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_models_are_not_loaded_by_request(call: str, client: Any) -> None:
    with pytest.raises(InferenceServerException, match="is not allowed"):
        getattr(client, call)(MODEL)
    assert client.is_model_ready(MODEL)


# --- inference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("out", [None, True, False], ids=["no outputs named", "binary out", "JSON out"])
def test_tensors_give_the_graphs_own_logits(
    binary_in: bool, out: bool | None, client: Any, pixels: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    outputs = None if out is None else [triton.InferRequestedOutput("logits", binary_data=out)]
    result = client.infer(MODEL, [tensor(pixels, binary=binary_in)], outputs=outputs, request_id="seven")
    assert_close(result.as_numpy("logits"), expected)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == (MODEL, "1", "seven")


def test_encoded_images_are_prepared_by_the_server(
    client: Any, samples: list[Path], digits_model: Path, expected: NDArray[np.float32]
) -> None:
    result = client.infer(MODEL, [encoded(samples[:6])], model_version="1")
    assert_close(result.as_numpy("logits"), expected)


def test_classes_are_answered_by_the_classification_extension(
    client: Any, samples: list[Path], expected: NDArray[np.float32]
) -> None:
    for binary in (True, False):
        wanted = triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)
        result = client.infer(MODEL, [encoded(samples[:6])], outputs=[wanted]).as_numpy("logits")
        assert result.shape == (6, 3)
        for row, logits in zip(result, expected, strict=True):
            texts = [text.decode() if isinstance(text, bytes) else text for text in row]
            values, indices, names = zip(*(text.split(":") for text in texts), strict=True)
            best = np.argsort(-logits)[:3]
            assert [int(index) for index in indices] == best.tolist()
            assert list(names) == [LABELS[index] for index in best]
            np.testing.assert_allclose([float(value) for value in values], logits[best], atol=1e-4)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_either_way(
    coding: str, client: Any, address: str, pixels: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    result = client.infer(
        MODEL,
        [tensor(np.concatenate([pixels] * 9))],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert_close(result.as_numpy("logits"), np.concatenate([expected] * 9))
    body = json.dumps({"inputs": [json_input(np.concatenate([pixels] * 9))]})
    response = httpx2.post(
        f"http://{address}/v2/models/{MODEL}/infer", content=body, headers={"accept-encoding": coding}
    )
    assert response.headers["content-encoding"] == coding


@pytest.mark.parametrize(("weight", "taken"), [("0", False), ("0.", False), ("0.000", False), ("0.001", True)])
def test_a_coding_that_is_refused_is_not_answered_in(server: Server, weight: str, taken: bool) -> None:
    blank = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    coded = {"accept-encoding": f"gzip; q={weight}"}
    answer = server.post(f"/v2/models/{MODEL}/infer", json={"id": "long" * 500, "inputs": [blank]}, headers=coded)
    assert (answer.status_code, "content-encoding" in answer.headers) == (200, taken)


async def test_the_asynchronous_clients_get_the_same_answers(
    client: Any, address: str, pixels: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    waiting = [client.async_infer(MODEL, [tensor(pixels[i : i + 1])]) for i in range(6)]
    for position, each in enumerate(waiting):
        assert_close(each.get_result().as_numpy("logits"), expected[position : position + 1])
    async with aio.InferenceServerClient(address) as other:
        assert await other.is_server_ready()
        result = await other.infer(MODEL, [tensor(pixels)], outputs=[triton.InferRequestedOutput("logits")])
        assert_close(result.as_numpy("logits"), expected)


def test_priority_and_timeout_are_taken(client: Any, pixels: NDArray[np.uint8], expected: NDArray[np.float32]) -> None:
    result = client.infer(MODEL, [tensor(pixels)], priority=1, timeout=5_000_000)
    assert_close(result.as_numpy("logits"), expected)


def test_a_timeout_that_cannot_be_kept_is_an_error_of_the_protocol(client: Any, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InferenceServerException) as failed:
        client.infer(MODEL, [tensor(pixels)], timeout=1)
    assert failed.value.status() in ("504", "429")


def images_in_batches(statistics: dict[str, Any]) -> int:
    return sum(each["batch_size"] * each["compute_infer"]["count"] for each in statistics["batch_stats"])


def test_statistics_count_what_ran(client: Any, pixels: NDArray[np.uint8]) -> None:
    def counted() -> dict[str, Any]:
        (model,) = client.get_inference_statistics(MODEL)["model_stats"]
        found: dict[str, Any] = model
        return found

    before = counted()
    client.infer(MODEL, [tensor(pixels)])
    after = counted()
    assert after["inference_count"] == before["inference_count"] + 6
    assert 1 <= after["execution_count"] - before["execution_count"] <= 6
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 6
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    ran = [
        sum(each["batch_size"] * each["compute_infer"]["count"] for each in now["batch_stats"])
        for now in (before, after)
    ]
    assert ran[1] == ran[0] + 6
    assert after["last_inference"] >= before["last_inference"] > 0


def test_one_raw_image_is_the_whole_body(
    server: Server, samples: list[Path], pixels: NDArray[np.uint8], expected: NDArray[np.float32]
) -> None:
    for body in (pixels[0].tobytes(), samples[0].read_bytes()):
        response = server.post(
            f"/v2/models/{MODEL}/infer", content=body, headers={"inference-header-content-length": "0"}
        )
        length = int(response.headers["inference-header-content-length"])
        assert json.loads(response.content[:length])["outputs"][0]["shape"] == [1, 10]
        assert_close(np.frombuffer(response.content[length:], "<f4"), expected[0])


def test_requests_are_counted_like_all_others(server: Server, client: Any, pixels: NDArray[np.uint8]) -> None:
    series = 'classify_requests_total{code="200",model="digits",version="1"}'
    before = server.metric(series)
    client.infer(MODEL, [tensor(pixels)])
    assert server.metric(series) == before + 1
    assert server.metric("classify_images_in_flight") == 0


# --- what is refused -------------------------------------------------------------------------------


def json_input(pixels: NDArray[np.uint8], **changes: Any) -> dict[str, Any]:
    return {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.reshape(-1).tolist(),
    } | changes


def body_of(*inputs: dict[str, Any], **others: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)} | others).encode()


BLANK = np.zeros((1, 32, 32, 3), np.uint8)
BINARY = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "parameters": {}}]}


def binary_request(size: object, tail: int) -> tuple[bytes, dict[str, str]]:
    header = json.loads(json.dumps(BINARY))
    header["inputs"][0]["parameters"]["binary_data_size"] = size
    head = json.dumps(header).encode()
    return head + bytes(tail), {"inference-header-content-length": str(len(head))}


def empty_images(size: int) -> tuple[bytes, dict[str, str]]:
    """One image is announced, and many elements of length 0 follow."""
    images = {"name": "images", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [images]}).encode()
    return head + bytes(size), {"inference-header-content-length": str(len(head))}


REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no body": (b"", {}, 400, "no body"),
    "no JSON": (b"not json", {}, 400, "not valid"),
    "deep JSON": (b"[" * 100_000, {}, 400, "not valid"),
    "no inputs": (b"{}", {}, 400, "inputs"),
    "another input": (body_of(json_input(BLANK, name="x")), {}, 400, "one input, images"),
    "two inputs": (body_of(json_input(BLANK), json_input(BLANK)), {}, 400, "one input, images"),
    "another type": (body_of(json_input(BLANK, datatype="FP32")), {}, 400, "UINT8 [-1, 32, 32, 3] or BYTES [-1]"),
    "another shape": (body_of(json_input(BLANK, shape=[1, 3, 32, 32])), {}, 400, "got UINT8 [1, 3, 32, 32]"),
    "a negative dimension": (body_of(json_input(BLANK, shape=[-1, 32, 32, 3])), {}, 400, "shape"),
    "a huge dimension": (body_of(json_input(BLANK, shape=[2**62, 32, 32, 3])), {}, 400, "batch"),
    "an empty batch": (body_of(json_input(BLANK, shape=[0, 32, 32, 3], data=[])), {}, 400, "batch of 0"),
    "too many images": (body_of(json_input(BLANK, shape=[65, 32, 32, 3])), {}, 400, "between 1 and 64"),
    "too few numbers": (body_of(json_input(BLANK, data=[1, 2, 3])), {}, 400, "3072 bytes are expected"),
    "a number over 255": (body_of(json_input(BLANK, data=[256] * 3072)), {}, 400, "0 to 255"),
    "a negative number": (body_of(json_input(BLANK, data=[-1] * 3072)), {}, 400, "0 to 255"),
    "fractions": (body_of(json_input(BLANK, data=[0.5] * 3072)), {}, 400, "whole numbers"),
    "ragged data": (body_of(json_input(BLANK, data=[[1], [1, 2]])), {}, 400, "flat nor nested"),
    "text for numbers": (body_of(json_input(BLANK, data=["a"] * 3072)), {}, 400, "whole numbers"),
    "another output": (body_of(json_input(BLANK), outputs=[{"name": "y"}]), {}, 400, "one output, logits"),
    "a reserved parameter": (body_of(json_input(BLANK), parameters={"triton_x": 1}), {}, 400, "reserved"),
    "a timeout in words": (body_of(json_input(BLANK), parameters={"timeout": "soon"}), {}, 400, "timeout"),
    "no base64": (body_of(json_input(BLANK, datatype="BYTES", shape=[1], data=["*"])), {}, 400, "base64"),
    "no image": (body_of(json_input(BLANK, datatype="BYTES", shape=[1], data=["aGVsbG8="])), {}, 400, "image"),
    "a header length in words": (b"{}", {"inference-header-content-length": "x"}, 400, "should be in range (0, 2)"),
    "a header length over the body": (b"{}", {"inference-header-content-length": "3"}, 400, "got: 3"),
    "a negative header length": (b"{}", {"inference-header-content-length": "-1"}, 400, "got: -1"),
    "more bytes than stated": (*binary_request(3072, 3073), 400, "unexpected additional input data"),
    "fewer bytes than stated": (*binary_request(3072, 3071), 400, "expecting additional bytes"),
    "a size that does not fit the shape": (*binary_request(3071, 3071), 400, "3072 bytes are expected"),
    "a size in words": (*binary_request("all", 3072), 400, "whole number"),
    "a size of thousands of digits": (
        b"{}",
        {"inference-header-content-length": "9" * 5000},
        400,
        "should be in range",
    ),
    "a text as wide as all numbers": (body_of(json_input(BLANK, data=["1" * 9999] + [""] * 9999)), {}, 400, "numbers"),
    "a mebibyte of empty images": (*empty_images(2**20), 400, "1 elements are expected"),
    "bytes without a size": (*binary_request(None, 3072), 400, "not valid"),
    "an unknown coding": (b"{}", {"content-encoding": "br"}, 415, "not one of gzip, deflate"),
    "a coding that is not there": (b"{}", {"content-encoding": "gzip"}, 400, "is not gzip"),
    "a cut gzip": (gzip.compress(bytes(1000))[:-8], {"content-encoding": "gzip"}, 400, "ends too early"),
    "a gzip bomb": (gzip.compress(bytes(2**27)), {"content-encoding": "gzip"}, 413, "when it is inflated"),
    "a deflate bomb": (zlib.compress(bytes(2**27)), {"content-encoding": "deflate"}, 413, "when it is inflated"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_in_the_protocols_form(kind: str, server: Server) -> None:
    body, headers, status, said = REFUSED[kind]
    response = server.post(f"/v2/models/{MODEL}/infer", content=body, headers=headers, timeout=10)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    assert said in response.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/absent", 404),
        ("GET", "/v2/models/digits/versions/9", 404),
        ("GET", "/v2/models/digits/versions/x", 404),
        ("GET", "/v2/models/absent/stats", 404),
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/models/digits/infer", 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/absent/infer", 404),
    ],
)
def test_every_other_error_has_the_protocols_form_too(method: str, path: str, status: int, server: Server) -> None:
    response = httpx2.request(method, server.url + path, content=b"{}" if method == "POST" else None, verify=False)
    assert response.status_code == status
    assert set(response.json()) == {"error"}


BAD_CALLS: dict[str, Callable[[NDArray[np.uint8]], Any]] = {
    "name": lambda pixels: triton.InferInput("x", list(pixels.shape), "UINT8").set_data_from_numpy(pixels),
    "shape": lambda pixels: tensor(pixels[:, :16]),
}


@pytest.mark.parametrize("kind", BAD_CALLS)
def test_tritons_client_understands_our_errors(kind: str, client: Any, pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer(MODEL, [BAD_CALLS[kind](pixels)])
    assert refused.value.status() == "400"
    assert "images" in refused.value.message()


def test_one_bad_image_fails_its_request_and_leaves_nothing_behind(
    server: Server, client: Any, samples: list[Path]
) -> None:
    images = triton.InferInput("images", [3], "BYTES")
    contents = [samples[0].read_bytes(), b"no image", samples[1].read_bytes()]
    images.set_data_from_numpy(np.array(contents, dtype=object))
    with pytest.raises(InferenceServerException, match="not a complete JPEG"):
        client.infer(MODEL, [images])
    # The image beside it may be on the device: a run goes to its end.
    eventually(lambda: server.metric("classify_images_in_flight") == 0)


def test_a_photograph_is_resized_as_the_card_says(client: Any, digits_model: Path) -> None:
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    buffer = BytesIO()
    photograph.save(buffer, format="PNG")
    images = triton.InferInput("images", [1], "BYTES")
    images.set_data_from_numpy(np.array([buffer.getvalue()], dtype=object))
    from model_export.verify import card_of

    pixels = preprocess(buffer.getvalue(), card_of(digits_model).preprocessing, 10**6)
    (logits,) = onnxruntime.InferenceSession(digits_model).run(["logits"], {"images": pixels[np.newaxis]})
    assert_close(client.infer(MODEL, [images]).as_numpy("logits"), logits)
