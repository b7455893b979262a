"""A real server whose models change under load: no request is lost, and no memory either."""

import asyncio
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from service.answer import softmax
from service.folder import Location
from service.loading import load
from service.opening import Opener
from service.runtime import open_onnx
from tests.conftest import SAMPLES
from tests.system.digits import different_images
from tests.system.server import Server, running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
CONNECTIONS = 16


@pytest.fixture
def two_versions(digits_by_precision: dict[str, Path], tmp_path: Path) -> Path:
    """A folder with version 1 in float32; version 2, in int8, is put there and taken away by the test."""
    for version, precision in (("1", "fp32"), ("spare", "int8")):
        folder = tmp_path / "models" / "digits" / version
        folder.mkdir(parents=True)
        shutil.copy(digits_by_precision[precision] / "digits" / "1" / "model.onnx", folder)
    return tmp_path / "models"


async def control(client: httpx2.AsyncClient, action: str, **parameters: object) -> None:
    answer = await client.post(f"/v2/repository/models/digits/{action}", json={"parameters": parameters})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("swaps", [5, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_swaps_under_load_lose_no_request_and_every_answer_is_its_versions(
    swaps: int, two_versions: Path, samples: list[Path]
) -> None:
    images = different_images(samples, 40)
    spare, second = (two_versions / "digits" / name for name in ("spare", "2"))
    with running(two_versions, "--model-control", "explicit") as server:
        limits = httpx2.Limits(max_connections=CONNECTIONS + 1)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            swapped = asyncio.Event()
            answers: list[tuple[int, int, list[float]]] = []

            async def caller() -> None:
                while not swapped.is_set():
                    which = random.randrange(len(images))
                    response = await client.post("/classify", params={"top_k": 10}, content=images[which])
                    assert response.status_code == 200, response.text
                    answers.append((which, response.json()["version"], by_class(response)))

            callers = [asyncio.create_task(caller()) for _ in range(CONNECTIONS)]
            for _ in range(swaps):
                spare.rename(second)
                await control(client, "load")
                await control(client, "unload", version=2)
                second.rename(spare)
            swapped.set()
            await asyncio.gather(*callers)
        assert server.metric("classify_queue_depth") == server.metric("classify_images_in_flight") == 0
    await compare(answers, two_versions, images)


async def test_a_version_that_is_loaded_under_load_is_run_in_the_batches_of_the_one_before(
    digits_models: Path, samples: list[Path], tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    with running(models, "--model-control", "explicit") as server:
        limits = httpx2.Limits(max_connections=CONNECTIONS + 1)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            stop = asyncio.Event()

            async def caller() -> None:
                while not stop.is_set():
                    assert (await client.post("/classify", content=samples[0].read_bytes())).status_code == 200

            callers = [asyncio.create_task(caller()) for _ in range(CONNECTIONS)]
            shutil.copytree(models / "digits" / "1", models / "digits" / "2")
            await control(client, "load")
            stop.set()
            await asyncio.gather(*callers)
            metrics = (await client.get("/metrics")).text

    def batches(version: int) -> list[str]:
        label = f'version="{version}"'
        lines = (line for line in metrics.splitlines() if line.startswith("model_batch_seconds"))
        return sorted(line.replace(label, "") for line in lines if label in line)

    assert batches(1) == batches(2) != []


def by_class(response: httpx2.Response) -> list[float]:
    ordered = sorted(response.json()["predictions"], key=lambda each: int(each["index"]))
    return [float(each["probability"]) for each in ordered]


async def compare(answers: list[tuple[int, int, list[float]]], models: Path, images: list[bytes]) -> None:
    """Each answer is that of the version which it names, and not the other's."""
    expected = {
        version: probabilities(models / "digits" / folder / "model.onnx", images)
        for version, folder in ((1, "1"), (2, "spare"))
    }
    seen = Counter(version for _, version, _ in answers)
    assert min(seen[1], seen[2]) > 20, seen
    for which, version, found in answers:
        own = max(abs(a - b) for a, b in zip(found, expected[version][which], strict=True))
        assert own < 1e-3, (which, version)
    differing = [
        max(abs(a - b) for a, b in zip(*pair, strict=True)) for pair in zip(expected[1], expected[2], strict=True)
    ]
    assert max(differing) > 2e-3, "the versions are too alike to tell their answers apart"


def probabilities(path: Path, images: list[bytes]) -> list[list[float]]:
    from service.image import preprocess

    model = load(Location("digits", 1, path), Opener(lambda file: open_onnx(file, "cpu", 1)), 1, lambda _: None)
    pixels = [preprocess(image, model.card.preprocessing, 2**20) for image in images]
    return [softmax(model.backend.run(each[None]).logits[0]).tolist() for each in pixels]


@pytest.mark.slow
async def test_memory_does_not_grow_over_50_loads_of_a_resnet18(digits_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models)
    resnet18 = convert_resnet18(tmp_path)
    sizes: list[int] = []
    with running(models, "--model-control", "explicit") as server:
        async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
            shutil.copytree(resnet18, models / "resnet18")
            image = (SAMPLES / "seven.png").read_bytes()
            for _ in range(50):
                assert (await client.post("/v2/repository/models/resnet18/load")).status_code == 200
                assert (await client.post("/classify?model=resnet18", content=image)).status_code == 200
                assert (await client.post("/v2/repository/models/resnet18/unload")).status_code == 200
                sizes.append(server.resident_bytes())
    assert max(sizes[-10:]) <= 1.05 * sizes[1], sizes


def convert_resnet18(folder: Path) -> Path:
    """A ResNet-18 with weights as training leaves them, as `folder/models18/resnet18`."""
    import torch

    from model_export.cli import main
    from tests.model_export.networks import trained_like

    torch.save(trained_like("resnet18", 1000).state_dict(), folder / "resnet18.pth")
    labels = folder / "labels.txt"
    labels.write_text("\n".join(f"class {index}" for index in range(1000)))
    source = ["convert", str(folder / "resnet18.pth"), "--name", "resnet18", "--preset", "imagenet-v1"]
    source += ["--labels", str(labels)]
    assert main([*source, "--out", str(folder / "models18")]) == 0
    return folder / "models18" / "resnet18"


async def test_disconnects_and_impossible_deadlines_leave_every_gauge_at_zero(
    digits_models: Path, samples: list[Path]
) -> None:
    images = different_images(samples, 64)
    statuses: Counter[int] = Counter()
    chance = random.Random(0)
    with running(digits_models) as server:

        async def caller(client: httpx2.AsyncClient) -> None:
            for _ in range(30):
                image, kind = chance.choice(images), chance.random()
                if kind < 0.05:
                    await hang_up(server, image)
                    continue
                query = {"timeout_ms": 1} if kind < 0.10 else {}
                response = await client.post("/classify", params=query, content=image)
                statuses[response.status_code] += 1

        limits = httpx2.Limits(max_connections=64)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            await asyncio.gather(*(caller(client) for _ in range(64)))
        eventually(lambda: sum(statuses_of(server).values()) == 64 * 30)  # those who hung up may be counted late
        assert set(statuses) <= {200, 429, 504}, statuses
        eventually(lambda: server.metric("classify_queue_depth") == server.metric("classify_images_in_flight") == 0)
        ran = server.metric("classify_batch_size_sum")
        assert statuses[429] + statuses[504] > 0
        # A caller may hang up, or a deadline pass, while its image is on the device; none is put there afterwards,
        # which tests/service/test_batching.py shows image by image.
        answered, abandoned = statuses_of(server)["200"], statuses_of(server)["499"]
        assert abandoned > 0
        assert answered <= ran <= answered + abandoned + statuses[504]


def statuses_of(server: Server) -> dict[str, float]:
    """How many requests ended with each status."""
    found = re.findall(r'classify_requests_total{code="(\d+)".*} (\S+)', server.get("/metrics").text)
    return {code: float(count) for code, count in found}


async def hang_up(server: Server, image: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    writer.write(head.encode() + image)
    await writer.drain()
    writer.close()
