"""The Open Inference Protocol over gRPC, as Triton's own client speaks it to a real server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as rest
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import aio, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.system.digits import different_images
from tests.system.server import Server, free_port, run_command, running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
MODEL = "digits"
COUNTED = 'classify_requests_total{code="%s",model="digits",version="1"}'


@dataclass
class Listening:
    """A server and where its gRPC port is."""

    server: Server
    address: str


@pytest.fixture(scope="module")
def listening(digits_models: Path) -> Iterator[Listening]:
    port = free_port()
    # One image a batch, so that a queue can be seen; requests of 4 MiB at most.
    flags = ("--max-batch-size", "1", "--max-request-bytes", str(2**22), "--max-queue", "64", "--log-level", "debug")
    with running(digits_models, "--grpc-port", str(port), *flags) as server:
        yield Listening(server, f"127.0.0.1:{port}")


@pytest.fixture
def server(listening: Listening) -> Server:
    return listening.server


@pytest.fixture(scope="module")
def client(listening: Listening) -> Iterator[Any]:
    with triton.InferenceServerClient(listening.address) as client:
        yield client


@pytest.fixture(scope="module")
def stub(listening: Listening) -> Iterator[Any]:
    with grpc.insecure_channel(listening.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def pixels(samples: list[Path]) -> NDArray[np.uint8]:
    """Six digits as the model's input."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in samples[:6]])


@pytest.fixture(scope="module")
def expected(listening: Listening, samples: list[Path]) -> Any:
    """What REST answers for the same six, as encoded images."""
    with rest.InferenceServerClient(listening.server.url.removeprefix("http://")) as client:
        return client.infer(MODEL, [encoded([path.read_bytes() for path in samples[:6]], rest)]).as_numpy("logits")


def tensor(pixels: NDArray[np.uint8], name: str = "images") -> Any:
    images = triton.InferInput(name, list(pixels.shape), "UINT8")
    images.set_data_from_numpy(pixels)
    return images


def encoded(contents: list[bytes], library: Any = triton) -> Any:
    images = library.InferInput("images", [len(contents)], "BYTES")
    images.set_data_from_numpy(np.array(contents, dtype=object))
    return images


