"""A real server under load: right answers for everybody, honest refusals, and a stop that loses nothing."""

import asyncio
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from tests.system.digits import different_images
from tests.system.server import running
from tests.waiting import eventually

pytestmark = pytest.mark.anyio
CONNECTIONS = 64


def pool(url: str, connections: int) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx2.AsyncClient(base_url=url, limits=limits, timeout=60)


async def probabilities(client: httpx2.AsyncClient, image: bytes) -> list[float]:
    response = await client.post("/classify", params={"top_k": 10}, content=image)
    assert response.status_code == 200, response.text
    by_class = sorted(response.json()["predictions"], key=lambda each: int(each["index"]))
    return [float(each["probability"]) for each in by_class]


async def test_1000_different_images_at_64_connections_get_the_answers_of_a_batch_of_one(
    digits_models: Path, samples: list[Path]
) -> None:
    images = different_images(samples, 1000)
    with running(digits_models, "--max-queue", "2000") as server:
        async with pool(server.url, CONNECTIONS) as client:
            together = await asyncio.gather(*(probabilities(client, image) for image in images))
        runs = server.metric("classify_batch_size_count")
        assert runs < 1000, "nothing was batched, so nothing was proved"
        async with pool(server.url, 1) as client:
            alone = [await probabilities(client, image) for image in images]
        assert server.metric("classify_batch_size_count") == runs + 1000
    largest = max(
        abs(a - b) for one, other in zip(together, alone, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert largest <= 1e-4
    assert len({tuple(each) for each in alone}) > 900, "the images are too alike to tell answers apart"


async def test_overload_is_refused_with_429_while_probes_and_accepted_requests_are_answered(
    digits_models: Path, samples: list[Path]
) -> None:
    images = different_images(samples, 32)
    with running(digits_models, "--max-queue", "4", "--max-request-images", "4") as server:
        async with pool(server.url, CONNECTIONS) as client:
            requests = [client.post("/classify", content=images[i % 32]) for i in range(600)]
            probes = [client.get("/health/live") for _ in range(5)]
            responses, health = await asyncio.gather(asyncio.gather(*requests), asyncio.gather(*probes))
        statuses = Counter(response.status_code for response in responses)
        assert set(statuses) == {200, 429}, statuses
        assert {response.status_code for response in health} == {200}
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.json()["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.metric('classify_rejected_total{reason="overloaded"}') == statuses[429]
        assert server.metric("classify_queue_depth") == server.metric("classify_images_in_flight") == 0


@pytest.mark.parametrize("keep_alive", [True, False], ids=["keep-alive", "a connection each"])
async def test_sigterm_under_load_answers_every_accepted_request_and_exits_0(
    keep_alive: bool, digits_models: Path, samples: list[Path]
) -> None:
    images = different_images(samples, 32)
    outcomes: Counter[str] = Counter()
    with running(digits_models, "--drain-delay-ms", "2000", module=("tests.system.patient",)) as server:
        headers = {} if keep_alive else {"connection": "close"}

        async def caller(client: httpx2.AsyncClient) -> None:
            while True:
                try:
                    response = await client.post("/classify", content=images[len(outcomes) % 32], headers=headers)
                except httpx2.ConnectError:
                    outcomes["refused"] += 1  # never accepted: the listener is closed
                    return
                outcomes[str(response.status_code)] += 1

        async with pool(server.url, CONNECTIONS) as client:
            callers = [asyncio.create_task(caller(client)) for _ in range(CONNECTIONS)]
            while outcomes["200"] <= 2 * CONNECTIONS:  # noqa: ASYNC110  there is no event for it
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)
        assert server.process.wait(20) == 0
    assert set(outcomes) == {"200", "refused"}, outcomes
    assert outcomes["200"] > CONNECTIONS


async def test_while_draining_it_is_live_but_not_ready_and_still_serves(
    digits_models: Path, samples: list[Path]
) -> None:
    with running(digits_models, "--drain-delay-ms", "4000") as server:
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/health/ready").json()["phase"] == "draining")
        assert server.get("/health/ready").status_code == 503
        assert server.get("/health/live").status_code == 200
        answer = server.post("/classify", content=samples[0].read_bytes())
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert server.process.wait(20) == 0


async def test_a_request_that_is_half_sent_at_sigterm_is_answered(digits_models: Path, samples: list[Path]) -> None:
    image = samples[0].read_bytes()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    with running(digits_models, "--drain-delay-ms", "200", module=("tests.system.patient",)) as server:
        port = server.port
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        halves = [b"", head[:20].encode(), head.encode() + image[:30]]
        for (_, writer), half in zip(connections, halves, strict=True):
            writer.write(half)
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: is_refused(port))
        whole = head.encode() + image
        for (_, writer), half in zip(connections, halves, strict=True):
            writer.write(whole[len(half) :])
        answers = [await reader.read(15) for reader, _ in connections]
        assert answers == [b"HTTP/1.1 200 OK"] * 3
        for _, writer in connections:
            writer.close()
        assert server.process.wait(20) == 0


def is_refused(port: int) -> bool:
    """Whether nobody listens any more."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_second_signal_ends_at_once(digits_models: Path) -> None:
    with running(digits_models, "--drain-delay-ms", "20000") as server:
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.get("/health/ready").json()["phase"] == "draining")
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 1
        assert time.monotonic() - started < 5
