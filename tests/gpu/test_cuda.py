"""The digits on CUDA: proved against torch's logits, never on the CPU in secret, and split when memory runs out."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from model_export.catalog import find_architecture
from model_export.cli import main
from model_export.graph import export, served
from model_export.half import to_half
from service.artifact import Preprocessing
from service.folder import Location
from service.image import preprocess
from service.loading import load
from service.opening import Opener
from service.runtime import DeviceError, open_onnx
from tests.system.server import run_command, running
from tests.system.wire import answers, connected, request
from tests.system.workers import MADE_ID, own_answers, wait_for_workers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(), reason="this onnxruntime has no CUDA"
    ),
]


def test_every_precision_passes_its_golden_images(digits_by_precision: dict[str, Path]) -> None:
    for precision in ("fp32", "fp16"):
        done = run_command("check", "--models", str(digits_by_precision[precision]), "--device", "cuda")
        assert done.returncode == 0, done.stdout
        assert "on cuda" in done.stdout


def test_int8_for_cpus_is_refused_with_what_to_do(digits_by_precision: dict[str, Path]) -> None:
    with pytest.raises(DeviceError, match=r"run on CPUs only.*--precision fp16"):
        open_onnx(digits_by_precision["int8"] / "digits" / "1" / "model.onnx", "cuda", 1)


def test_int8_for_tensorrt_runs_on_cuda_alone_too(tmp_path: Path) -> None:
    command = ["convert", "builtin:digits", "--name", "digits", "--out", str(tmp_path), "--precision", "int8"]
    assert main([*command, "--int8-target", "tensorrt", "--calibration-method", "minmax"]) == 0
    done = run_command("check", "--models", str(tmp_path), "--device", "cuda")
    assert done.returncode == 0, done.stdout


def test_cuda_and_cpu_agree_on_every_sample(digits_model: Path, samples: list[Path]) -> None:
    opener = Opener(lambda path: open_onnx(path, "cuda", 1, spread=True))
    on_cuda = load(Location("digits", 1, digits_model), opener, 32, lambda _: None)
    recipe = on_cuda.card.preprocessing
    pixels = np.stack([preprocess(each.read_bytes(), recipe, 10**6) for each in samples])
    expected = open_onnx(digits_model, "cpu", 1).run(pixels).logits
    np.testing.assert_allclose(on_cuda.backend.run(pixels).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "size", "channels"),
    [
        ("resnet18", 64, 3),
        ("resnet50-v1", 64, 3),
        ("vgg19_bn", 224, 3),
        ("plain56", 32, 3),
        ("cifar-resnet20-b", 32, 3),
        ("resnet20", 32, 1),
    ],
)
def test_every_kind_of_network_goes_to_the_gpu_as_a_whole(
    architecture: str, size: int, channels: int, tmp_path: Path
) -> None:
    recipe = Preprocessing(
        resize=size, crop=size, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    torch.manual_seed(0)
    network = find_architecture(architecture).build(10, channels).eval()
    graph = export(served(network, recipe, channels), size)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    onnx.save(graph, tmp_path / "fp32.onnx")
    onnx.save(to_half(graph), tmp_path / "fp16.onnx")
    expected = open_onnx(tmp_path / "fp32.onnx", "cpu", 1).run(images).logits
    for precision, allowed in (("fp32", 1e-4), ("fp16", 0.05)):
        logits = open_onnx(tmp_path / f"{precision}.onnx", "cuda", 1).run(images).logits
        np.testing.assert_allclose(logits, expected, atol=allowed * np.abs(expected).max())


def test_two_runs_at_once_give_what_one_gives(digits_model: Path) -> None:
    backend = open_onnx(digits_model, "cuda", 1, spread=True)
    assert backend.lanes == {"together": 1, "spread": 2}
    batches = np.random.default_rng(0).integers(0, 256, (200, 16, 32, 32, 3), dtype=np.uint8)
    alone = [backend.run(each).logits for each in batches]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda each: backend.run(each, arrangement="spread").logits, batches))
    np.testing.assert_allclose(at_once, alone, rtol=1e-4, atol=1e-4)


def test_the_service_says_where_it_runs_and_shows_the_gpu(digits_models: Path, samples: list[Path]) -> None:
    with running(digits_models, "--device", "cuda") as server:
        assert server.post("/classify", content=samples[0].read_bytes()).status_code == 200
        (model,) = server.get("/models").json()["models"]
        assert model["versions"][0]["device"] == "cuda"
        assert server.metric('gpu_memory_used_bytes{gpu="0"}') > 0
        assert server.terminate() == 0


def test_workers_decode_for_the_gpu(digits_models: Path, samples: list[Path]) -> None:
    flags = ("--device", "cuda", "--http-workers")
    with running(digits_models, *flags, "0") as alone, running(digits_models, *flags, "2") as server:
        wait_for_workers(server, 2)
        with connected(server) as connection:
            for each in samples:
                connection.sendall(request(each.read_bytes()))
                ((status, headers, body),) = answers(connection, 1)
                by_itself = alone.post("/classify", content=each.read_bytes())
                assert (status, json.loads(body)) == (200, by_itself.json())
                assert headers["x-request-id"][:MADE_ID] != own_answers(server)


def test_the_doctor_finds_driver_and_libraries(digits_models: Path) -> None:
    done = run_command("doctor", "--models", str(digits_models), "--device", "cuda")
    assert done.returncode == 0, done.stdout
    assert "ok    NVIDIA driver" in done.stdout
    assert "ok    CUDA provider" in done.stdout