def request_of(pixels: NDArray[np.uint8]) -> Any:
    """A request with its numbers in `contents`, as a client without numpy would send it."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    images = request.inputs.add(name="images", datatype="UINT8", shape=pixels.shape)
    images.contents.uint_contents.extend(pixels.reshape(-1).tolist())
    return request


def is_idle(server: Server) -> bool:
    return server.metric("classify_images_in_flight") == 0 == server.metric("classify_queue_depth")


# --- what there is ---------------------------------------------------------------------------------


def test_the_server_says_what_it_is_and_what_it_has(client: Any, server: Server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready(MODEL, "9" * 5000)
    assert not client.is_model_ready("absent")
    assert client.get_server_metadata(as_json=True) == server.get("/v2").json()
    index = client.get_model_repository_index(as_json=True)["models"]
    assert index == [{"name": MODEL, "version": "1", "state": "READY"}]


@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_is_described_as_over_rest(version: str, client: Any, server: Server) -> None:
    about = client.get_model_metadata(MODEL, version)
    told = server.get(f"/v2/models/{MODEL}").json()
    assert (about.name, list(about.versions), about.platform) == (told["name"], told["versions"], told["platform"])
    for got, want in ((about.inputs, told["inputs"]), (about.outputs, told["outputs"])):
        assert [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)} for each in got] == want
    config = client.get_model_config(MODEL, version).config
    told = server.get(f"/v2/models/{MODEL}/config").json()
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == (
        told["name"],
        told["max_batch_size"],
        told["input"][0]["dims"],
    )
    assert list(config.output[0].dims) == told["output"][0]["dims"]


def test_statistics_count_what_ran(client: Any, pixels: NDArray[np.uint8]) -> None:
    (before,) = client.get_inference_statistics(MODEL, "1").model_stats
    client.infer(MODEL, [tensor(pixels)])
    (after,) = client.get_inference_statistics().model_stats
    assert after.inference_count == before.inference_count + 6
    assert after.inference_stats.success.count == before.inference_stats.success.count + 6
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert [each.batch_size for each in after.batch_stats] == [1]


# --- inference -------------------------------------------------------------------------------------


def test_tensors_and_encoded_images_give_the_answers_of_rest(
    client: Any, stub: Any, pixels: NDArray[np.uint8], samples: list[Path], expected: Any
) -> None:
    outputs = [triton.InferRequestedOutput("logits")]
    result = client.infer(MODEL, [tensor(pixels)], outputs=outputs, request_id="seven", model_version="1")
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (MODEL, "1", "seven")
    contents = [path.read_bytes() for path in samples[:6]]
    np.testing.assert_array_equal(client.infer(MODEL, [encoded(contents)]).as_numpy("logits"), expected)
    (raw,) = stub.ModelInfer(request_of(pixels)).raw_output_contents
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(6, 10), expected)
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    request.inputs.add(name="images", datatype="BYTES", shape=[6]).contents.bytes_contents.extend(contents)
    (raw,) = stub.ModelInfer(request).raw_output_contents
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(6, 10), expected)


def test_classes_are_answered_by_the_classification_extension(
    client: Any, pixels: NDArray[np.uint8], expected: Any
) -> None:
    wanted = triton.InferRequestedOutput("logits", class_count=3)
    result = client.infer(MODEL, [tensor(pixels)], outputs=[wanted]).as_numpy("logits")
    assert result.shape == (6, 3)
    for row, logits in zip(result, expected, strict=True):
        assert [int(text.decode().split(":")[1]) for text in row] == np.argsort(-logits)[:3].tolist()


def test_parameters_and_compression_are_taken(client: Any, pixels: NDArray[np.uint8], expected: Any) -> None:
    result = client.infer(
        MODEL, [tensor(pixels)], priority=1, timeout=5_000_000, client_timeout=5, compression_algorithm="gzip"
    )
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)


async def test_the_asynchronous_client_gets_the_same_answers(
    listening: Listening, pixels: NDArray[np.uint8], expected: Any
) -> None:
    async with aio.InferenceServerClient(listening.address) as client:
        assert await client.is_server_ready()
        result = await client.infer(MODEL, [tensor(pixels)])
    np.testing.assert_array_equal(result.as_numpy("logits"), expected)


def test_a_call_is_counted_logged_and_named_as_a_request_over_rest(
    server: Server, stub: Any, pixels: NDArray[np.uint8]
) -> None:
    before = server.metric(COUNTED % 200), server.metric('classify_stage_seconds_count{stage="respond"}')
    _, call = stub.ModelInfer.with_call(request_of(pixels[:1]), metadata=[("x-request-id", "find-me")])
    assert dict(call.trailing_metadata())["x-request-id"] == "find-me"
    after = server.metric(COUNTED % 200), server.metric('classify_stage_seconds_count{stage="respond"}')
    assert after == (before[0] + 1, before[1] + 1)
    eventually(lambda: server.lines("find-me"))  # a line is written up to 50 ms later
    records = [json.loads(line) for line in server.lines("find-me")]
    assert [(each["status"], each["model"], each["logger"]) for each in records] == [(200, MODEL, "service.request")]
    assert set(records[0]["ms"]) == {"decode", "queue", "inference", "respond", "total"}


# --- what is refused -------------------------------------------------------------------------------

BLANK = np.zeros((1, 32, 32, 3), np.uint8)
REFUSED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "another input": ("INVALID_ARGUMENT", lambda c: c.infer(MODEL, [tensor(BLANK, "x")]), "one input, images"),
    "two inputs": ("INVALID_ARGUMENT", lambda c: c.infer(MODEL, [tensor(BLANK)] * 2), "one input, images"),
    "another shape": ("INVALID_ARGUMENT", lambda c: c.infer(MODEL, [tensor(BLANK[:, :16])]), "got UINT8 [1, 16,"),
    "another type": (
        "INVALID_ARGUMENT",
        lambda c: c.infer(
            MODEL, [triton.InferInput("images", [1, 2], "FP32").set_data_from_numpy(np.zeros((1, 2), np.float32))]
        ),
        "UINT8 [-1, 32, 32, 3] or BYTES [-1]",
    ),
    "too many images": ("INVALID_ARGUMENT", lambda c: c.infer(MODEL, [encoded([b"x"] * 65)]), "between 1 and 64"),
    "no image": ("INVALID_ARGUMENT", lambda c: c.infer(MODEL, [encoded([b"no image"])]), "not a complete JPEG"),
    "another output": (
        "INVALID_ARGUMENT",
        lambda c: c.infer(MODEL, [tensor(BLANK)], outputs=[triton.InferRequestedOutput("y")]),
        "one output, logits",
    ),
    "an unknown model": ("NOT_FOUND", lambda c: c.infer("absent", [tensor(BLANK)]), "no such model"),
    "an unknown version": ("NOT_FOUND", lambda c: c.get_model_config(MODEL, "x"), "no such model"),
    "loading": ("INVALID_ARGUMENT", lambda c: c.load_model(MODEL), "load of 'digits' is not allowed"),
    "unloading": ("INVALID_ARGUMENT", lambda c: c.unload_model(MODEL), "unload of 'digits' is not allowed"),
    "a method that is not there": ("UNIMPLEMENTED", lambda c: c.get_log_settings(), ""),
    "too many bytes": (
        "RESOURCE_EXHAUSTED",
        lambda c: c.infer(MODEL, [encoded([bytes(2**22 + 2**17)])]),
        "larger than max",
    ),
    "a bomb": (
        "RESOURCE_EXHAUSTED",
        lambda c: c.infer(MODEL, [encoded([bytes(2**26)])], compression_algorithm="gzip"),
        "larger than max",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_has_a_status_and_our_text(kind: str, client: Any, server: Server) -> None:
    status, ask, said = REFUSED[kind]
    with pytest.raises(InferenceServerException) as refused:
        ask(client)
    assert refused.value.status() == f"StatusCode.{status}", refused.value.message()
    assert said in refused.value.message()
    eventually(lambda: is_idle(server))


def test_a_clients_timeout_that_passes_leaves_nothing_behind(client: Any, server: Server) -> None:
    server.process.send_signal(signal.SIGSTOP)  # or it might refuse before the client's own clock has run out
    try:
        with pytest.raises(InferenceServerException) as refused:
            client.infer(MODEL, [tensor(BLANK)], client_timeout=0.2)
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert refused.value.status() == "StatusCode.DEADLINE_EXCEEDED", refused.value.message()
    eventually(lambda: is_idle(server))


def test_a_timeout_that_cannot_be_kept_is_an_error_of_the_protocol(client: Any) -> None:
    with pytest.raises(InferenceServerException) as failed:
        client.infer(MODEL, [tensor(BLANK)], timeout=1)
    assert failed.value.status() in ("StatusCode.DEADLINE_EXCEEDED", "StatusCode.RESOURCE_EXHAUSTED")


def test_a_key_that_is_not_ascii_opens_over_grpc_too(digits_models: Path) -> None:
    curl = shutil.which("curl") or pytest.skip("Triton's client sends no such metadata, and there is no curl")
    if b"HTTP2" not in subprocess.run([curl, "--version"], capture_output=True, check=True).stdout:
        pytest.skip("Triton's client sends no such metadata, and curl does not speak HTTP/2")
    port = free_port()
    url = f"http://127.0.0.1:{port}/inference.GRPCInferenceService/RepositoryIndex"
    command = [curl, "-sS", "--http2-prior-knowledge", "-D", "-", "-o", os.devnull, "--data-binary", "@-", url]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-H"]
    keys = os.environ | {"SERVICE_API_KEYS": "grün,€"}
    with running(digits_models, "--grpc-port", str(port), environment=keys) as server:
        for key, status in (("grün", 0), ("€", 0), ("ü", 16)):
            asked = [*command, f"x-api-key: {key}"]
            told = subprocess.run(asked, input=bytes(5), capture_output=True, timeout=10, check=True).stdout
            assert b"grpc-status: %d\r\n" % status in told
        assert not server.tracebacks()


def with_contents_and_raw(request: Any) -> None:
    request.raw_input_contents.append(b"x")


def with_two_raw(request: Any) -> None:
    request.raw_input_contents.extend([b"x", b"y"])


def with_a_large_number(request: Any) -> None:
    request.inputs[0].contents.uint_contents[0] = 256


def with_an_empty_parameter(request: Any) -> None:
    request.parameters["timeout"].SetInParent()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_contents_and_raw, "both contents and raw_input_contents"),
        (with_two_raw, "has 2 tensors for 1 inputs"),
        (with_a_large_number, "whole numbers from 0 to 255"),
        (with_an_empty_parameter, "parameter timeout has no value"),
        (lambda request: request.inputs[0].ClearField("contents"), "3072 bytes are expected"),
    ],
)
def test_a_message_that_says_nothing_sensible_is_refused(change: Any, said: str, stub: Any) -> None:
    request = request_of(BLANK)
    change(request)
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request)
    assert (refused.value.code(), said in refused.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_bytes_that_are_no_message_are_the_callers_error(listening: Listening) -> None:
    before = listening.server.metric('classify_rejected_total{reason="invalid_request"}')
    with grpc.insecure_channel(listening.address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match=r"not an inference\.ModelInferRequest"):
            infer(b"\xff" * 10)
    assert listening.server.metric('classify_rejected_total{reason="invalid_request"}') == before + 1


def test_callers_who_leave_while_they_are_answered_are_no_failures(listening: Listening) -> None:
    with grpc.insecure_channel(listening.address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(150):
            calls = [infer.future(b"\xff", timeout=0.0005 * number) for number in range(1, 40)]
            for call in calls[::3]:
                call.cancel()
            for call in calls:
                eventually(call.done, pause=0.0005)
    assert not listening.server.tracebacks()


def test_a_full_queue_is_said_and_given_up_calls_cost_no_device_time(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    orders, port = tmp_path / "orders", free_port()
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    images = different_images(samples, 64)
    request.inputs.add(name="images", datatype="BYTES", shape=[64]).contents.bytes_contents.extend(images)
    flags = ("--grpc-port", str(port), "--max-batch-size", "1", "--max-queue", "64")
    module = ("tests.faults.faulty", str(orders))
    with (
        running(digits_models, *flags, module=module) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        orders.write_text("hold")
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        calls = [stub.ModelInfer.future(request) for _ in range(4)]
        eventually(lambda: sum(call.done() for call in calls) == 3)
        for call in calls:
            if not call.done():
                call.cancel()
                continue
            assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "queue is full" in call.details()
            assert int(dict(call.trailing_metadata())["retry-after"]) >= 1
        eventually(lambda: server.counted('classify_rejected_total{reason="client_closed"}') == 1)
        orders.unlink()
        eventually(lambda: is_idle(server))
        (model,) = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=MODEL)).model_stats
        assert model.inference_count <= 1
        assert not server.tracebacks()


# --- start and stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("calls_before", [0, 5])
def test_a_stop_loses_no_call(calls_before: int, digits_models: Path, samples: list[Path]) -> None:
    port = free_port()
    lost: list[str] = []
    answered = [0] * 8
    with running(digits_models, "--grpc-port", str(port), "--drain-delay-ms", "2000") as server:
        started = threading.Barrier(9)

        def call(worker: int) -> None:
            with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
                images = encoded([samples[worker].read_bytes()])
                client.infer(MODEL, [images])
                started.wait()
                while server.process.poll() is None:
                    try:
                        client.infer(MODEL, [images])
                        answered[worker] += 1
                    except InferenceServerException as error:
                        # What says that another server should be asked was not accepted by this one.
                        if error.status() != "StatusCode.UNAVAILABLE":
                            lost.append(f"{error.status()} {error.message()}")
                        return

        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(call, worker) for worker in range(8)]
            started.wait()
            eventually(lambda: min(answered) >= calls_before)
            server.process.send_signal(signal.SIGTERM)
            for each in waiting:
                each.result()
        assert server.process.wait(10) == 0
        assert not server.tracebacks()
    assert lost == []
    assert min(answered) > 0


def test_while_draining_it_is_not_ready_and_still_answers(digits_models: Path, pixels: NDArray[np.uint8]) -> None:
    port = free_port()
    with running(digits_models, "--grpc-port", str(port), "--drain-delay-ms", "4000") as server:
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_ready()
            server.process.send_signal(signal.SIGTERM)
            eventually(lambda: not client.is_server_ready())
            assert client.is_server_live()
            assert client.infer(MODEL, [tensor(pixels)]).as_numpy("logits").shape == (6, 10)
        assert server.process.wait(10) == 0


def test_a_taken_port_is_named(digits_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run_command("--models", str(digits_models), "--port", str(free_port()), "--grpc-port", port)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1 port {port} for gRPC" in result.stderr


def test_without_the_extra_it_serves_http_and_says_what_to_install(digits_models: Path, tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\", name='grpc')\n")
    arguments = ("--models", str(digits_models), "--port", str(free_port()))
    result = run_command(*arguments, "--grpc-port", str(free_port()), PYTHONPATH=str(tmp_path))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "install resnet-service[grpc]" in result.stderr
    assert "Traceback" not in result.stdout
    assert run_command("check", *arguments, PYTHONPATH=str(tmp_path)).returncode == 0


def test_http_is_served_beside_it(server: Server, samples: list[Path]) -> None:
    answer = server.post("/classify", content=samples[0].read_bytes()).json()
    assert answer["predictions"][0]["label"] == samples[0].stem


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_a_model_is_loaded_and_unloaded_with_a_key_by_tritons_clients(transport: str, digits_models: Path) -> None:
    port = free_port()
    key = {"authorization": "Bearer secret"}
    flags = ("--grpc-port", str(port), "--model-control", "explicit", "--api-keys", "secret,next")
    with running(digits_models, *flags) as server:
        connect = (
            triton.InferenceServerClient(f"127.0.0.1:{port}")
            if transport == "grpc"
            else rest.InferenceServerClient(server.url.removeprefix("http://"))
        )
        with connect as client:
            assert client.is_server_ready()
            with pytest.raises(InferenceServerException) as refused:
                client.unload_model(MODEL)
            assert refused.value.status() in ("401", "StatusCode.UNAUTHENTICATED")
            assert client.is_model_ready(MODEL, headers=key)
            client.unload_model(MODEL, headers=key)
            assert not client.is_model_ready(MODEL, headers=key)
            client.load_model(MODEL, headers=key)
            assert client.is_model_ready(MODEL, "1", headers=key)
        assert "secret" not in server.log.read_text()
